"""From logits to tokens: the transforms against numpy, in the order of transformers; noise against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.decode.sampling import (
    ACCEPT,
    DRAFT,
    NEXT,
    RESIDUAL,
    choose,
    gumbel,
    next_tokens,
    penalise,
    row_keys,
    sampling,
    seen,
    uniform,
    warp,
)  # fmt: skip
from paradec.ops.mask import ancestors
from paradec.types import DecodeState, Tree

V = 23
HOWS = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.0, top_k=5),
    dict(temperature=2.0, top_p=0.6),
    dict(temperature=1.0, top_p=1e-6),
    dict(temperature=1.0, top_k=1),
    dict(temperature=1.0, top_k=V + 5),
    dict(temperature=0.5, min_p=0.1),
    dict(temperature=1.3, top_k=9, top_p=0.8, min_p=0.05),
    dict(temperature=0.9, top_k=12, top_p=0.95, repetition=1.4),
]


def columns(hows):
    """One `Sampling` whose rows are these settings."""
    plain = dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition=1.0)
    return sampling(len(hows), **{name: [(plain | how)[name] for how in hows] for name in plain})


def numpy_law(x, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition=1.0, text=()):
    """The law of the next token, transform by transform: penalty, temperature, top-k, top-p, min-p."""
    x = np.asarray(x, np.float64).copy()
    for v in set(text):
        x[v] = x[v] / repetition if x[v] > 0 else x[v] * repetition
    if temperature == 0:
        return (np.arange(len(x)) == x.argmax()).astype(float)
    x = x / temperature
    if top_k:
        x[x < np.sort(x)[::-1][min(top_k, len(x)) - 1]] = -np.inf
    softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    if top_p < 1:
        rising = np.argsort(x)
        out = np.cumsum(softmax(x)[rising]) <= 1 - top_p
        out[-1] = False
        x[rising[out]] = -np.inf
    if min_p:
        x[softmax(x) < min_p * softmax(x).max()] = -np.inf
    return softmax(x)


def test_warp_is_the_numpy_law():
    logits = 3 * jax.random.normal(jax.random.key(0), (len(HOWS), 6, V))
    texts = np.asarray(jax.random.randint(jax.random.key(1), (len(HOWS), 8), 0, V))
    how = columns(HOWS)
    held = jnp.broadcast_to(jax.nn.one_hot(texts, V).any(1)[:, None], logits.shape)
    got = jax.nn.softmax(jax.jit(warp)(penalise(logits, held, how), how), axis=-1)
    for b, options in enumerate(HOWS):
        for n in range(6):
            want = numpy_law(logits[b, n], text=texts[b], **options)
            np.testing.assert_allclose(got[b, n], want, atol=1e-5, err_msg=str(options))
            assert ((np.asarray(got[b, n]) > 0) == (want > 0)).all(), options


@pytest.mark.oracle
def test_warp_is_that_of_transformers():
    torch, generation = pytest.importorskip("torch"), pytest.importorskip("transformers.generation")
    logits = 3 * jax.random.normal(jax.random.key(0), (len(HOWS), 1, V))
    text = np.array(jax.random.randint(jax.random.key(1), (1, 8), 0, V))
    how = columns(HOWS)
    held = jnp.broadcast_to(jax.nn.one_hot(text, V).any(1)[None], logits.shape)
    got = jax.nn.softmax(warp(penalise(logits, held, how), how), axis=-1)
    for b, options in enumerate(HOWS[1:], start=1):
        steps = [generation.RepetitionPenaltyLogitsProcessor(options.get("repetition", 1.0))]
        steps += [generation.TemperatureLogitsWarper(options["temperature"])]
        steps += [generation.TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
        steps += [generation.TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
        steps += [generation.MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
        x = torch.from_numpy(np.array(logits[b]))
        for step in steps:
            x = step(torch.from_numpy(text), x)
        np.testing.assert_allclose(got[b, 0], x.softmax(-1)[0].numpy(), atol=1e-5, err_msg=str(options))


def test_ties_with_the_last_kept_token_are_kept():
    logits = jnp.asarray([[[3.0, 1.0, 2.0, 2.0, 0.0]]])
    keep = lambda **how: (np.asarray(warp(logits, sampling(1, temperature=1.0, **how)))[0, 0] > -np.inf).tolist()
    assert keep(top_k=2) == [True, False, True, True, False]
    assert keep(top_p=0.7) == [True, False, True, True, False]
    assert keep(top_k=1) == keep(top_p=0.1) == [True, False, False, False, False]


def test_warp_of_values_no_float_should_meet():
    """Infinite and huge logits, negative zero, and bfloat16."""
    rows = [[-jnp.inf, 0.0, 1.0, -jnp.inf], [1e30, -1e30, 0.0, 1e30], [-0.0, 0.0, -1.0, -2.0], [-5.0, -4.0, -3.0, -2.0]]
    kept = [[0, 0, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    got = warp(jnp.asarray(rows)[:, None], sampling(4, temperature=1.0, top_k=1))[:, 0]
    assert ((np.asarray(got) > -np.inf) == np.asarray(kept, bool)).all()
    assert warp(jnp.asarray(rows, jnp.bfloat16)[:, None], sampling(4)).dtype == jnp.float32


def test_penalty_counts_the_text_and_the_ancestors_only():
    """A node's own siblings and what stands beyond `length` are not text."""
    text, length = jnp.asarray([[3, 4, 5, 9, 9], [6, 6, 1, 0, 2]]), jnp.asarray([3, 2])
    token = jnp.asarray([[5, 10, 11, 12], [6, 10, 11, 12]])
    parent = jnp.asarray([[0, 0, 0, 1], [0, 0, 1, 3]])
    blank = DecodeState(**dict.fromkeys(DecodeState.__dataclass_fields__))
    how = sampling(2, repetition=[2.0, 1.0])
    state = blank.replace(tokens=text, length=length, sampling=how, key=row_keys(0, [0, 1]))
    got = np.asarray(seen(state, token, ancestors(parent), V))
    paths = [[{5}, {5, 10}, {5, 11}, {5, 10, 12}], [{6}, {6, 10}, {6, 10, 11}, {12}]]
    for b, base in enumerate(({3, 4, 5}, {6})):
        for n in range(4):
            assert set(np.flatnonzero(got[b, n])) == base | paths[b][n]
    # and `choose` applies it
    logits = jnp.zeros((2, 4, V)).at[:, :, 10].set(2.0).at[:, :, 20].set(1.5)
    tree = Tree(
        token, parent, jnp.asarray([[0, 1, 1, 2], [0, 1, 2, 0]]), jnp.ones((2, 4), bool), jnp.ones((2, 4), bool)
    )
    choice, penalised = choose(logits, tree, ancestors(parent), state, 2)
    assert choice.tolist() == [[10, 20, 10, 20], [10, 10, 10, 10]]
    assert penalised[0, 1, 10] == 1.0 and (penalised[1] == logits[1]).all()


def test_noise_depends_on_row_position_and_purpose_alone():
    position = jnp.asarray([[4, 5, 6], [9, 5, 0], [5, 5, 5]])
    noise = gumbel(row_keys(0, [7, 8, 7]), position, V, NEXT)
    alone = gumbel(row_keys(0, [7]), jnp.asarray([[5]]), V, NEXT)[0, 0]
    same = [(0, 1), (2, 0), (2, 1), (2, 2)]
    assert all((noise[b, n] == alone).all() for b, n in same)
    others = [noise[0, 0], noise[0, 2], noise[1, 1], gumbel(row_keys(1, [7]), jnp.asarray([[5]]), V, NEXT)[0, 0]]
    others += [gumbel(row_keys(0, [7]), jnp.asarray([[5]]), V, purpose)[0, 0] for purpose in (ACCEPT, RESIDUAL, DRAFT)]
    assert all((other != alone).all() for other in others)
    coins = uniform(row_keys(0, range(64)), jnp.arange(64)[None] * jnp.ones((64, 1), jnp.int32), ACCEPT)
    assert len(np.unique(coins)) > 4000 and abs(float(coins.mean()) - 0.5) < 0.03


def test_siblings_share_noise_and_greedy_rows_ignore_it():
    key, depth = row_keys(0, [0, 1]), jnp.asarray([[0, 1, 1, 2], [0, 1, 1, 2]])
    flat, first = jnp.zeros((2, 4, V)).at[:, :, 3].set(0.1), jnp.asarray([5, 9])
    token = next_tokens(flat, sampling(2, temperature=[1.0, 0.0]), key, first, depth, 2)
    assert token[0, 1] == token[0, 2] and len(set(token[0].tolist())) == 3 and (token[1] == 3).all()
    chained = next_tokens(flat[:, :1], sampling(2, temperature=[1.0, 0.0]), key, first + 2, depth[:, :1], 0)
    assert (chained[:, 0] == token[:, 3]).all()  # depth 2 of a tree is depth 0 of the call two tokens later


def test_sampled_tokens_follow_the_law():
    logits = jnp.broadcast_to(2 * jax.random.normal(jax.random.key(2), (V,))[None, None], (20000, 1, V))
    how = sampling(1, temperature=0.8, top_k=7)
    how = jax.tree.map(lambda x: jnp.broadcast_to(x, (20000,)), how)
    zero = jnp.zeros(20000, jnp.int32)
    token = next_tokens(logits, how, row_keys(0, range(20000)), zero, zero[:, None], 0)
    got = np.bincount(np.asarray(token)[:, 0], minlength=V)
    want = 20000 * numpy_law(logits[0, 0], temperature=0.8, top_k=7)
    assert (got[want == 0] == 0).all()
    assert (((got - want) ** 2)[want > 0] / want[want > 0]).sum() < 22.5  # 6 degrees of freedom: p = 0.001
