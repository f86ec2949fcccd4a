"""DiffusionGemma's loop: a canvas of uniform noise, drawn anew in every call and written when it no longer changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.decode.sampling import NEXT, NOISE, gumbel, integers
from paradec.decode.seams import Choice, Select
from paradec.decode.unmasking.eb import bounded
from paradec.decode.view import View, count
from paradec.ops.argmax import argmax
from paradec.system import RULE, System


@struct.dataclass
class Past:
    """What the rule keeps of an open block."""

    step: Int32[Array, "B"]  # calls that the block has had
    guess: Int32[Array, "B N W"]  # the likeliest tokens of its last N calls, -1 before the first


@struct.dataclass
class Renoise(Select):
    """Denoises a block from uniform noise, and commits all of it at once.

    A call's logits are divided by a temperature that falls evenly from `t_max` in the block's first call towards
    `t_min`. Every position draws a token. The entropy-bounded prefix (`eb`, at most `gamma` nats without the greatest)
    shows it to the next call; all other positions show a token drawn uniformly from the vocabulary, also those that
    kept theirs before. The block ends after `steps` calls, or when the likeliest tokens are those of the last
    `stability` calls too and the mean entropy lies below `confidence` nats. What is written are the likeliest tokens,
    not the drawn ones.

    Source: the generation code of DiffusionGemma in transformers 5.24; the bound is EB-sampler's, arXiv 2505.24857.
    There is no paper. The temperature of a request is not read, since the rule has its own. Draws are keyed by row,
    position and the row's own number of calls, so that a row does not depend on its batch. A row's mean is taken over
    positions below its limit.
    """

    idles = True  # nothing is committed before the block ends
    noisy = True
    heated = True

    gamma: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.1))
    confidence: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.005))
    t_min: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.4))
    t_max: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.8))
    steps: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(48))
    stability: int = struct.field(pytree_node=False, default=1)

    @classmethod
    def of(
        cls,
        steps: int = 48,
        gamma: float = 0.1,
        t_min: float = 0.4,
        t_max: float = 0.8,
        stability: int = 1,
        confidence: float = 0.005,
    ) -> Renoise:
        """The rule from plain numbers. Raises `ValueError` for numbers out of range."""
        if steps < 1 or not 0 <= stability <= 64:
            raise ValueError(f"renoise wants steps >= 1 and a stability of 0 to 64; {steps}, {stability} were given.")
        if not (t_min >= 0 and t_max > 0 and gamma >= 0 and confidence >= 0):
            raise ValueError(
                "renoise wants t_min, gamma and confidence of 0 or more and t_max above 0; "
                f"{t_min}, {gamma}, {confidence} and {t_max} were given."
            )
        heat = jnp.float32(t_min), jnp.float32(t_max)
        return cls(jnp.float32(gamma), jnp.float32(confidence), *heat, jnp.int32(steps), stability)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Nothing kept yet."""
        guess = jnp.full((batch, self.stability, window), -1, jnp.int32)
        return Past(step=jnp.zeros(batch, jnp.int32), guess=guess)

    def most_calls(self, positions: int, blocks: int) -> int:
        return blocks * int(self.steps)

    def noise(self, key: jax.Array, position: Int[Array, "B M"], vocab: int) -> Int32[Array, "B M"]:
        """Uniform tokens: what open positions begin with, and what renoised ones show."""
        return integers(key, position, vocab, NOISE)

    def heat(self, carry: Past, fresh: Bool[Array, "B"]) -> Float[Array, "B"]:
        """The temperature of the block's next call: `t_max` first, `t_min + (t_max - t_min) / steps` last."""
        left = (self.steps - jnp.where(fresh, 0, carry.step)).astype(jnp.float32)
        return self.t_min + (self.t_max - self.t_min) * (left / self.steps.astype(jnp.float32))

    def __call__(self, view: View, carry: Past) -> Choice:
        fresh = view.fresh
        step, past = jnp.where(fresh, 0, carry.step), jnp.where(fresh[:, None, None], -1, carry.guess)
        law = view.logits / self.heat(carry, fresh)[:, None, None]
        nats, guess = view.replace(law=law).entropy, argmax(view.logits)
        key = jax.vmap(jax.random.fold_in)(view.key, view.turn + 1)
        drawn = argmax(law + gumbel(key, view.position, law.shape[-1], NEXT))
        noise = self.noise(key, view.position, law.shape[-1])
        shown = jnp.where(bounded(nats, view.eligible, self.gamma), drawn, noise)
        same = jnp.all((past == guess[:, None]) | ~view.eligible[:, None], axis=(1, 2))
        size = jnp.maximum(count(view.eligible), 1).astype(jnp.float32)
        mean = jnp.sum(jnp.where(view.eligible, nats, 0.0), axis=-1) / size
        ends = (same & (mean < self.confidence)) | (step + 1 >= self.steps)
        past = jnp.concatenate([past, guess[:, None]], axis=1)[:, 1:]
        return Choice(view.eligible & ends[:, None], Past(step + 1, past), token=guess, noise=shown)


SYSTEMS = (System(
    name="renoise", title="DiffusionGemma: noise drawn anew", slot="select", make=Renoise.of, laws=RULE,
    meanings={"steps": "calls of a block at most", "gamma": "bound on the entropies of what is shown, in nats",
        "t_min": "temperature that the last call comes near", "t_max": "temperature of a block's first call",
        "stability": "calls before whose likeliest tokens must be the same",
        "confidence": "mean entropy, in nats, below which a stable block ends"},
    cost="None beside the call; blocks are committed whole, so a block takes up to `steps` calls.",
    proof="pytest tests/decode/test_renoise.py",
),)  # fmt: skip
