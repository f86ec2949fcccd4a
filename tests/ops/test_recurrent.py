"""Recurrences with recurrent matrices: the numbers of each cell, their gradients, segments, padding, clipping."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from paradec.errors import InputError
from paradec.models.cells.elman import Elman
from paradec.models.cells.gru import GRU
from paradec.models.cells.headwise import HeadwiseWeights
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.slstm import SLSTM
from paradec.ops.recurrent import check_shapes, flash_rnn, raw_gates
from paradec.ops.scan import tree_scan

CELLS = {"elman": Elman, "lstm": LSTM, "gru": GRU, "slstm": SLSTM}
B, T, N, D = 2, 8, 2, 3

cells = pytest.mark.parametrize("cell", [cell(N, D) for cell in CELLS.values()], ids=list(CELLS))


def fill(shape, start, scale=1.0):
    return jnp.asarray(scale * np.sin(1.3 * np.arange(np.prod(shape)) + start), jnp.float32).reshape(shape)


def drawn(cell, shape=(B, T, N, D), seed=0):
    """Inputs, matrices, biases and states of ordinary sizes; of an sLSTM, states that steps have left behind."""
    b, t, n, d = shape
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    recurrent, given, bias = cell.gates
    wx, r, b = normal(b, t, given, n, d), 0.5 * normal(recurrent, n, d, d), normal(bias, n, d)
    states = normal(cell.states, shape[0], 1, n, d)
    if cell.states == 4:
        states = states.at[2].set(1 + jnp.abs(states[2]))
    return wx, r, b, states


@partial(jax.jit, static_argnames=("cell", "unroll", "gradient_clip"))
def run(*operands, cell, unroll=1, gradient_clip=None, **facts):
    return flash_rnn(*operands, cell=cell, unroll=unroll, gradient_clip=gradient_clip, **facts)


def plainly(wx, r, b, states, *, cell, clip=None, segment=None, valid=None):
    """The recurrence as a scan that jax differentiates itself, written from the equations, batch first."""
    (_, given, bias), T = cell.gates, wx.shape[1]
    segment = np.zeros(wx.shape[:2], int) if segment is None else segment
    valid = np.ones(wx.shape[:2], bool) if valid is None else valid

    def step(states, each):
        x, reset, real = each
        states = jnp.where(reset[None, :, None, None], 0, states)
        h = states[0] if clip is None else clipped(states[0], clip)
        ry = jnp.einsum("gnoi,bni->gbno", r, h)
        put = lambda x, first: jnp.zeros((bias, *states.shape[1:])).at[first : first + len(x)].set(x)
        raw = b[:, None] + put(ry, 0) + put(x.swapaxes(0, 1), bias - given)
        new = jnp.stack(cell.pointwise(tuple(states), tuple(raw)))
        states = jnp.where(real[None, :, None, None], new, states)
        return states, states

    reset = np.zeros(valid.shape, bool)
    for row in range(len(reset)):  # where the id is another than at the last valid step
        real = np.flatnonzero(valid[row])
        reset[row, real[1:]] = np.diff(np.asarray(segment[row])[real]) != 0
    over_time = (wx.swapaxes(0, 1), jnp.asarray(reset.T), jnp.asarray(valid.T))
    return lax.scan(step, states[:, :, 0], over_time, length=T)[1].transpose(1, 2, 0, 3, 4)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clipped(x, bound):
    """x, whose gradient is bounded."""
    return x


clipped.defvjp(lambda x, bound: (x, None), lambda bound, _, g: (jnp.clip(g, -bound, bound),))

LAST = {
    "elman": [[-0.533091, -0.444859, 0.340812, 0.750651]],
    "gru": [[-0.528145, -0.353772, -0.114195, 0.044453]],
    "lstm": [[-0.122212, -0.030746, -0.044825, -0.069184], [-0.191389, -0.050537, -0.118821, -0.187970]],
    "slstm": [
        [-0.256685, -0.126898, -0.039566, -0.073168],
        [-0.711806, -0.459498, -0.167098, -0.214793],
        [1.755250, 2.236514, 1.451173, 1.159813],
        [0.210685, -0.179110, 0.108025, 0.928897],
    ],
}
"""The last states of a fixture that was computed in float64 by code of its own, checked with that of FlashRNN."""


@pytest.mark.parametrize("name", CELLS)
def test_numbers(name):
    cell = CELLS[name](2, 2)
    recurrent, given, bias = cell.gates
    wx = fill((1, 3, given, 2, 2), 0.1)
    r, b = fill((recurrent, 2, 2, 2), 0.2, 0.6), fill((bias, 2, 2), 0.3, 0.4)
    states, last = run(wx, r, b, cell=cell, unroll=2)
    np.testing.assert_allclose(last.reshape(cell.states, 4), LAST[name], atol=2e-6)
    np.testing.assert_array_equal(states[:, :, -1:], last)


@cells
def test_values_and_gradients_are_those_of_a_plain_scan(cell):
    """With states to begin from, documents, padding and a bound on what reaches h through R."""
    operands = drawn(cell)
    segment, valid = np.zeros((B, T), int), np.ones((B, T), bool)
    segment[1, 3:], segment[0, 4] = 1, 5
    valid[0, 4], valid[1, :2], valid[1, 3] = False, False, False  # what is not valid begins no segment
    facts = dict(segment=segment, valid=valid)
    wanted = jnp.cos(jnp.arange(cell.states * B * T * N * D, dtype=jnp.float32)).reshape(cell.states, B, T, N, D)
    # Clipped to far less than most of these gradients are: without the bound they are others.
    weighed = lambda states: (jnp.sum(wanted * states), states)
    mine = lambda *o: weighed(flash_rnn(*o, cell=cell, gradient_clip=0.05, **jax.tree.map(jnp.asarray, facts))[0])
    theirs = lambda *o: weighed(plainly(*o, cell=cell, clip=0.05, **facts))
    every = dict(argnums=(0, 1, 2, 3), has_aux=True)
    ((_, a), da), ((_, b), db) = (jax.jit(jax.value_and_grad(f, **every))(*operands) for f in (mine, theirs))
    np.testing.assert_allclose(a, b, atol=2e-6)
    for x, y in zip(da, db, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(y).max()))


@cells
def test_what_goes_on_from_a_state_is_one_run(cell):
    operands = drawn(cell)
    whole, last = run(*operands, cell=cell)
    wx, rest = operands[0], operands[1:3]
    head, middle = run(wx[:, :4], *rest, operands[3], cell=cell)
    tail, end = run(wx[:, 4:], *rest, middle, cell=cell)
    np.testing.assert_allclose(jnp.concatenate([head, tail], axis=2), whole, atol=1e-6)
    np.testing.assert_allclose(end, last, atol=1e-6)


def test_no_steps():
    wx, r, b, states = drawn(LSTM(N, D))
    none, same = run(wx[:, :0], r, b, states, cell=LSTM(N, D))
    assert none.shape == (2, B, 0, N, D)
    np.testing.assert_array_equal(same, states)


@cells
def test_heads_are_blocks_of_one_matrix(cell):
    wx, r, b, states = drawn(cell)
    flat = lambda x: x.reshape(*x.shape[:-2], 1, N * D)
    blocks = jnp.zeros((r.shape[0], 1, N * D, N * D))
    for n in range(N):
        blocks = blocks.at[:, 0, n * D : (n + 1) * D, n * D : (n + 1) * D].set(r[:, n])
    one = dataclasses.replace(cell, num_heads=1, head_dim=N * D)
    many, single = run(wx, r, b, states, cell=cell)[0], run(flat(wx), blocks, flat(b), flat(states), cell=one)[0]
    np.testing.assert_allclose(flat(many), single, atol=1e-6)


@cells
def test_one_step_is_the_recurrence(cell):
    """The step of a decode, on weights of a layer, against the scan on the same projected inputs."""
    wx, r, b, states = drawn(cell)
    bias = b - jnp.asarray(cell.offset)[:, None, None]
    weights = HeadwiseWeights(gates=jnp.zeros((1, *wx.shape[2:])), recurrent=r, bias=bias)
    after, _ = run(wx, r, b, states, cell=cell)
    stepped = jax.jit(cell.step)(weights, tuple(states[:, :, 0]), wx[:, 0])
    np.testing.assert_allclose(jnp.stack(stepped), after[:, :, 0], atol=1e-6)


def test_slstm_is_unstabilised_gating():
    """From zeros n is at least 1 and h is that of plain exponentials; a constant on every input gate moves m alone."""
    cell = SLSTM(N, D)
    wx, r, b, _ = drawn(cell)
    (h, _, n, m), _ = run(wx, r, b, cell=cell)
    assert float(n.min()) >= 1
    (moved, _, _, m_moved), _ = run(wx.at[:, :, 0].add(20.0), r, b, cell=cell)
    np.testing.assert_allclose(moved, h, atol=2e-6)
    np.testing.assert_allclose(m_moved, m + 20, atol=1e-5)

    @dataclasses.dataclass(frozen=True)
    class Plain(SLSTM):
        def pointwise(self, states, raw):
            (_, c, n, m), (i, f, z, o) = states, raw
            c = jax.nn.sigmoid(f) * c + jnp.exp(i) * jnp.tanh(z)
            n = jax.nn.sigmoid(f) * n + jnp.exp(i)
            return jax.nn.sigmoid(o) * c / n, c, n, m

    np.testing.assert_allclose(run(wx, r, b, cell=Plain(N, D))[0][0], h, atol=2e-6)


def test_slstm_asks_every_element_whether_it_is_empty():
    """Elements that begin with n = 0 take m = i, whatever their neighbours are; nothing overflows where m was large."""
    cell = SLSTM(1, 2)
    raw = tuple(jnp.asarray([[x, x]], jnp.float32) for x in (-3.0, 2.0, 0.5, 1.0))
    empty, full = jnp.asarray([[0.0, 0.4]]), jnp.asarray([[0.0, 2.0]])
    h, c, n, m = jax.jit(cell.pointwise)((empty, empty, full, jnp.asarray([[200.0, 0.0]])), raw)
    np.testing.assert_allclose(m[0], [-3.0, np.log(1 / (1 + np.exp(-2.0)))], rtol=1e-6)
    np.testing.assert_allclose([c[0, 0], n[0, 0]], [np.tanh(0.5), 1.0], rtol=1e-6)
    assert jnp.isfinite(jnp.stack([h, c, n, m])).all()
    zero = jnp.zeros((1, 2))
    slope = jax.jit(jax.grad(lambda i: cell.pointwise((zero,) * 4, (i, *raw[1:]))[0].sum()))(raw[0])
    np.testing.assert_array_equal(slope, 0)  # a first symbol is all there is, however its gate stands
    closed = (jnp.full((1, 2), -30.0), *raw[1:])  # nothing new comes in: n stays 1, and so does its slope
    slope = jax.jit(jax.grad(lambda n: cell.pointwise((zero, zero, n, zero), closed)[2].sum()))(zero + 1)
    np.testing.assert_array_equal(slope, 1)


def test_an_lstm_without_recurrence_is_an_affine_scan():
    cell = LSTM(N, D)
    wx, _, b, states = drawn(cell)
    (h, c), _ = run(wx, jnp.zeros((4, N, D, D)), b, states, cell=cell)
    i, f, z, o = (wx + b[None, None]).swapaxes(0, 2).swapaxes(1, 2)
    a, x = (v.reshape(B, T, N * D) for v in (jax.nn.sigmoid(f), jax.nn.sigmoid(i) * jnp.tanh(z)))
    linear = jax.jit(tree_scan)(a, x, None, states[1].reshape(B, N * D)).reshape(c.shape)
    np.testing.assert_allclose(c, linear, atol=1e-6)
    np.testing.assert_allclose(h, jax.nn.sigmoid(o) * jnp.tanh(linear), atol=1e-6)


def test_which_gates_read_what():
    """Of a GRU's gates the first three read the state and the last three the input."""
    one = jnp.ones(1)
    raw = raw_gates(GRU.gates, [one * 1, one * 2, one * 3], [one * 10, one * 20, one * 30], [one * 100] * 4)
    assert [float(x[0]) for x in raw] == [101, 112, 123, 130]


def test_what_does_not_fit():
    cell = GRU(N, D)
    wx, r, b, states = drawn(cell)
    for operands, message in (
        ((wx[:, :, :2], r, b), "needs wx of shape"),
        ((wx, r[:2], b), r"GRU cell .* needs r of shape \(3, 2, 3, 3\); it is \(2, 2, 3, 3\)"),
        ((wx, r, b[:3]), "needs b of shape"),
        ((wx, r, b, jnp.concatenate([states, states])), "needs states of shape"),
    ):
        with pytest.raises(InputError, match=message):
            flash_rnn(*operands, cell=cell)
    with pytest.raises(InputError, match="needs segment of shape"):  # a signature that is checked says so earlier
        check_shapes(wx, r, b, states, cell, jnp.zeros((B, T + 1), int), None)
    with pytest.raises(InputError, match='neither "scan" nor "kernel"'):
        flash_rnn(wx, r, b, cell=cell, implementation="fused")
