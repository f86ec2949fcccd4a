"""Dream's schedule: how many positions a call commits follows from a grid of noise levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

from paradec import struct
from paradec.decode.sampling import ORDER, uniform
from paradec.decode.seams import Choice, Select
from paradec.decode.view import SCORES, View, count, rank
from paradec.system import RULE, System


@struct.dataclass
class TimeGrid(Select):
    """Between noise t and s a share 1 - s / t of the masks is committed; t falls evenly from 1 to `eps` in `steps`
    calls.

    With `score` "origin" each mask is committed or not on its own, so that tokens sampled at temperature 1 are those of
    the reverse process of masked diffusion (D3PM, MDLM; Dream 7B, arXiv 2508.15487). One uniform number a position is
    enough for that: it is committed when the noise falls below it. With a score of `view.SCORES` it is the most
    confident ones, their number cut to an integer as published (with as many steps as masks the first call commits none
    and the last two), or rounded with `whole`; `heat` above 0 draws them in proportion to exp(score / heat) instead
    (Dream's alg_temp). The last call commits the rest. A block starts the grid anew; Dream itself has no blocks.
    """

    idles = True  # a call may commit nothing: the engine lets it
    temper_confidence = True  # Dream reads its scores after temperature and filters

    steps: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(32))
    eps: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(1e-3))
    heat: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.0))
    score: str = struct.field(pytree_node=False, default="origin")
    whole: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(
        cls, steps: int = 32, score: str = "origin", eps: float = 1e-3, heat: float = 0.0, whole: bool = False
    ) -> TimeGrid:
        """The rule from plain numbers. Raises `ValueError` for an unknown score and numbers out of range."""
        if score not in ("origin", *SCORES):
            raise ValueError(f"time_grid's score is origin, {', '.join(SCORES)}; {score!r} was given.")
        if steps < 1 or not 0 < eps < 1 or not heat >= 0:
            raise ValueError(f"time_grid wants steps >= 1, 0 < eps < 1, heat >= 0; {steps}, {eps}, {heat} were given.")
        return cls(jnp.int32(steps), jnp.float32(eps), jnp.float32(heat), score, whole)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Calls that the block has had."""
        return jnp.zeros(batch, jnp.int32)

    def most_calls(self, positions: int, blocks: int) -> int:
        return blocks * int(self.steps)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        step = jnp.where(view.fresh, 0, carry)
        last = (step >= self.steps - 1)[:, None]
        if self.score == "origin":
            after = 1 - (1 - self.eps) * (step + 1).astype(jnp.float32) / self.steps.astype(jnp.float32)
            chosen = uniform(view.key, view.position, ORDER) >= after[:, None]
        else:
            chosen = rank(self._heated(view), view.eligible) < self._share(view, step)[:, None]
        return Choice(view.eligible & (chosen | last), carry=step + 1)

    def _share(self, view: View, step: Int32[Array, "B"]) -> Int32[Array, "B"]:
        """m (1 - s / t), with t and s written out so that float32 is enough."""
        whole, gone = self.steps.astype(jnp.float32), step.astype(jnp.float32)
        share = count(view.eligible).astype(jnp.float32) * (1 - self.eps) / (whole - (1 - self.eps) * gone)
        return (jnp.round(share) if self.whole else jnp.floor(share)).astype(jnp.int32)

    def _heated(self, view: View) -> Float[Array, "B W"]:
        key = jax.vmap(jax.random.fold_in)(view.key, view.turn)
        noise = -jnp.log(-jnp.log(jnp.clip(uniform(key, view.position, ORDER), 1e-20, 1 - 1e-7)))
        hot = view.score(self.score) / jnp.maximum(self.heat, 1e-20) + noise
        return jnp.where(self.heat > 0, hot, view.order(self.score))


SYSTEMS = (System(
    name="time_grid", title="Dream: a grid of noise levels", slot="select", arxiv="2508.15487", make=TimeGrid.of,
    laws=RULE,
    meanings={"steps": "calls that a block takes",
        "score": "origin: each mask on its own; else what orders them: probability, margin, entropy, random",
        "eps": "the last noise level", "heat": "above 0 positions are drawn in proportion to exp(score / heat)",
        "whole": "round the share instead of cutting it"},
    cost="None beside the call.", proof="pytest tests/decode/test_unmasking.py -k grid",
),)  # fmt: skip
