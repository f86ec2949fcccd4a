"""Learn2PD: a small network says which positions have their final token, and nothing behind the end is decoded."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree, Shaped

from paradec import struct
from paradec.decode.seams import Choice, Cut, Select
from paradec.decode.view import View, as_threshold, best
from paradec.models.heads import ConfidenceFilter, FilterWeights
from paradec.system import RULE, Component, System
from paradec.types import OPEN


@struct.dataclass
class LearnedFilter(Select):
    """Commits positions for which a filter of the block's confidences says more than `tau` (arXiv 2509.25188).

    The filter reads exactly one block, so blocks must be as long as its input. Committed positions show it the
    probability that the call gives their token (LLaDA's convention); places past the row's end show `ConfidenceFilter.
    BEYOND`, in training too. `tau` of 1 and more is one position a call.
    """

    weights: FilterWeights
    filter: ConfidenceFilter = struct.field(pytree_node=False)
    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.96))

    @classmethod
    def of(cls, filter: Component, tau: float = 0.96) -> LearnedFilter:
        """The rule with a trained filter and its weights."""
        return cls(filter.params, filter.structure, as_threshold(tau))

    @property
    def reads(self) -> int:
        """The block length it was trained for."""
        return self.filter.length

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = jax.nn.sigmoid(self.filter(self.weights, observed(view, self.filter.length))) > self.tau
        at = view.position - view.block_start[:, None]
        return Choice(view.eligible & jnp.take_along_axis(sure, jnp.clip(at, 0, self.filter.length - 1), axis=1))


def observed(view: View, length: int) -> Float[Array, "B L"]:
    """What a filter is shown: confidence where open, the probability of what stands there where committed."""
    log_p = jax.nn.log_softmax(view.logits, axis=-1)
    committed = jnp.exp(jnp.take_along_axis(log_p, view.current[..., None], axis=-1)[..., 0])
    shown = jnp.where(view.inside, jnp.where(view.open, view.confidence, committed), ConfidenceFilter.BEYOND)
    return of_block(view, shown, length, ConfidenceFilter.BEYOND)


def of_block(view: View, x: Shaped[Array, "B W"], length: int, beyond: float | bool) -> Shaped[Array, "B L"]:
    """The values at `length` positions from the block's first on, wherever the window begins; `beyond` outside it."""
    at = (view.block_start - view.position[:, 0])[:, None] + lax.iota(jnp.int32, length)[None]
    found = jnp.take_along_axis(x, jnp.clip(at, 0, x.shape[1] - 1), axis=1)
    return jnp.where((at >= 0) & (at < x.shape[1]), found, beyond)


@struct.dataclass
class EndOfText(Cut):
    """Learn2PD's end-of-text prediction: the row's limit falls to just behind a predicted end-of-text token.

    Where a call commits one, the first of them is the end. Where it does not, the most confident open position that
    proposes one is, if it is at least `tau` sure (the published rule has no threshold, 0: it can cut an answer short).
    The end itself is committed later, and need not become end-of-text. Deviation: `leftmost` takes the first such
    position, not the most confident.
    """

    eos: Int32[Array, "E"]
    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.0))
    leftmost: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, eos: Iterable[int], tau: float = 0.0, leftmost: bool = False) -> EndOfText:
        """The cut from plain numbers; `eos` are token ids. Raises `ValueError` without any."""
        if not (ids := sorted(eos)):
            raise ValueError("end_of_text needs end-of-text token ids: give eos.")
        return cls(jnp.asarray(ids, jnp.int32), as_threshold(tau), leftmost)

    def __call__(self, view: View, accept: Bool[Array, "B W"]) -> Int[Array, "B"]:
        """The new limit of each row, at most the old one."""
        says = view.open & jnp.isin(view.token, self.eos)
        sure = says & (view.confidence >= self.tau)
        pick = sure if self.leftmost else best(view.sure, sure)
        last = lambda mask: jnp.min(jnp.where(mask, view.position, OPEN - 1), axis=-1)
        chosen = accept & says
        end = jnp.where(chosen.any(-1), last(chosen), last(pick))
        return jnp.minimum(view.limit, end + 1)


SYSTEMS = (
    System(
        name="learned_filter", title="Learn2PD: learned filter", slot="select", arxiv="2509.25188",
        make=LearnedFilter.of, needs=("filter",), laws=RULE,
        meanings={"tau": "what the filter must exceed; 1 and more is one position a call"},
        cost="Two small matrix products a block.", proof="pytest tests/learn/test_learned_filter.py",
    ),
    System(
        name="end_of_text", title="Learn2PD: end-of-text prediction", slot="cut", arxiv="2509.25188",
        make=EndOfText.of, needs=("eos",), laws=RULE,
        meanings={
            "tau": "confidence that is enough where none is committed",
            "leftmost": "the first, not the most confident",
        },
        cost="Calls predict the whole canvas.", proof="pytest tests/decode/test_unmasking.py -k end_of_text",
    ),
)  # fmt: skip
