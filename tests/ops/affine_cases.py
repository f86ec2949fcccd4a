"""Affine recurrences for tests: data whose maps contract, and the plain loop that every form is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KINDS = ("diagonal", "block", "dense")


def inputs(kind, T=11, seed=0):
    """`a`, `b` and `h0` of two rows; for "diagonal" a factor is shared by two states, in a block one by both rows."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    factor = lambda *shape: jnp.tanh(normal(*shape)) / 2
    if kind == "diagonal":
        return 2 * factor(T, 2, 3), normal(T, 2, 3, 2), normal(2, 3, 2)
    if kind == "dense":
        return factor(T, 2, 3, 3), normal(T, 2, 3), normal(2, 3)
    a = tuple(tuple(factor(T, 1, 3) if i == j else factor(T, 2, 3) for j in range(2)) for i in range(2))
    return a, (normal(T, 2, 3), normal(T, 2, 3)), (normal(2, 3), normal(2, 3))


def times(kind, a, h):
    """`A h`, written once more."""
    if kind == "diagonal":
        return a.reshape(a.shape + (1,) * (h.ndim - a.ndim)) * h
    if kind == "dense":
        return (a * h[..., None, :]).sum(-1)
    wide = lambda x, h: x.reshape(x.shape + (1,) * (h.ndim - x.ndim)) * h
    return tuple(sum(wide(x, y) for x, y in zip(row, h, strict=True)) for row in a)


def loop(kind, reverse, a, b, h0):
    """The reference, which jax differentiates itself."""

    def step(h, ab):
        h = jax.tree.map(jnp.add, times(kind, ab[0], h), ab[1])
        return h, h

    return lax.scan(step, h0, (a, b), reverse=reverse)[1]


def with_gradients(scan, args):
    """States, and the gradients of a function of all of them."""
    h, pull = jax.vjp(scan, *args)
    return h, pull(jax.tree.map(lambda x: jnp.cos(3 * x), h))


def assert_close(got, want, tolerance=1e-5):
    """Leaf by leaf, absolutely and relatively."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
