"""Prophet: the answer may be known before the text is."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from paradec import struct
from paradec.decode.seams import Stop
from paradec.decode.view import View
from paradec.system import RULE, System


@struct.dataclass
class Prophet(Stop):
    """Commits every open position at once when the answer's tokens are far enough ahead (arXiv 2508.19982).

    Far enough: the mean gap between the two best logits over `width` positions from `answer` on (counted from the
    prompt's end; negative: from the row's end) reaches `threshold`, whose three values hold while less than 33 %, less
    than 67 % and more of `steps` steps are made (0 steps: as many as the row has positions to fill). Gaps are in logit
    units of one model: recalibrate them for another.
    """

    threshold: Float[Array, "3"] = struct.field(default_factory=lambda: jnp.asarray([7.5, 5.0, 2.5], jnp.float32))
    answer: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(-5))
    width: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(5))
    steps: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(0))

    @classmethod
    def of(
        cls, early: float = 7.5, mid: float = 5.0, late: float = 2.5, answer: int = -5, width: int = 5, steps: int = 0
    ) -> Prophet:
        """The rule from plain numbers. Raises `ValueError` for an empty answer region."""
        if width < 1 or steps < 0:
            raise ValueError(f"prophet wants a width of 1 or more and steps of 0 or more; {width}, {steps} were given.")
        threshold = jnp.asarray([early, mid, late], jnp.float32)
        return cls(threshold, jnp.int32(answer), jnp.int32(width), jnp.int32(steps))

    def __call__(self, view: View) -> Bool[Array, "B"]:
        best = lax.top_k(view.logits, 2)[0]
        first = jnp.where(self.answer < 0, view.limit, view.prompt) + self.answer
        region = (view.position >= first[:, None]) & (view.position < first[:, None] + self.width)
        region &= (view.position >= view.prompt[:, None]) & (view.position < view.limit[:, None])
        size = jnp.sum(region, axis=-1)
        gap = jnp.sum(jnp.where(region, best[..., 0] - best[..., 1], 0.0), axis=-1)
        gap = gap / jnp.maximum(size, 1).astype(jnp.float32)
        steps = jnp.where(self.steps > 0, self.steps, view.limit - view.prompt)
        made = (view.turn + 1).astype(jnp.float32) / jnp.maximum(steps, 1).astype(jnp.float32)
        threshold = jnp.where(
            made < 0.33, self.threshold[0], jnp.where(made < 0.67, self.threshold[1], self.threshold[2])
        )
        return (gap >= threshold) & (size > 0)


SYSTEMS = (System(
    name="prophet", title="Prophet", slot="stop", arxiv="2508.19982", make=Prophet.of, laws=RULE,
    meanings={"early": "gap that is enough in the first third of the steps", "mid": "in the second third",
        "late": "in the last third",
        "answer": "where the answer begins: from the prompt's end, or negative from the row's end",
        "width": "its positions", "steps": "steps of a whole decode; 0: as many as there are positions"},
    cost="Calls predict the whole canvas.", proof="pytest tests/decode/test_unmasking.py -k prophet",
),)  # fmt: skip
