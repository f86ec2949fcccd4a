"""The diagonal affine scan against a Python loop: values and gradients, chains and trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.ops.scan import tree_scan

B, D = 2, 3


def inputs(n, seed=0):
    rng = np.random.default_rng(seed)
    a, b, h0 = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, n, D), (B, n, D), (B, D)))
    return jax.nn.sigmoid(2 * a), b, h0


def loop(a, b, parent, h0):
    """What the definition says; nodes are visited roots first."""
    rows = []
    for row in range(len(parent)):
        h = {}
        for n in sorted(range(len(parent[row])), key=lambda n: depth(parent[row], n)):
            above = h0[row] if parent[row][n] == n else h[parent[row][n]]
            h[n] = a[row, n] * above + b[row, n]
        rows.append(jnp.stack([h[n] for n in range(len(h))]))
    return jnp.stack(rows)


def depth(parent, n):
    return 0 if parent[n] == n else 1 + depth(parent, parent[n])


TREES = {
    "one node": [[0], [0]],
    "a chain and a star": [[0, 0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0, 0]],
    "two roots, unused nodes": [[0, 0, 1, 3, 3, 4, 6], [0, 1, 2, 0, 3, 4, 5]],
    "children before their parents": [[1, 2, 3, 4, 4, 4, 0], [6, 6, 0, 0, 2, 3, 6]],
}


@pytest.mark.parametrize("parent", TREES.values(), ids=TREES)
def test_tree_equals_the_loop_in_values_and_gradients(parent):
    args = inputs(len(parent[0]))
    got, pull = jax.vjp(jax.jit(lambda a, b, h0: tree_scan(a, b, jnp.asarray(parent), h0)), *args)
    want, pull_want = jax.vjp(jax.jit(lambda a, b, h0: loop(a, b, parent, h0)), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    push = jnp.cos(jnp.arange(got.size, dtype=got.dtype)).reshape(got.shape)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), pull(push), pull_want(push))


def test_a_chain_is_the_tree_whose_parents_are_left_neighbours():
    n = 9
    chain = [[max(i - 1, 0) for i in range(n)]] * B
    args = inputs(n)
    got, pull = jax.vjp(jax.jit(lambda a, b, h0: tree_scan(a, b, None, h0)), *args)
    want, pull_want = jax.vjp(jax.jit(lambda a, b, h0: loop(a, b, chain, h0)), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        pull(jnp.ones_like(got)), pull_want(jnp.ones_like(got)),
    )  # fmt: skip


def test_the_state_is_float32_whatever_comes_in():
    a, b, h0 = (x.astype(jnp.bfloat16) for x in inputs(4))
    assert tree_scan(a, b, None, h0).dtype == jnp.float32
    assert tree_scan(a, b, jnp.zeros((B, 4), jnp.int32), h0).dtype == jnp.float32
