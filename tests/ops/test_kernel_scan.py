"""Affine scans by kernel, interpreted: against `lax.scan`, in both directions, with every type, block and border."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from paradec.ops.kernels import affine, scan
from paradec.ops.kernels.affine import AffineForm
from tests.ops.kernels import agree, random


def plain(a, b, h0, reverse=False):
    """What the definition says, by `lax.scan`."""

    def step(h, ab):
        A, x = ab
        h = tuple(sum(A[i][j] * h[j] for j in range(len(h))) + x[i] for i in range(len(h)))
        return h, h

    a, b, h0 = jax.tree.map(lambda x: x.astype(jnp.float32), (a, b, h0))
    return lax.scan(step, h0, (a, b), reverse=reverse)[1]


def inputs(k, shape, dtype=jnp.float32):
    a = tuple(tuple(random(shape, dtype, i * k + j, 0.5) for j in range(k)) for i in range(k))
    return (
        a,
        tuple(random(shape, dtype, 20 + i) for i in range(k)),
        tuple(random(shape[1:], seed=30 + i) for i in range(k)),
    )


SMALL = (("time", 8), ("cells", 128), ("warps", 1), ("stages", 1))
# A chunk of 8 rows (16 of bfloat16), so 19 and 21 steps are three chunks (two), the last not full.
CASES = {
    "diagonal": (1, (19, 3), "float32", False, "tpu"),
    "diagonal, reversed": (1, (19, 130), "float32", True, "tpu"),
    "diagonal, a batch, bfloat16, reversed": (1, (21, 2, 3), "bfloat16", True, "tpu"),
    "diagonal, more rows than a tile": (1, (9, 10, 3), "float32", False, "tpu"),
    "diagonal, shorter than a tile": (1, (1, 3), "float32", True, "tpu"),
    "2 x 2": (2, (19, 3), "float32", False, "tpu"),
    "2 x 2, a batch, bfloat16, reversed": (2, (17, 2, 3), "bfloat16", True, "tpu"),
    "diagonal on a GPU, bfloat16": (1, (5, 130), "bfloat16", False, "gpu"),
    "2 x 2 on a GPU, reversed": (2, (5, 2, 3), "float32", True, "gpu"),
}


@pytest.mark.parametrize(("k", "shape", "dtype", "reverse", "platform"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_sequential_scan(k, shape, dtype, reverse, platform):
    form = AffineForm(reverse, platform=platform, blocks=SMALL)
    kernel = lambda a, b, h0: affine.scan(a, b, h0, form)
    agree(kernel, partial(plain, reverse=reverse), *inputs(k, shape, jnp.dtype(dtype)))


def test_the_adjoint_has_an_adjoint():
    """Reverse over reverse: the delayed form's own rule, which no first derivative runs."""
    a, b, h0 = inputs(1, (11, 3))
    form = AffineForm(platform="tpu", blocks=SMALL)

    def twice(f):
        first = jax.grad(lambda a, b, h0: jnp.sum(jnp.sin(f(a, b, h0)[0])), argnums=(0, 1, 2))
        return lambda *x: first(*x)

    agree(twice(lambda a, b, h0: affine.scan(a, b, h0, form)), twice(plain), a, b, h0, rtol=1e-5)


def test_the_entry_broadcasts_and_starts_from_zero():
    a, b = random((5, 2), scale=0.5), random((5, 2, 3), seed=1)
    want = plain(((a[..., None] + jnp.zeros((1, 1, 3)),),), (b,), (jnp.zeros((2, 3)),))[0]
    np.testing.assert_allclose(scan.diagonal(a, b), want, rtol=1e-6, atol=1e-6)
    blocks = inputs(2, (5, 3))[:2]
    want = plain(*blocks, (jnp.zeros(3),) * 2, reverse=True)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), scan.block(*blocks, None, True), want
    )


def test_refusals_are_sentences():
    assert affine.refusal((2048, 8, 512), 2, "tpu") is None
    assert affine.refusal((2048, 8, 512), 1, "gpu") is None
    assert "dense" in affine.refusal((8, 4), 5, "tpu")
    assert "no empty arrays" in affine.refusal((0, 4), 1, "tpu")
    assert "rocm" in affine.refusal((8, 4), 1, "rocm")
