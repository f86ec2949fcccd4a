"""What a method needs besides its target: a draft model, or heads or a filter that were trained for the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from paradec import pretrained
from paradec.errors import InputError
from paradec.io.confidence_filter import TrainedFilter, load_filter
from paradec.io.medusa import Trained, fingerprint, load_medusa
from paradec.models.heads import DraftHeads, ShortList
from paradec.models.ranked_tree import MC_SIM_7B_63
from paradec.system import Component

if TYPE_CHECKING:
    from paradec.lm import LanguageModel


SHIPPED = Path(__file__).parent / "heads"


class Kept(NamedTuple):
    """What was opened for a model and its weights. `given` is held so that no other object gets its id."""

    what: Any
    model: Any
    params: PyTree
    given: Any


def kept(store: dict[Any, Kept], lm: LanguageModel, kind: str, given: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns, made once for each `given` and anew where the model or its weights have become others."""
    key = (kind, given if given is None or isinstance(given, (str, Path)) else id(given))
    found = store.get(key)
    if found is None or found.params is not lm.params or found.model != lm.model:
        store[key] = found = Kept(make(), lm.model, lm.params, given)
    return found.what


def opened(lm: LanguageModel, name: str, given: Any) -> Component | None:
    """The component of that name ("draft", "heads" or "filter") for a model, from what was given: opened once and kept.
    None: none was given, and there is none of its own."""
    return kept(lm.components, lm, name, given, lambda: OPENERS[name](lm, given))


def draft(lm: LanguageModel, given: str | LanguageModel | pretrained.Pretrained | None) -> Component | None:
    """A draft model by its name; "layers:N" is the target's own first N layers, untrained for the task."""
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        name = str(given)
        if name.startswith("layers:"):
            return _first_layers(lm, name.removeprefix("layers:"))
        given = lm if name == lm.name else pretrained.read(name, dtype=lm.model.dtype)
    if not all(hasattr(given, field) for field in ("model", "params", "tokenizer")):  # whatever a caller hands over
        raise InputError(f"draft must be a name or a loaded language model; a {type(given).__name__} was given.")
    if "prefix" not in given.model.kinds:
        raise InputError(f"{given.name} is a diffusion model and cannot draft; take one that continues a text.")
    _check_tokenizer(lm, given)
    return Component(given.model, given.params)


def _check_tokenizer(lm: LanguageModel, draft: LanguageModel | pretrained.Pretrained) -> None:
    """Raise `InputError` where a token id means one thing to the target and another to the draft model."""
    mine, theirs = (
        {i: token for token, i in model.tokenizer.core.get_vocab(with_added_tokens=True).items()}
        for model in (lm, draft)
    )
    wrong = next((i for i in sorted(mine.keys() & theirs.keys()) if mine[i] != theirs[i]), None)
    if wrong is not None:
        raise InputError(
            f"{draft.name} cannot draft for {lm.name}: their tokenizers differ. Token {wrong} is {theirs[wrong]!r} to "
            f"the one and {mine[wrong]!r} to the other. Take a draft model of the same family."
        )


def _first_layers(lm: LanguageModel, count: str) -> Component:
    stacks = lm.model.stacks().layers
    if "prefix" not in lm.model.kinds or len(stacks) != 1:
        raise InputError(f"draft=layers:N takes the first layers of a plain transformer; {lm.name} is none.")
    ((name, depth),) = stacks
    if not count.isdecimal() or not 1 <= int(count) <= depth:
        raise InputError(f"draft=layers:N takes N from 1 to {depth}; {count!r} was given.")
    n = int(count)
    first = jax.tree.map(lambda x: x[:n], getattr(lm.params, name))
    return Component(lm.model.first_layers(n), lm.params.replace(**{name: first}))


def heads(lm: LanguageModel, given: str | Path | Trained | None) -> Component | None:
    """Medusa heads: a file, heads in memory, or by default those that paradec ships for this model, if any.

    Heads without a tree get Medusa's published one for 7B models, as far as there are heads for it. Raises
    `InputError` for heads of another base model.
    """
    given = shipped(lm) if given is None else given
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        given = load_medusa(Path(given), lm.model.dtype)
    if not isinstance(given, Trained):
        raise InputError(f"heads must be a file or trained heads; a {type(given).__name__} was given.")
    if "prefix" not in lm.model.kinds or not lm.model.sizes().width:
        raise InputError(f"{lm.name} has no hidden states that heads could read.")
    _check_base(lm, given)
    tree = given.tree or tuple(path for path in MC_SIM_7B_63 if len(path) <= given.heads.num_heads)
    short = None
    if given.short_list is not None:
        ids = jnp.asarray(given.short_list)
        short = ShortList(token=ids, table=lm.model.unembed(lm.params)[ids])
    return Component((given.heads, tree), DraftHeads(jax.tree.map(jnp.asarray, given.weights), short))


def shipped(lm: LanguageModel) -> Path | None:
    """The heads in this package that were trained for a model, told by its weights and not by its name."""
    mine = fingerprint(lm.model, lm.params)
    for path in sorted(SHIPPED.glob("*.json")):
        if json.loads(path.read_text(encoding="utf-8")).get("base_digest") == mine:
            return path.with_suffix(".safetensors")
    return None


def confidence_filter(lm: LanguageModel, given: str | Path | TrainedFilter | Component | None) -> Component | None:
    """A confidence filter: a file, or one in memory. Raises `InputError` for a filter of another base model."""
    if given is None or given == "":
        return None
    if isinstance(given, (str, Path)):
        given = load_filter(Path(given))
    if isinstance(given, Component):
        return given
    if not isinstance(given, TrainedFilter):
        raise InputError(f"filter must be a file or a trained filter; a {type(given).__name__} was given.")
    _check_digest(lm, given.facts, "This filter was")
    return Component(given.filter, jax.tree.map(jnp.asarray, given.weights))


def _check_digest(lm: LanguageModel, facts: Mapping[str, Any], what: str) -> None:
    base, mine = facts.get("base_digest"), fingerprint(lm.model, lm.params)
    if base is not None and base != mine:
        name = facts.get("base", "another model")
        raise InputError(f"{what} trained for {name} ({base}); {lm.name} has other weights ({mine}).")


def _check_base(lm: LanguageModel, trained: Trained) -> None:
    _check_digest(lm, trained.facts, "These heads were")
    own, V, D = trained.heads.vocab_size, lm.model.vocab_size, lm.model.sizes().width
    if trained.heads.width != D or own not in (0, V):
        raise InputError(
            f"These heads are for a model of width {trained.heads.width}{f' and {own} tokens' if own else ''}; "
            f"{lm.name} has width {D} and {V} tokens."
        )
    if trained.short_list is not None and not 0 <= trained.short_list.min() <= trained.short_list.max() < V:
        raise InputError(f"The short list of these heads names tokens beyond the {V} of {lm.name}.")


OPENERS: Mapping[str, Callable[[LanguageModel, Any], Component | None]] = {
    "draft": draft,
    "heads": heads,
    "filter": confidence_filter,
}
"""How each component is opened for a model, from a name, a file or an object."""
