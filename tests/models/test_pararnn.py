"""ParaRNN layers: their cells are what they declare, ragged passes on chains and trees are their forward, the block is
the paper's, and what the solver says comes out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError
from paradec.models.cells.para import ParaCell
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.para_lstm import ParaLSTM
from paradec.models.pararnn import ParaRNN, _try
from paradec.models.recurrent import RecurrentLM
from paradec.ops.mask import Facts
from paradec.testing import model_laws as laws
from paradec.testing.tiny import drawn

PATTERN = (ParaRNN(ParaGRU(2, 8), conv=3), ParaRNN(ParaLSTM(2, 8), conv=0, method="newton", window=8))


@pytest.fixture(scope="module")
def made():
    model = RecurrentLM(97, 32, PATTERN, repeats=1, mlp_width=0, tied=False)
    return model, drawn(model.specs(), 0)


@pytest.mark.parametrize("chain", [True, False])
def test_ragged_calls_are_one_forward(made, chain):
    token = jnp.asarray(np.random.default_rng(1).integers(97, size=(3, 16)))
    laws.cache(*made, token, laws.plan(0, 4, 3, 3, 7), chain=chain)


def test_refused_and_pending_rows(made):
    token = jnp.asarray(np.random.default_rng(1).integers(97, size=(3, 16)))
    laws.untouched(*made, token)
    laws.pending(*made, token, laws.plan(0, 1, 3, 3, 7).parent[0])


def test_documents_are_apart_padding_changes_nothing_and_the_solver_reports(made):
    """Two packed documents, the second behind padding, are two texts. An entry of the report is a layer."""
    model, weights = made
    run = jax.jit(model.forward)
    token = jax.random.randint(jax.random.key(3), (1, 12), 0, 97)
    segment, valid = jnp.asarray([[0] * 5 + [1] * 7]), jnp.ones((1, 12), bool).at[0, 5:7].set(False)
    packed = run(weights, token, segment=segment, valid=valid)
    for at in (slice(0, 5), slice(7, 12)):
        np.testing.assert_allclose(packed.logits[:, at], run(weights, token[:, at]).logits, atol=2e-5)
    assert packed.info.iterations.shape == (2,) and packed.info.iterations[0] == 0 < packed.info.iterations[1]
    assert not packed.info.fell_back.any() and (packed.info.residual < 1e-5).all()


def test_the_block_is_the_papers():
    """Written out in numpy, in float64: projection, convolution, cell, norm before the gate, projection."""
    mixer = ParaRNN(ParaGRU(2, 4), conv=3)
    w = jax.tree.map(lambda a: a[0], drawn(mixer.specs(1, 6, "float32", 0.5), 3))
    x = np.random.default_rng(4).normal(size=(1, 7, 6))
    got, _ = jax.jit(mixer.forward)(w, jnp.asarray(x, jnp.float32), Facts(position=jnp.arange(7)[None]))
    w = jax.tree.map(lambda a: np.asarray(a, np.float64), w)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    silu = lambda a: a * sigmoid(a)
    inner, gate = np.einsum("td,dce->cte", x[0], w.into)
    wide = np.concatenate([np.zeros((2, 8)), inner])
    inner = silu(sum(w.conv[k] * wide[k : k + 7] for k in range(3)))
    bias = w.cell.bias - np.outer([1, 0, 0], np.linspace(0, 1, 8))
    A, h = w.cell.recurrent, np.zeros(8)
    for t in range(7):
        u = np.concatenate(
            [np.einsum("i,ivj->vj", inner[t, 4 * i : 4 * i + 4], w.cell.input[i]) for i in (0, 1)], axis=1
        )
        u = u + bias
        z, r = sigmoid(A[0] * h + u[0]), sigmoid(A[1] * h + u[1])
        h = (1 - z) * h + z * np.tanh(A[2] * h * r + u[2])
        y = h / np.sqrt(np.mean(h**2) + 1e-6) * w.norm * silu(gate[t])
        np.testing.assert_allclose(got[0, t], y @ w.out, atol=2e-6)


def test_a_new_cell_forgets_at_different_rates():
    """`bias` is drawn as zeros, and the first gate starts at -linspace(0, 1, N)."""
    for cell in (ParaGRU(2, 4), ParaLSTM(2, 4)):
        w = jax.tree.map(lambda a: a[0], drawn(cell.specs(1, 6, "float32"), 0))
        u = cell.inputs(w, jnp.zeros((1, 6)))
        np.testing.assert_allclose(u[0], np.outer([1, 0, 0], -np.linspace(0, 1, 8)), atol=1e-7)


def test_states_of_a_narrow_model():
    """A bfloat16 model keeps float32 states of the cell, of one size for any length; its pass is the wide one's."""
    wide, narrow = (RecurrentLM(97, 32, PATTERN[:1], 2, 0, dtype=d) for d in ("float32", "bfloat16"))
    (state,) = narrow.init_cache(2, 64).states
    assert (state.cell.dtype, state.inputs.dtype) == (jnp.float32, jnp.bfloat16)
    shapes = lambda slots: [x.shape for x in jax.tree.leaves(wide.init_cache(2, slots))]
    assert shapes(8) == shapes(4096)
    token, weights = jnp.arange(10)[None], drawn(wide.specs(), 0)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), weights)
    want = jax.jit(wide.forward)(jax.tree.map(lambda a: a.astype(jnp.float32), rounded), token).logits
    got = jax.jit(narrow.forward)(rounded, token).logits
    np.testing.assert_allclose(got, want, atol=0.05 * float(jnp.max(jnp.abs(want))))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Leaking(ParaGRU):
    """Declared diagonal, and its first channel reads the last."""

    def step(self, w, h, u):
        return super().step(w, h, u) + 0.1 * jnp.roll(h, 1, axis=-1)


def test_what_makes_no_layer():
    for cell in (ParaGRU(2, 4), ParaLSTM(2, 4)):
        _try(cell)
    with pytest.raises(InputError, match="declared 'diagonal'.*depends on number"):
        ParaRNN(Leaking(2, 4))
    with pytest.raises(InputError, match="num_heads must be at least 1"):
        ParaCell(0, 4)
    with pytest.raises(InputError, match="num_heads must be a divisor of the width 7"):
        ParaGRU(2, 4).specs(1, 7, "float32")
    with pytest.raises(InputError, match="conv must be at least 0"):
        ParaRNN(conv=-1)
