"""What a method needs besides its target: a draft model, or heads or a filter that were trained for the target."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from paradec.errors import InputError
from paradec.io.confidence_filter import TrainedFilter, load_filter
from paradec.io.medusa import Trained, fingerprint, load_medusa
from paradec.models.heads import DraftHeads, ShortList
from paradec.models.ranked_tree import MC_SIM_7B_63

if TYPE_CHECKING:
    from paradec.lm import LanguageModel


SHIPPED = Path(__file__).parent / "heads"


class Part(NamedTuple):
    """`structure` goes into `catalog.build`, `params` into the method's parameters."""

    structure: Any
    params: PyTree


def find(lm: LanguageModel, kind: str, given: Any) -> Part | None:
    """The part of that kind ("draft" or "heads") for a model. None: none was given, which `catalog.build` refuses."""
    return draft(lm, given) if kind == "draft" else heads(lm, given)


def draft(lm: LanguageModel, given: str | LanguageModel | None) -> Part | None:
    """A draft model by its name; "layers:N" is the target's own first N layers, untrained for the task."""
    if given is None:
        return None
    if not isinstance(given, str):
        return Part(given.model, given.params)
    if given == lm.name:
        return Part(lm.model, lm.params)
    if given.startswith("layers:"):
        return _first_layers(lm, given.removeprefix("layers:"))
    from paradec.loading import load

    other = load(given, dtype=lm.model.dtype)
    return Part(other.model, other.params)


def _first_layers(lm: LanguageModel, count: str) -> Part:
    depth = lm.model.num_layers
    if not count.isdecimal() or not 1 <= int(count) <= depth:
        raise InputError(f"draft=layers:N takes N from 1 to {depth}; {count!r} was given.")
    n = int(count)
    model = dataclasses.replace(lm.model, num_layers=n, sliding=lm.model.sliding[:n])
    return Part(model, lm.params.replace(blocks=jax.tree.map(lambda x: x[:n], lm.params.blocks)))


def heads(lm: LanguageModel, given: str | Path | Trained | None) -> Part | None:
    """Medusa heads: a file, heads in memory, or by default those that paradec ships for this model, if any.

    Heads without a tree get Medusa's published one for 7B models, as far as there are heads for it. Raises
    `InputError` for heads of another base model.
    """
    given = shipped(lm) if given is None else given
    if given is None:
        return None
    if not isinstance(given, Trained):
        given = load_medusa(Path(given), lm.model.dtype)
    _check_base(lm, given)
    tree = given.tree or tuple(path for path in MC_SIM_7B_63 if len(path) <= given.heads.num_heads)
    short = None
    if given.short_list is not None:
        ids = jnp.asarray(given.short_list)
        short = ShortList(token=ids, table=lm.model.unembed(lm.params)[ids])
    return Part((given.heads, tree), DraftHeads(jax.tree.map(jnp.asarray, given.weights), short))


def shipped(lm: LanguageModel) -> Path | None:
    """The heads in this package that were trained for a model, told by its weights and not by its name."""
    mine = fingerprint(lm.params)
    for path in sorted(SHIPPED.glob("*.json")):
        if json.loads(path.read_text(encoding="utf-8")).get("base_digest") == mine:
            return path.with_suffix(".safetensors")
    return None


def opened(lm: LanguageModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an unmasking method, with `filter` (a file or a `TrainedFilter`) as structure and weights.

    Blocks are as long as the filter reads, unless the options say otherwise. Raises `InputError` for a filter of
    another base model.
    """
    for key in ("filter", "learned_filter.filter"):
        given = options.get(key)
        if isinstance(given, TrainedFilter) or (isinstance(given, (str, Path)) and given):
            trained = given if isinstance(given, TrainedFilter) else load_filter(Path(given))
            _check_digest(lm, trained.facts, "This filter was")
            weights = jax.tree.map(jnp.asarray, trained.weights)
            found = {key: trained.filter, key.removesuffix("filter") + "weights": weights}
            return {"block": trained.filter.length} | dict(options) | found
    return dict(options)


def _check_digest(lm: LanguageModel, facts: Mapping[str, Any], what: str) -> None:
    base, mine = facts.get("base_digest"), fingerprint(lm.params)
    if base is not None and base != mine:
        name = facts.get("base", "another model")
        raise InputError(f"{what} trained for {name} ({base}); {lm.name} has other weights ({mine}).")


def _check_base(lm: LanguageModel, trained: Trained) -> None:
    _check_digest(lm, trained.facts, "These heads were")
    own, V, D = trained.heads.vocab_size, lm.model.vocab_size, lm.model.width
    if trained.heads.width != D or own not in (0, V):
        raise InputError(
            f"These heads are for a model of width {trained.heads.width}{f' and {own} tokens' if own else ''}; "
            f"{lm.name} has width {D} and {V} tokens."
        )
    if trained.short_list is not None and not 0 <= trained.short_list.min() <= trained.short_list.max() < V:
        raise InputError(f"The short list of these heads names tokens beyond the {V} of {lm.name}.")
