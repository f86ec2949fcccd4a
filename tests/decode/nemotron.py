"""Tiny models of both kinds, and what a dense mask says of them: shared by the tests of Nemotron-Labs-Diffusion."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.models.transformer import Transformer
from paradec.ops.mask import Given
from paradec.ops.rope import Rope
from paradec.testing.tiny import drawn, tiny_transformer
from paradec.types import Rows

ROPE = Rope(1e4, "yarn", factor=4.0, original_length=8, attention_factor=1.0, query_beta=0.5)  # grows in every block


@cache
def nemotron(block=4, vocab=97, seed=1, kind=Transformer, model=NemotronDiffusion):
    """A model whose mask token is the last one, sharp enough that confidences vary, and its parameters."""
    plain, _ = tiny_transformer(vocab_size=vocab, rope=ROPE)
    base = kind(**{f: getattr(plain, f) for f in plain.__dataclass_fields__})
    weights = drawn(base.specs(), seed)
    return model(base, mask_id=vocab - 1, block=block), {"target": weights.replace(norm=weights.norm * 3.0)}


@partial(jax.jit, static_argnums=0)
def dense(model, params, token, start, end):
    """Logits of whole texts in one pass, float32 "B S V": causal before `start`, and rows from there to `end` see each
    other.

    Nothing of cache, place or policy is in it. What it says of positions from `end` on means nothing.
    """
    at = jnp.arange(token.shape[1])
    causal = at[None, None] <= at[None, :, None]
    see = causal | (at[None, :, None] >= start[:, None, None]) & (at[None, None] < end[:, None, None])
    return model.forward(params["target"], token, mask=Given(see)).logits


@partial(jax.jit, static_argnums=(0, 4))
def prefill(model, params, token, count, slots):
    """The cache of the first `count` tokens of each row, read causally in one call."""
    empty = model.init_cache(token.shape[0], slots)
    _, delta = model.extend(params["target"], empty, Rows.chain(token))
    return model.commit(empty, delta, None, count)


def same_cache(a, b, atol=1e-5):
    """Both caches hold the same keys and values in the slots that are in use."""
    np.testing.assert_array_equal(a.length, b.length)
    for row, n in enumerate(np.asarray(a.length)):
        for x, y in ((a.k, b.k), (a.v, b.v)):
            np.testing.assert_allclose(x[:, row, :, :n], y[:, row, :, :n], atol=atol, err_msg=f"row {row}")
