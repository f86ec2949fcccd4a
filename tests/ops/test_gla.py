"""Gated linear attention: every form is the recurrence, at any strength of the gates, in values and in gradients."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError, UnknownName
from paradec.ops import gla_chunk
from paradec.ops.gla import check_gates, check_shapes, gla, gla_step
from paradec.ops.gla_rows import gla_commit, gla_rows
from paradec.ops.mask import ancestors

NORMALISERS = (16.0, 1.0, 0.3, 0.1)  # one a row of the batch; at 0.1 a chunk's decays reach exp(-450)
H, K, V = 2, 8, 6


def fill(shape, c, s=1.0):
    return np.asarray(s * np.sin(1.3 * np.arange(np.prod(shape)) + c), np.float32).reshape(shape)


def inputs(T, Q=H, seed=0, rows=NORMALISERS):
    rng, B = np.random.default_rng(seed), len(rows)
    draw = lambda *shape: rng.normal(size=(B, *shape)).astype(np.float32)
    g = -np.log1p(np.exp(-draw(T, H, K))) / np.asarray(rows, np.float32)[:, None, None, None]
    return draw(T, Q, K), draw(T, H, K), draw(T, H, V), g, draw(H, K, V)


def naive(q, k, v, g, state):
    """The definition in float64, and a function from cotangents to gradients, by hand. Queries may share keys."""
    q, k, v, g, S = (np.asarray(x, np.float64) for x in (q, k, v, g, state))
    group, scale, T = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5, q.shape[1]
    grouped = lambda x: x.reshape(*x.shape[:-2], -1, group, x.shape[-1])
    o, before = np.zeros((*q.shape[:3], v.shape[3])), []
    for t in range(T):
        before.append(S)
        S = np.exp(g[:, t])[..., None] * S + k[:, t][..., None] * v[:, t][:, :, None]
        o[:, t] = scale * np.einsum("bhgk,bhkv->bhgv", grouped(q[:, t]), S).reshape(o[:, t].shape)

    def pull(given):
        d_o, d_S = (np.asarray(x, np.float64) for x in given)
        d_q, d_k, d_v, d_g = (np.zeros(x.shape) for x in (q, k, v, g))
        for t in reversed(range(T)):
            push = scale * grouped(d_o[:, t])
            left = np.exp(g[:, t])[..., None] * before[t]
            S = left + k[:, t][..., None] * v[:, t][:, :, None]
            d_q[:, t] = np.einsum("bhgv,bhkv->bhgk", push, S).reshape(d_q[:, t].shape)
            d_S = d_S + np.einsum("bhgk,bhgv->bhkv", grouped(q[:, t]), push)
            d_k[:, t] = np.einsum("bhkv,bhv->bhk", d_S, v[:, t])
            d_v[:, t] = np.einsum("bhkv,bhk->bhv", d_S, k[:, t])
            d_g[:, t] = np.sum(d_S * left, axis=-1)
            d_S = np.exp(g[:, t])[..., None] * d_S
        return d_q, d_k, d_v, d_g, d_S

    return (o, S), pull


def near(got, want, rtol):
    """Each row of the batch, whose gates have a strength of their own, against its own largest value."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        apart = np.abs(a - b).reshape(len(a), -1).max(-1) / np.abs(b).reshape(len(b), -1).max(-1)
        assert (apart < rtol).all(), apart  # false where there are NaNs, too


def push(out):
    """A cotangent of these outputs."""
    return jax.tree.map(lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), out)


def pushed(form):
    """Values and gradients, as one program."""

    def run(*args):
        out, pull = jax.vjp(form, *args)
        return out, pull(jax.tree.map(jnp.asarray, push(out)))

    return jax.jit(run)


def both(args):
    """What `pushed` should return."""
    out, pull = naive(*args)
    return out, pull(push(out))


def by(implementation, **options):
    return lambda *args: gla(*args, implementation=implementation, **options)


@pytest.fixture(scope="module")
def chunks():
    """One program for sequences of 40, in chunks of 16: values and gradients."""
    return pushed(by("chunk", chunk=16, sub_chunk=4))


def test_fixture():
    """Numbers of an implementation in float64."""
    q, k, v = fill((1, 5, 2, 2), 0.1), fill((1, 5, 2, 2), 0.2), fill((1, 5, 2, 3), 0.3)
    g = -np.abs(fill((1, 5, 2, 2), 0.4))
    for implementation in ("recurrent", "chunk"):
        o, state = jax.jit(by(implementation))(q, k, v, g)
        np.testing.assert_allclose(
            o[0, 4], [[-0.049167, 0.739058, 0.444562], [-0.730220, -0.853473, 0.273614]], atol=2e-6
        )
        np.testing.assert_allclose(
            state[0, 0], [[0.080642, 1.178762, 0.549992], [0.680418, 0.002708, -0.678969]], atol=2e-6
        )


@pytest.mark.parametrize("T", [1, 63, 64, 100, 256])
def test_chunks_are_the_definition(T):
    args = inputs(T)
    values, gradients = pushed(by("chunk"))(*args)
    near(values, both(args)[0], 4e-6)
    near(gradients, both(args)[1], 4e-5)


def test_the_loop_is_the_definition_and_queries_may_share_keys(chunks):
    args = inputs(40, Q=6)
    near(pushed(by("recurrent"))(*args), both(args), 4e-6)
    near(chunks(*args), both(args), 2e-5)


def test_auto_is_the_loop_and_with_a_gradient_chunks():
    """Bit for bit, on a CPU."""
    args = inputs(40)
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    once = lambda name: jax.jit(by(name, sub_chunk=8))(*args)
    assert same(once("auto"), once("recurrent")) and not same(once("auto"), once("chunk"))
    gradients = lambda name: pushed(by(name, sub_chunk=8))(*args)
    assert same(gradients("auto"), gradients("chunk"))


def test_chunks_keep_their_operands_alone_for_the_gradient():
    args = inputs(40)
    kept = lambda name: sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(by(name), *a)[1], *args)))
    given = sum(x.size for x in args) + 4 * 40  # and the borders
    assert kept("chunk") == given and kept("recurrent") > 2 * given


def test_no_gate_is_causal_linear_attention(chunks):
    q, k, v, g, state = inputs(40)
    scores = np.tril(np.einsum("bthk,bshk->bhts", q, k)) * K**-0.5
    want = np.einsum("bhts,bshv->bthv", scores, v)
    near(chunks(q, k, v, 0 * g, 0 * state)[0][0], want, 4e-6)


@pytest.mark.parametrize("closed", [-1e4, -np.inf])
def test_closed_gates_leave_each_step_its_own_entry(chunks, closed):
    q, k, v, g, state = inputs(40)
    want = K**-0.5 * np.einsum("bthk,bthk,bthv->bthv", q, k, v)
    (o, _), gradients = chunks(q, k, v, np.full_like(g, closed), state)
    near(o, want, 1e-6)
    assert (np.asarray(gradients[3]) == 0).all() and all(np.isfinite(x).all() for x in gradients)


def test_a_closed_gate_costs_its_neighbours_no_digits(chunks):
    """A sum of gates that has -1e4 in it is known to 1e-3: what decays after it would be."""
    q, k, v, g, state = inputs(40)
    g[:, 17] = -1e4
    args = q, k, v, g, state
    near(chunks(*args)[0], naive(*args)[0], 2e-5)


def test_one_constant_gate_a_head_is_retention(chunks):
    """RetNet (2307.08621): `(q k^T * gamma^(t - s)) v`."""
    q, k, v, g, state = inputs(40)
    gamma, t = np.array([0.9, 0.97]), np.arange(40)
    decay = np.tril(gamma[:, None, None] ** np.maximum(t[:, None] - t[None], 0))
    scores = np.einsum("bthk,bshk->bhts", q, k) * decay * K**-0.5
    constant = np.broadcast_to(np.log(gamma).astype(np.float32)[:, None], g.shape)
    near(chunks(q, k, v, constant, 0 * state)[0][0], np.einsum("bhts,bshv->bthv", scores, v), 4e-6)


def test_a_gate_in_front_of_everything_changes_nothing(chunks):
    q, k, v, g, state = inputs(40)
    want = naive(q, k, v, g, 0 * state)[0]
    g[:, 0] -= 3
    near(chunks(q, k, v, g, 0 * state)[0], want, 4e-6)


def test_split_calls_and_steps_are_one_call():
    *args, state = inputs(40, Q=4)
    want = naive(*args, state)[0]
    half = jax.jit(by("chunk", chunk=16, sub_chunk=4))
    first = half(*(x[:, :20] for x in args), state)
    second = half(*(x[:, 20:] for x in args), first[1])
    near((np.concatenate([first[0], second[0]], axis=1), second[1]), want, 4e-6)
    step = jax.jit(gla_step)
    for t in range(5):
        o, state = step(*(x[:, t] for x in args), state)
        near(o, want[0][:, t], 4e-6)


@pytest.mark.parametrize(("chunk", "sub_chunk"), [(8, 8), (12, 4)])
def test_sizes_of_chunks_change_nothing(chunk, sub_chunk):
    args = inputs(40)
    near(jax.jit(by("chunk", chunk=chunk, sub_chunk=sub_chunk))(*args), naive(*args)[0], 4e-6)


# Borders and gaps.

SEGMENT = np.asarray([3] * 7 + [1] * 1 + [2] * 14 + [1] * 8)[None]
STARTS = (0, 7, 8, 22, 30)


@pytest.fixture(scope="module")
def gapped():
    """The loop, and chunks with gradients, on texts of 30 with borders and gaps."""
    facts = lambda name: lambda s, ok, *args: gla(*args, implementation=name, chunk=8, sub_chunk=4, segment=s, valid=ok)
    chunked = jax.jit(lambda s, ok, *args: pushed(lambda *a: facts("chunk")(s, ok, *a))(*args))
    return jax.jit(facts("recurrent")), chunked


def test_segments_are_texts_of_their_own(gapped):
    """In values and in gradients; the first goes on from the state."""
    args = inputs(30, rows=(0.3,))
    loop, chunked = gapped
    facts = SEGMENT, np.ones((1, 30), bool)
    (o, last), gradients = chunked(*facts, *args)
    near(loop(*facts, *args), (o, last), 4e-6)
    cotangent = push((o, last))
    for i, (start, end) in enumerate(itertools.pairwise(STARTS)):
        piece = [x[:, start:end] for x in args[:4]]
        (want, after), pull = naive(*piece, args[4] * (i == 0))
        near(o[:, start:end], want, 4e-6)
        d_last = cotangent[1] * (end == 30)
        grads = pull((cotangent[0][:, start:end], d_last))
        np.testing.assert_allclose(gradients[3][:, start], grads[3][:, 0] * (i == 0), atol=1e-5)
        near([x[:, start:end] for x in gradients[:3]], grads[:3], 1e-5)
        np.testing.assert_allclose(gradients[3][:, start:end], grads[3], atol=1e-5)
        if i == 0:
            near(gradients[4], grads[4], 1e-5)
    near(last, after, 4e-6)


def test_steps_that_are_not_valid_might_as_well_be_missing(gapped):
    """In front, inside and behind, whatever they hold, and whatever segment they name."""
    *args, state = inputs(30, rows=(1.0,))
    valid = np.ones(30, bool)
    valid[[0, 1, 9, 10, 23, 28, 29]] = False
    junk = [np.where(valid[:, None, None], x, np.nan).astype(np.float32) for x in args]
    facts = np.where(valid, SEGMENT, 9), valid[None]
    outs, last = [], state
    for i, (start, end) in enumerate(itertools.pairwise(STARTS)):
        kept = [x[:, start:end][:, valid[start:end]] for x in args]
        o, last = naive(*kept, state * (i == 0))[0]
        outs.append(o)
    chunked, gradients = gapped[1](*facts, *junk, state)
    for o, after in (chunked, gapped[0](*facts, *junk, state)):
        near((o[:, valid], after), (np.concatenate(outs, axis=1), last), 4e-6)
        assert (np.asarray(o)[:, ~valid] == 0).all()
    assert all(np.isfinite(x).all() and (np.asarray(x)[:, ~valid] == 0).all() for x in gradients[:4])


# Rows on a state.

PARENT = [0, 0, 1, 1, 0, 2, 4, 7, 7, 5]  # a tree, whose node 7 hangs on the state as well
SHUFFLED = [3, 0, 1, 3, 2, 5, 5, 9, 7, 9]  # children before their parents
rows, committed = jax.jit(gla_rows), jax.jit(gla_commit)


@pytest.mark.parametrize("parent", [PARENT, SHUFFLED])
def test_a_node_is_the_chain_of_its_ancestors(parent):
    N = len(parent)
    q, k, v, g, state = inputs(N, Q=4)
    see = np.repeat(ancestors(jnp.asarray([parent])), 4, axis=0)
    o = rows(q, k, v, g, state, see)
    late = np.concatenate([rows(q[:, i : i + 5], k, v, g, state, see, start=i) for i in (0, 5)], axis=1)
    near(late, o, 1e-6)
    for node in range(N):
        chain = [node]
        while parent[chain[0]] != chain[0]:
            chain.insert(0, parent[chain[0]])
        (want, last), _ = naive(*(x[:, np.asarray(chain)] for x in (q, k, v, g)), state)
        near(o[:, node], want[:, -1], 4e-6)
        padded = np.tile(chain + [N - 1] * (N - len(chain)), (4, 1))
        near(committed(state, k, v, g, padded, np.full(4, len(chain))), last, 2e-6)


def test_commit_of_a_chain_is_replay_and_nothing_is_nothing():
    q, k, v, g, state = inputs(10)
    state[:, 0, 0] = -0.0
    count = np.asarray([0, 1, 10, 4])
    kept = np.asarray(committed(state, k, v, g, None, count))
    for b, n in enumerate(count):
        want = naive(*(x[b : b + 1, :n] for x in (q, k, v, g)), state[b : b + 1])[0][1]
        near(kept[b : b + 1], want, 2e-6)
    assert np.array_equal(kept[0].view(np.int32), state[0].view(np.int32)), "not bit for bit"


# What must be caught, and what is refused.


def exclusive(g, border, c):
    """The sum of gates up to a step without its own."""
    d = original(g, border, c)
    return d._replace(start=d.start / jnp.exp(g))


def apart(g, border, c):
    """`exp(b_t) exp(-b_s)`, one after the other."""
    d = original(g, border, c)
    near = d.near.reshape(d.pairs.shape[:4] + d.pairs.shape[5:])
    lower = jnp.tri(c, k=-1, dtype=bool)[None, None, None, :, :, None]
    return d._replace(pairs=jnp.where(lower, near[:, :, :, :, None] * (1 / near[:, :, :, None]), 0))


original = gla_chunk.decays


@pytest.mark.parametrize(("mistake", "unseen"), [(exclusive, []), (apart, [0])])
def test_known_mistakes_are_caught(monkeypatch, mistake, unseen):
    """The second is right at the usual normaliser: a test at 16 alone would not see it."""
    args = inputs(40)
    monkeypatch.setattr(gla_chunk, "decays", mistake)
    o, (want, _) = jax.jit(by("chunk"))(*args)[0], naive(*args)[0]
    for row in unseen:
        near(o[row : row + 1], want[row : row + 1], 4e-6)
    with pytest.raises(AssertionError):
        near(o, want, 1e-3)


def test_nothing_to_read():
    args = inputs(0)
    o, state = jax.jit(by("auto"))(*args)
    assert o.shape == (4, 0, H, V) and np.array_equal(state, args[4])


def test_narrow_inputs_have_a_wide_state():
    q, k, v, g, _ = inputs(40)
    o, state = jax.jit(by("chunk"))(*(x.astype(jnp.bfloat16) for x in (q, k, v)), g)
    assert (o.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    near(o.astype(jnp.float32), naive(q, k, v, g, np.zeros((4, H, K, V)))[0][0], 0.03)


def test_what_is_refused():
    q, k, v, g, state = map(jnp.asarray, inputs(4))
    with pytest.raises(InputError, match=r"at most 0; g\[1, 2, 0, 3\] is 0.25"):
        gla(q, k, v, g.at[1, 2, 0, 3].set(0.25), state)
    with pytest.raises(InputError, match="is nan"):
        check_gates(np.asarray([np.nan]))
    with pytest.raises(InputError, match=r"state must be \(4, 2, 8, 6\); it is \(4, 2, 6, 8\)"):
        check_shapes(q, k, v, g, state.swapaxes(2, 3), None, None)
    with pytest.raises(InputError, match="multiple of the 2 of k; there are 3"):
        gla(jnp.zeros((4, 4, 3, K)), k, v, g)
    with pytest.raises(InputError, match="chunk must be a multiple of sub_chunk"):
        gla(q, k, v, g, chunk=24)
    with pytest.raises(UnknownName, match="implementation of gated linear attention"):
        gla(q, k, v, g, implementation="chunked")
