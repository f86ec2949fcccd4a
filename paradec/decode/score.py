"""What a model makes of a text that is there already: the law of each token given those before it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from paradec.decode.logprobs import noted, room
from paradec.types import Logprobs, Model, Prompt, Rows


@partial(jax.jit, static_argnames=("best", "chunk"))
def score(model: Model, params: PyTree, text: Prompt, *, best: int = 0, chunk: int = 256) -> Logprobs:
    """Log-probabilities of every token but the first, and of the `best` likeliest in its place.

    The text is read `chunk` tokens a call, as a prompt is, so that memory is bounded by the chunk. `model` continues
    texts: it has no other law to ask than that of the next token.
    """
    B, S = text.token.shape

    def some(_: Array | int, so_far: tuple[PyTree, Logprobs]) -> tuple[PyTree, Logprobs]:
        cache, kept = so_far
        i = cache.length[:, None] + lax.iota(jnp.int32, chunk + 1)[None]
        token = jnp.take_along_axis(text.token, jnp.minimum(i, S - 1), axis=1)
        count = jnp.clip(text.length - 1 - cache.length, 0, chunk)
        out, delta = model.extend(params, cache, Rows.chain(token[:, :-1]), live=count > 0)
        at = jnp.where(i[:, 1:] < text.length[:, None], i[:, 1:], S)
        return model.commit(cache, delta, None, count), noted(kept, out.logits, token[:, 1:], at)

    calls = (jnp.max(text.length) + chunk - 2) // chunk
    return lax.fori_loop(0, calls, some, (model.init_cache(B, S), room(B, S, best)))[1]
