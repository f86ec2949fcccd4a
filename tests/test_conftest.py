"""The test setting itself: a net that is not strung catches nothing."""

import jax
import jax.numpy as jnp
import pytest

from paradec import params
from paradec.types import Rows, Spec, Verdict


def test_eight_devices():
    assert len(jax.devices()) >= 8 or jax.default_backend() != "cpu"


def test_ranks_types_and_keys_are_strict():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2) + jnp.ones(2, jnp.bfloat16)
    key = jax.random.key(0)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda k: jax.random.bits(k) + jax.random.bits(k))(key)


@pytest.mark.mixed_dtypes
def test_types_may_mix_where_marked():
    assert (jnp.ones(2) + jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32


def test_keys_may_be_folded_again_and_again():
    """Noise is keyed by position: the row's key is folded with each one and never consumed, also inside a loop."""

    def body(carry):
        i, key, total = carry
        return i + 1, key, total + jax.random.uniform(jax.random.fold_in(key, i))

    run = lambda key: jax.lax.while_loop(lambda c: c[0] < 3, body, (0, key, 0.0))[2]
    assert jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2)).shape == (2,)


def test_signatures_are_checked_and_trees_are_not():
    checked = pytest.importorskip("beartype") and hasattr(params.count, "__wrapped__")
    assert checked, "paradec was imported before the hook of conftest.py, or PARADEC_CHECKS=0 is set"
    with pytest.raises(TypeError, match="Type-check error"):
        Rows.chain(jnp.ones((2, 3)))  # floats are not tokens
    verdict = Verdict(
        path=jnp.zeros((2, 3), jnp.int32), token=jnp.zeros((2, 3), jnp.int32), count=jnp.zeros(2, jnp.int32)
    )
    for leaf in (None, True, Spec((1,), (None,)), jax.P()):
        jax.tree.map(lambda _, leaf=leaf: leaf, verdict)
    jax.vmap(lambda v: v)(verdict)
    assert jax.eval_shape(lambda v: v, verdict).count.shape == (2,)
