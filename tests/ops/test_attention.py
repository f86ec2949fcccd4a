"""Attention against numpy, and its pieces against the whole."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.ops.attention import Partial, attend, attend_cache, attend_masked, merge
from paradec.ops.mask import Block, Causal, Facts, Given

B, H, G, Q, S, K = 2, 2, 3, 4, 24, 5
SCALE = 0.7


def inputs(q=Q, s=S, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((B, H, G, q, K), (B, H, s, K), (B, H, s, K))
    return tuple(2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def plain(q, k, v, see):
    """Softmax attention in float64; queries that see nothing are NaN."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    score = np.where(see[:, None, None], np.einsum("bhgqk,bhsk->bhgqs", q, k) * SCALE, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.exp(score - score.max(-1, keepdims=True))
        lse = np.log(weight.sum(-1)) + score.max(-1)
        return np.einsum("bhgqs,bhsk->bhgqk", weight / weight.sum(-1, keepdims=True), v), lse


def random_see(q=Q, s=S, seed=1):
    see = np.random.default_rng(seed).random((B, q, s)) < 0.4
    see[:, :, 0] = True
    return see


def test_attend_is_softmax_attention():
    q, k, v = inputs()
    see = random_see()
    got, (out, lse) = attend(q, k, v, jnp.asarray(see), SCALE), plain(q, k, v, see)
    np.testing.assert_allclose(got.out, out, atol=1e-5)
    np.testing.assert_allclose(got.lse, lse, atol=1e-5)
    everything = attend(q, k, v, None, SCALE)
    np.testing.assert_allclose(everything.out, plain(q, k, v, np.ones((B, Q, S), bool))[0], atol=1e-5)


@pytest.mark.parametrize("cuts", [(12,), (1, 2), (7, 8, 20)])
def test_merged_pieces_are_the_whole(cuts):
    """In any order, also where a piece shows a query nothing."""
    q, k, v = inputs()
    see = random_see()
    see[0, 1, : cuts[0]] = False
    see[0, 1, -1] = True
    edges = [0, *cuts, S]
    pieces = [
        attend(q, k[:, :, a:b], v[:, :, a:b], jnp.asarray(see[:, :, a:b]), SCALE) for a, b in itertools.pairwise(edges)
    ]
    out, lse = plain(q, k, v, see)
    for order in (pieces, pieces[::-1]):
        whole = order[0]
        for piece in order[1:]:
            whole = merge(whole, piece)
        np.testing.assert_allclose(whole.out, out, atol=1e-5)
        np.testing.assert_allclose(whole.lse, lse, atol=1e-5)


def test_a_query_without_keys_weighs_nothing():
    q, k, v = inputs()
    nothing = attend(q, k, v, jnp.zeros((B, Q, S), bool), SCALE)
    assert jnp.isfinite(nothing.out).all() and (nothing.lse < -1e29).all()
    some = attend(q, k, v, jnp.asarray(random_see()), SCALE)
    for both in (merge(some, nothing), merge(nothing, some)):
        np.testing.assert_allclose(both.out, some.out, atol=1e-6)
        np.testing.assert_allclose(both.lse, some.lse, atol=1e-6)
    assert jnp.isfinite(merge(nothing, nothing).out).all()


def test_masked_attention_returns_zero_where_nothing_is_seen_and_finite_gradients():
    q, k, v = inputs(S, S)
    see = np.tril(np.ones((B, S, S), bool))
    see[0, 3] = False
    facts = Facts(position=jnp.broadcast_to(jnp.arange(S)[None], (B, S)))
    run = lambda q, k, v: attend_masked(q, k, v, Given(jnp.asarray(see)), facts, SCALE)
    out = run(q, k, v)
    assert (out[0, :, :, 3] == 0).all()
    rest = np.arange(S) != 3
    np.testing.assert_allclose(out[:, :, :, rest], plain(q, k, v, see)[0][:, :, :, rest], atol=1e-5)
    slopes = jax.grad(lambda *x: jnp.sum(run(*x) ** 2), (0, 1, 2))(q, k, v)
    assert all(jnp.isfinite(x).all() for x in slopes) and (slopes[0][0, :, :, 3] == 0).all()


@pytest.mark.parametrize("mask", [Causal(), Block(5)], ids=["causal", "block"])
def test_chunks_of_queries_are_the_whole(mask):
    """Values and gradients, with padding hidden; a length the chunk does not divide goes through in one piece."""
    q, k, v = inputs(S, S)
    facts = Facts(
        position=jnp.broadcast_to(jnp.arange(S)[None], (B, S)),
        valid=jnp.arange(S)[None] < jnp.asarray([[S], [S - 7]]),
    )

    def run(chunk):
        value = lambda q, k, v: attend_masked(q, k, v, mask, facts, SCALE, chunk=chunk)
        return value(q, k, v), jax.grad(lambda *x: jnp.sum(jnp.sin(value(*x))), (0, 1, 2))(q, k, v)

    whole = run(S)
    seen = np.asarray(mask(facts, facts)) & np.asarray(facts.valid)[:, None]
    np.testing.assert_allclose(whole[0], plain(q, k, v, seen)[0], atol=1e-5)
    for chunk in (8, 7):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(chunk), whole)


def test_the_cache_is_read_as_far_as_the_bound_and_no_further():
    """One layer of a stack, in blocks; slots beyond the last block needed may hold anything, NaN too."""
    q, k, v = inputs()
    own_k, own_v = (x[:, :, :Q] for x in inputs(seed=5)[1:])
    length, block = np.asarray([13, 9]), 8
    stack_k, stack_v = (jnp.stack([x * 0 + jnp.nan, x, x * 0 + jnp.nan]) for x in (k, v))
    stack_k, stack_v = (x.at[:, :, :, 16:].set(jnp.nan) for x in (stack_k, stack_v))
    tree = np.tril(np.ones((B, Q, Q), bool))
    own = attend(q, own_k, own_v, jnp.asarray(tree), SCALE)

    @jax.jit
    def read(layer, bound):
        see = lambda slot: slot[None, None] < jnp.asarray(length)[:, None, None]
        return attend_cache(own, q, stack_k, stack_v, layer, bound, see, SCALE, block)

    got = read(jnp.asarray(1), jnp.asarray(13))
    stored = np.broadcast_to(np.arange(S)[None, None] < length[:, None, None], (B, Q, S))
    keys, values = (jnp.concatenate(x, axis=2) for x in ((k, own_k), (v, own_v)))
    out, lse = plain(q, keys, values, np.concatenate([stored, tree], axis=2))
    np.testing.assert_allclose(got.out, out, atol=1e-5)
    np.testing.assert_allclose(got.lse, lse, atol=1e-5)
    empty = read(jnp.asarray(0), jnp.asarray(0))  # an empty cache is not read at all
    jax.tree.map(np.testing.assert_array_equal, empty, own)


def test_a_cache_that_blocks_do_not_divide_is_refused():
    q, k, v = inputs()
    own = Partial(jnp.zeros((B, H, G, Q, K)), jnp.zeros((B, H, G, Q)))
    with pytest.raises(ValueError, match="round it up"):
        attend_cache(own, q, k[None], v[None], jnp.asarray(0), jnp.asarray(3), lambda s: s[None, None] < 3, SCALE, 7)
