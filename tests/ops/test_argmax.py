"""The quick argmax is jnp.argmax, ties and infinities included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.ops.argmax import GROUP, argmax

SIZES = (1, 2, GROUP, 2 * GROUP - 1, 2 * GROUP, 2 * GROUP + 1, 5 * GROUP, 1000)


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_argmax(vocab, dtype):
    """Many entries tie for the greatest; some rows hold nothing but -inf, some an infinity or two."""
    rng = np.random.default_rng(vocab)
    x = rng.integers(0, 3, (8, 5, vocab)).astype(np.float32) - 3.0
    x[1] = -np.inf
    for value in (np.inf, -np.inf):
        rows = rng.integers(2, 8, 6), rng.integers(0, 5, 6), rng.integers(0, vocab, 6)
        x[rows] = value
    x = jnp.asarray(x, dtype)
    want = np.asarray(jnp.argmax(x, axis=-1))
    got = jax.jit(argmax)(x)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(argmax))(x), want)
    np.testing.assert_array_equal(argmax(x[0, 0]), want[0, 0])


@pytest.mark.parametrize("at", range(0, 3 * GROUP + 5, 97))
def test_every_group_wins(at):
    """Also the last one, which is filled up."""
    assert argmax(jnp.zeros(3 * GROUP + 5).at[at].set(1.0)) == at
    assert argmax(jnp.full(3 * GROUP + 5, -jnp.inf)) == 0
