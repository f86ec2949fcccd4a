"""Any method and any model through the laws, in one call: ours in the catalogue's tests, yours in your own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from paradec import catalog, composition
from paradec.decode.sampling import sampling
from paradec.decode.seams import Method, Part
from paradec.decode.speculative import speculative
from paradec.engines import PREFIX
from paradec.models.attention_mixer import Attention
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.slstm import SLSTM
from paradec.models.experts import Experts
from paradec.models.flash_rnn import FlashRNN
from paradec.models.gla import GLA
from paradec.models.heads import ConfidenceFilter, DraftHeads, MedusaHeads
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.models.pararnn import ParaRNN
from paradec.models.ranked_tree import best_first
from paradec.system import Component, System
from paradec.testing import canvas_laws, laws, model_laws
from paradec.testing.tiny import drawn, ragged_prompts, tiny_recurrent, tiny_table, tiny_transformer
from paradec.types import Denoiser, Model

SLOTS, BLOCK = 128, 8
PREFIX_TARGETS = {
    "transformer": tiny_transformer,
    "pararnn": lambda: tiny_recurrent(ParaRNN(ParaGRU(4, 8), conv=3)),
    "gla": lambda: tiny_recurrent(GLA(2)),
    "mixed": lambda: tiny_recurrent(GLA(2, conv_size=3), Attention(4, 2, 8), FlashRNN(SLSTM(4, 8)), repeats=1),
    "experts": lambda: tiny_transformer(experts=Experts(4, 16, 2)),
    "table": lambda: tiny_table(vocab_size=29),
    "both": lambda: tiny_of_both(),
}
"""Models of every kind that continues a text, and their weights."""
CANVAS_TARGETS = {
    "full": lambda: tiny_denoiser(),
    "block": lambda: tiny_denoiser(block=BLOCK),
    "shifted": lambda: tiny_denoiser(shift=True),
    "causal": lambda: tiny_of_both(),
    "noise": lambda: tiny_maskless(),
}
"""Models of every kind that fills a canvas, and their weights."""


def tiny_denoiser(seed: int = 1, **options: Any) -> tuple[BlockDiffusion, PyTree]:
    """A random transformer as a denoiser, sharp enough that confidences vary, and its weights."""
    base, weights = tiny_transformer(seed)
    return BlockDiffusion(base, mask_id=base.vocab_size - 1, **options), weights.replace(norm=weights.norm * 3.0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Maskless(BlockDiffusion):
    """A denoiser without a mask token: it is shown whatever stands at positions that are not committed."""

    mask_id: None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        """There is no mask token to be looked at."""


def tiny_maskless(seed: int = 1) -> tuple[Maskless, PyTree]:
    """A random transformer as a denoiser of noise, and its weights."""
    base, weights = tiny_transformer(seed)
    return Maskless(base), weights.replace(norm=weights.norm * 3.0)


def tiny_of_both(seed: int = 1) -> tuple[NemotronDiffusion, PyTree]:
    """A random model of both engines on one causal cache, with blocks of `BLOCK`, and its weights."""
    base, weights = tiny_transformer(seed)
    return NemotronDiffusion(base, mask_id=base.vocab_size - 1, block=BLOCK), weights.replace(norm=weights.norm * 3.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method on one model, and what was handed in with it: enough to run any law of the row it came from."""

    method: Any
    """A `Method`; or a function from the right texts ("B S") of a trial to one, for a drafter that knows them."""
    model: Any
    params: dict[str, PyTree]
    per_row: bool = False
    """Whether it holds something for each row, so that rows cannot change places."""


def sample_components(row: System, model: Model | Denoiser, weights: PyTree) -> dict[str, Component]:
    """Random components of the kinds that a row needs: a draft model that is mostly right, heads, a filter."""
    found: dict[str, Component] = {}
    if "draft" in row.needs:
        found["draft"] = Component(model, shaken(weights))
    if "heads" in row.needs:
        found["heads"] = _heads(model, weights)
    if "filter" in row.needs:
        network = ConfidenceFilter(BLOCK, 6)
        found["filter"] = Component(network, drawn(network.specs(), 3))
    return found


def _heads(model: Any, weights: PyTree) -> Component:
    """Two Medusa heads that repeat the model's own guess; of a model that has no vocabulary head, with their own."""
    hidden = jax.eval_shape(lambda: model.forward(weights, jnp.zeros((1, 2), jnp.int32)).hidden)
    tree, width = best_first(0.5 ** np.indices((2, 24)).sum(0), 40), hidden.shape[-1]
    heads = MedusaHeads(num_heads=2, width=width, vocab_size=0 if hasattr(model, "unembed") else model.vocab_size)
    return Component((heads, tree), DraftHeads(drawn(heads.specs(), 5)))


def shaken(weights: PyTree, by: float = 0.02) -> PyTree:
    """The weights, each leaf a little off."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + np.asarray(rng.normal(scale=by * np.std(x), size=x.shape), x.dtype), weights)


def check_method(
    method: str | System | Part,
    *,
    options: Mapping[str, Any] | None = None,
    only: str | None = None,
    **settings: Any,
) -> list[str]:
    """Put a method through the shared laws, on tiny models of every kind it is for; returns what was run.

    `method` is a name, a row, or an object: a drafter, an accept rule, an unmasking rule. `options` and `settings` are
    those of `composition.compose`; `only` names one model of `PREFIX_TARGETS` or `CANVAS_TARGETS`. Raises
    `AssertionError` with the law and the model in its sentence.
    """
    ran = []
    row = _row(method)
    canvas = row.slot not in PREFIX.slots
    for name, make in (CANVAS_TARGETS if canvas else PREFIX_TARGETS).items():
        if only not in (None, name):
            continue
        given = row if isinstance(method, (str, System)) else method
        trial = trial_of(given, *make(), options=options or {}, **settings)
        for law in row.laws:
            try:
                run_law(law, trial)
            except AssertionError as error:
                raise AssertionError(f"law {law!r} on the {name} model: {error}") from error
            ran.append(f"{law} on {name}")
    return ran


def _row(method: str | System | Part) -> System:
    if isinstance(method, str):
        return catalog.find(method)
    return catalog.add(method, "this process") if isinstance(method, System) else catalog.row_for(method)


def trial_of(
    given: System | Any, model: Any, weights: PyTree, *, options: Mapping[str, Any], partner: str = "", **settings: Any
) -> Case:
    """A row or an object as a method for one model. `partner` is joined to a row that does not stand alone.

    Raises what `composition.compose` raises.
    """
    eos = (-1, -2) if "prefix" in model.kinds else ()
    if not isinstance(given, System):
        method = composition.around(model, given, eos=eos, **settings)
        return Case(method, model, {"target": weights})
    components = sample_components(given, model, weights)
    eos = (3,) if "eos" in given.needs else eos
    names = "+".join(filter(None, (given.name, partner)))
    method = composition.compose(model, names, options, eos=eos, components=components, **settings)
    return Case(method, model, {"target": weights} | {name: part.params for name, part in components.items()})


def run_law(law: str, trial: Case) -> None:
    """One of `system.LAWS`, on one method and model. Raises `AssertionError`."""
    prefix = "prefix" in trial.model.kinds and _kind(trial) == PREFIX.kind
    (_prefix if prefix else _canvas)(law, trial)


def _kind(trial: Case) -> str:
    return trial.method.kind if isinstance(trial.method, Method) else PREFIX.kind


def _prefix(law: str, trial: Case) -> None:
    model, method, params = trial.model, trial.method, trial.params
    prompt = ragged_prompts(1, model.vocab_size, width=SLOTS)
    if law in ("exact", "greedy"):
        states = laws.exactness(model, params, method, prompt, sampled=law == "exact")
        if model.vocab_size > 12:
            laws.varied(states["greedy"])
        return
    if not isinstance(method, Method):
        plain = speculative(model, catalog.find("ar").make(), eos=(-1, -2))
        method = method(laws.decode(params, plain, prompt).tokens)
    match law:
        case "rows":
            laws.rows(params, method, prompt, permute=not trial.per_row)
        case "loops":
            laws.loops(params, method, prompt)
        case "law":
            chi_square(method)
        case _:
            raise ValueError(f"The law {law!r} is none of the prefix engine.")


def chi_square(method: Any) -> None:
    """The accept rule of a method, on drafts of another table over four tokens: its texts follow the target's law."""
    model, weights = tiny_table()
    rule = method.accept
    drafter = catalog.find("draft_model").make(model, model, rule, num_draft=2)
    tried = speculative(model, drafter, accept=rule, eos=(-1,))
    params = {"target": weights, "draft": tiny_table(1)[1]}
    laws.chi_square(model, params, tried, [1, 3], how=sampling(1, temperature=1.0))


def _canvas(law: str, trial: Case) -> None:
    method, params = trial.method, trial.params
    prompt = canvas_laws.prompts(trial.model.vocab_size - 1)
    match law:
        case "trace" | "budget":
            state = canvas_laws.decode(method, params, prompt)
            getattr(canvas_laws, law)(method, prompt, state)
        case "rows":
            canvas_laws.rows(method, params, prompt, permute=not trial.per_row)
        case "loops":
            canvas_laws.loops(method, params, prompt)
        case "base":
            canvas_laws.texts_of_base(method, params, prompt)
        case _:
            raise ValueError(f"The law {law!r} is none of the canvas engine.")


def check_model(model: Model, params: PyTree, *, trees: bool = True) -> list[str]:
    """Put a model that continues a text through the laws of models and of plain decoding; returns what was run.

    Any ragged split of a text into `extend` and `commit` calls is one `forward`, on chains and, unless told otherwise,
    on trees; a refused draft leaves no trace; rows computed on a pending delta are rows computed at once; plain
    decoding returns what `forward` says. Raises `AssertionError` with the sentence of the law that fails.
    """
    token = jnp.asarray(np.random.default_rng(0).integers(model.vocab_size, size=(3, 60)), jnp.int32)
    ran = ["cache, chains", "untouched", "pending", "exact"]
    model_laws.cache(model, params, token, model_laws.plan(0, calls=8, batch=3, most=5, nodes=9), chain=True)
    if trees:
        model_laws.cache(model, params, token, model_laws.plan(1, calls=8, batch=3, most=5, nodes=9), chain=False)
        ran.insert(1, "cache, trees")
    model_laws.untouched(model, params, token)
    model_laws.pending(model, params, token, None)
    plain = speculative(model, catalog.find("ar").make(), eos=(-1, -2))
    laws.exactness(model, {"target": params}, plain, ragged_prompts(1, model.vocab_size, width=SLOTS))
    return ran
