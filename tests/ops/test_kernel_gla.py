"""Gated linear attention by kernel, interpreted: against the recurrence, at every strength of the gate."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from paradec.ops.kernels import gla
from paradec.ops.kernels.gla import GlaForm
from tests.ops.kernels import agree, random


def naive(q, k, v, g, state):
    """Row by row, as the paper defines it; scale 1/2."""

    def row(S, x):
        q, k, v, g = x
        S = jnp.exp(g)[..., None] * S + k[..., None] * v[..., None, :]
        return S, 0.5 * jnp.einsum("bhk,bhkv->bhv", q, S)

    rows = tuple(jnp.moveaxis(x, 1, 0).astype(jnp.float32) for x in (q, k, v, g))
    state, o = lax.scan(row, state, rows)
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def inputs(B, T, H, K, V, normaliser, dtype=jnp.float32):
    q, k, v = (random((B, T, H, n), dtype, seed) for seed, n in enumerate((K, K, V)))
    g = jax.nn.log_sigmoid(random((B, T, H, K), seed=3)) / normaliser
    return q, k, v, g, random((B, H, K, V), seed=4)


# Chunks of 16 in sub-blocks of 8, blocks of 32 rows: 70 and 37 rows are three and two blocks, the last not full.
SMALL = dict(scale=0.5, chunk=16, sub_chunk=8)
BLOCKS = {"tpu": (("rows", 32),), "gpu": (("state", 256), ("warps", 1), ("stages", 1))}
CASES = {
    "heads apart": ((2, 70, 2, 8, 12), 1.0, "float32", "tpu"),
    "strong gate": ((2, 70, 2, 8, 12), 0.1, "float32", "tpu"),
    "heads side by side, bfloat16": ((1, 37, 2, 128, 128), 16.0, "bfloat16", "tpu"),
    "on a GPU": ((1, 37, 2, 16, 48), 16.0, "float32", "gpu"),
    "on a GPU, strong gate": ((1, 37, 2, 16, 48), 0.1, "float32", "gpu"),
}


@cache
def kernel(platform):
    return lambda *x: gla.attend(*x, GlaForm(platform=platform, blocks=BLOCKS[platform], **SMALL))


@pytest.mark.parametrize(("sizes", "normaliser", "dtype", "platform"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_recurrence(sizes, normaliser, dtype, platform):
    agree(kernel(platform), naive, *inputs(*sizes, normaliser, jnp.dtype(dtype)), rtol=1e-5)
