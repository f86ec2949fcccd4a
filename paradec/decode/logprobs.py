"""Log-probabilities of the committed tokens: both engines note them in the call that commits a token, and add no
call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from paradec.types import Logprobs


def room(batch: int, slots: int, best: int) -> Logprobs:
    """Where those of a whole canvas are kept; NaN where nothing is committed, the prompt included."""
    none = jnp.full((batch, slots, 1 + best), jnp.nan, jnp.float32)
    return Logprobs(token=none[..., 0], best=jnp.zeros((batch, slots, best), jnp.int32), value=none[..., 1:])


def noted(kept: Logprobs, logits: Float[Array, "B P V"], token: Int[Array, "B P"], at: Int[Array, "B P"]) -> Logprobs:
    """`kept`, with what `logits` say of `token` and of the likeliest ones written at slots `at`.

    Slots past the end are left out. Of two columns P with `at` = (6, S) the first is written to slot 6, the second
    nowhere: that is how callers name what was not committed.
    """
    law = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    value, best = lax.top_k(law, kept.best.shape[-1])
    put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
    return Logprobs(
        token=put(kept.token, at, jnp.take_along_axis(law, token[..., None], axis=-1)[..., 0]),
        best=put(kept.best, at, best.astype(jnp.int32)),
        value=put(kept.value, at, value),
    )
