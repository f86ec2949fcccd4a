"""A fixed number of positions a call: the schedule of LLaDA, and what every adaptive rule is compared with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int32, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import SCORES, View, count, rank
from paradec.system import RULE, System


@struct.dataclass
class Quota(Select):
    """Commits the `per_call` best positions, or, with `steps` above 0, spreads each block evenly over so many calls.

    Of n masks step s of S commits n // S, and one more if s < n mod S (LLaDA, arXiv 2502.09992, "low-confidence
    remasking"). `score` is one of `view.SCORES`; "random" is LLaDA's random order, "margin" and "entropy" are Dream's.
    With S `steps` it also is vLLM's `low_confidence` policy for Nemotron-Labs-Diffusion, and with `score` "position"
    its `leftmost`: of M masks with r steps left they commit ceil(M / r), which comes to the same numbers. One position
    a call is static decoding.
    """

    per_call: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(1))
    steps: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(0))
    score: str = struct.field(pytree_node=False, default="probability")

    @classmethod
    def of(cls, per_call: int = 1, steps: int = 0, score: str = "probability") -> Quota:
        """A quota from plain numbers. Raises `ValueError` for an unknown score or a count below 1."""
        if score not in SCORES or per_call < 1 or steps < 0:
            raise ValueError(f"per_call is 1 or more, steps 0 (off) or more, score one of {', '.join(SCORES)}.")
        return cls(jnp.int32(per_call), jnp.int32(steps), score)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """The block's masks when it opened, and the calls it has had."""
        return jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        masks = jnp.where(view.fresh, count(view.eligible), carry[0])
        step = jnp.where(view.fresh, 0, carry[1])
        steps = jnp.maximum(self.steps, 1)
        share = masks // steps + (step < masks % steps).astype(jnp.int32)
        k = jnp.where(self.steps > 0, share, self.per_call)
        accept = rank(view.order(self.score), view.eligible) < k[:, None]
        return Choice(accept, carry=(masks, step + 1))


SYSTEMS = (System(
    name="quota", title="LLaDA: a schedule of confidence", slot="select", arxiv="2502.09992", make=Quota.of,
    laws=RULE,
    meanings={"per_call": "positions committed a call",
        "steps": "calls that a block is spread over; 0: per_call counts",
        "score": "what orders positions: probability, margin, entropy or random"},
    cost="None beside the call.", proof="pytest tests/decode/test_originals.py -k quota",
),)  # fmt: skip
