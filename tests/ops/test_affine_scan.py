"""The affine scan in all its forms against a plain loop that jax differentiates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from paradec.ops.scan import affine_scan

PARALLEL = ("associative", "lanes", "chunk")
KINDS = ("diagonal", "block", "dense")
T = 11


def inputs(kind, T=T, seed=0, scale=0.5):
    """Contracting maps and their data: for "diagonal" one factor for a row of two states."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    factor = lambda *shape: scale * jnp.tanh(normal(*shape))
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
    return tuple(a[i][0] * h[0] + a[i][1] * h[1] for i in range(2))


def loop(kind, reverse, a, b, h0):
    def step(h, ab):
        h = jax.tree.map(jnp.add, times(kind, ab[0], h), ab[1])
        return h, h

    return lax.scan(step, h0, (a, b), reverse=reverse)[1]


def with_gradients(scan, args):
    """States, and the gradients of a function of all of them."""
    h, pull = jax.vjp(scan, *args)
    return h, pull(jax.tree.map(lambda x: jnp.cos(3 * x), h))


@functools.cache
def program(kind, implementation, reverse):
    """Compiled once for each shape; "loop" is the reference."""
    scan = functools.partial(affine_scan, kind=kind, reverse=reverse, implementation=implementation, chunk=4)
    scan = functools.partial(loop, kind, reverse) if implementation == "loop" else scan
    return jax.jit(lambda *args: with_gradients(scan, args))


def assert_close(got, want, tolerance=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("implementation", ["sequential", *PARALLEL])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_equals_the_loop_in_values_and_gradients(kind, implementation, reverse):
    args = inputs(kind)
    assert_close(program(kind, implementation, reverse)(*args), program(kind, "loop", reverse)(*args))
