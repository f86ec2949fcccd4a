"""KLASS: sure, and no longer changing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, as_threshold
from paradec.system import RULE, System


@struct.dataclass
class Klass(Select):
    """Commits positions of confidence above `tau` whose law moved by less than `kl` nats in each of the last
    `history` calls, `KL(now || before)`; with none, the most confident (arXiv 2511.05664).

    As published, the laws are followed on the whole canvas, so a block may open with positions that are stable already,
    and no block commits by this before its call number `history`. Deviations: the first call of all is compared with
    nothing (published: with zeros, a distance of 27 nats); under a cache, and for a block-causal model, which judge a
    position in its own block only, a block's history begins with the block; at temperature above 0 the laws are the
    model's own (published: after the noise).
    """

    remembers = True
    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    kl: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.01))
    history: int = struct.field(pytree_node=False, default=2)

    @classmethod
    def of(cls, tau: float = 0.9, kl: float = 0.01, history: int = 2) -> Klass:
        """The rule from plain numbers. Raises `ValueError` for a history below 1."""
        if history < 1:
            raise ValueError(f"klass wants a history of 1 call or more; {history} was given.")
        return cls(as_threshold(tau), jnp.float32(kl), history)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """The log laws of the call before, where they stood, for how many calls in a row each position was stable, and
        the calls that the block has had."""
        calm, nowhere = jnp.zeros((batch, window), jnp.int32), jnp.full((batch, window), -1, jnp.int32)
        return jnp.zeros((batch, window, vocab), jnp.float32), nowhere, calm, jnp.zeros(batch, jnp.int32)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        before, position, calm, step = carry
        step = jnp.where(view.fresh, 1, step + 1)
        now = jnp.maximum(jax.nn.log_softmax(view.logits, axis=-1), jnp.log(1e-12))
        moved = jnp.sum(jnp.exp(now) * (now - before), axis=-1)
        calm = jnp.where((view.position != position) | (moved >= self.kl), 0, calm + 1)
        stable = (calm >= self.history) & (step >= self.history)[:, None]
        return Choice(view.eligible & (view.confidence > self.tau) & stable, carry=(now, view.position, calm, step))


SYSTEMS = (System(
    name="klass", title="KLASS", slot="select", arxiv="2511.05664", make=Klass.of, laws=RULE,
    meanings={"tau": "confidence that is exceeded", "kl": "nats that a law may move between calls",
        "history": "calls in a row for which it must hold"},
    cost="One float a position and token.", proof="pytest tests/decode/test_published.py -k klass",
),)  # fmt: skip
