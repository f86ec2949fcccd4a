"""The cells against the plain torch code of the package `flashrnn` (1.0.8, Apache-2.0): states and gradients.

Its dependencies are for GPUs: `pip install --no-deps flashrnn` is enough here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.models.cells.elman import Elman
from paradec.models.cells.gru import GRU
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.slstm import SLSTM
from paradec.ops.recurrent import flash_rnn

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

CELLS = {"elman": Elman, "lstm": LSTM, "gru": GRU, "slstm": SLSTM}
B, T, N, D = 2, 9, 3, 4


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("flashrnn").flashrnn


def drawn(cell, begun):
    rng = np.random.default_rng(0)
    recurrent, given, bias = cell.gates
    shapes = [(B, T, given, N, D), (recurrent, N, D, D), (bias, N, D), (cell.states, B, 1, N, D)]
    wx, r, b, states = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    if cell.states == 4:
        states[2] = 1 + np.abs(states[2])
    return (wx, 0.5 * r, b, states) if begun else (wx, 0.5 * r, b)


@pytest.mark.parametrize("begun", [False, True], ids=["from zeros", "from a state"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_are_those_of_flashrnn(theirs, name, begun):
    cell = CELLS[name](N, D)
    operands = drawn(cell, begun)
    wanted = np.cos(np.arange(B * T * N * D, dtype=np.float32)).reshape(B, T, N, D)
    tensors = [torch.tensor(x, requires_grad=True) for x in operands]
    states, last = theirs(*tensors, function=name, backend="vanilla", dtype="float32")
    (states[0] * torch.tensor(wanted)).sum().backward()

    def weighed(*operands):
        states, last = flash_rnn(*operands, cell=cell)
        return jnp.sum(states[0] * wanted), (states, last)

    every = tuple(range(len(operands)))
    (_, mine), slopes = jax.jit(jax.value_and_grad(weighed, every, has_aux=True))(*map(jnp.asarray, operands))
    np.testing.assert_allclose(mine[0], states.detach(), atol=2e-6)
    np.testing.assert_allclose(mine[1], last.detach(), atol=2e-6)
    for slope, tensor in zip(slopes, tensors, strict=True):
        np.testing.assert_allclose(slope, tensor.grad, atol=1e-5)


def test_a_gru_is_that_of_torch():
    """One head, gates in torch's order r, z, n: b_hn is the bias of g, which is ours alone, and b_in that of n."""
    cell, rng = GRU(1, D), np.random.default_rng(1)
    layer = torch.nn.GRU(D, D, batch_first=True)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    expected, _ = layer(torch.tensor(x))
    w_ih, w_hh, b_ih, b_hh = (p.detach().numpy() for p in layer.parameters())
    r, z, n = w_hh.reshape(3, 1, D, D)
    (i_r, i_z, i_n), (h_r, h_z, h_n) = b_ih.reshape(3, 1, D), b_hh.reshape(3, 1, D)
    wx = jnp.asarray(x @ w_ih.T).reshape(B, T, 3, 1, D)
    states, _ = flash_rnn(
        wx, jnp.asarray(np.stack([n, r, z])), jnp.asarray(np.stack([h_n, h_r + i_r, h_z + i_z, i_n])), cell=cell
    )  # fmt: skip
    np.testing.assert_allclose(states[0, :, :, 0], expected.detach(), atol=2e-6)


def test_an_lstm_is_that_of_torch():
    """One head, torch's gates i, f, g, o in the same order, its two biases added."""
    cell, rng = LSTM(1, D), np.random.default_rng(2)
    layer = torch.nn.LSTM(D, D, batch_first=True)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    expected, (_, c) = layer(torch.tensor(x))
    w_ih, w_hh, b_ih, b_hh = (p.detach().numpy() for p in layer.parameters())
    wx = jnp.asarray(x @ w_ih.T).reshape(B, T, 4, 1, D)
    states, last = flash_rnn(
        wx, jnp.asarray(w_hh).reshape(4, 1, D, D), jnp.asarray(b_ih + b_hh).reshape(4, 1, D), cell=cell
    )  # fmt: skip
    np.testing.assert_allclose(states[0, :, :, 0], expected.detach(), atol=2e-6)
    np.testing.assert_allclose(last[1, :, 0, 0], c[0].detach(), atol=2e-6)
