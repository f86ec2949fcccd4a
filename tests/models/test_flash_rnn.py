"""FlashRNN layers: their ragged passes on chains and trees are their forward, states are float32 and of one size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError
from paradec.models.cells.elman import Elman
from paradec.models.cells.gru import GRU
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.slstm import SLSTM
from paradec.models.flash_rnn import FlashRNN
from paradec.models.recurrent import RecurrentLM
from paradec.testing import model_laws as laws
from paradec.testing.tiny import drawn

PATTERN = tuple(FlashRNN(cell(2, 8)) for cell in (Elman, LSTM, GRU, SLSTM))


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


def test_documents_are_apart_and_padding_changes_nothing(made):
    """Two packed documents, the second behind padding, are two texts."""
    model, weights = made
    run = jax.jit(model.forward)
    token = jax.random.randint(jax.random.key(3), (1, 12), 0, 97)
    segment, valid = jnp.asarray([[0] * 5 + [1] * 7]), jnp.ones((1, 12), bool).at[0, 5:7].set(False)
    packed = run(weights, token, segment=segment, valid=valid).logits
    alone = [run(weights, part).logits for part in (token[:, :5], token[:, 7:])]
    np.testing.assert_allclose(packed[:, :5], alone[0], atol=2e-5)
    np.testing.assert_allclose(packed[:, 7:], alone[1], atol=2e-5)


def test_states_of_a_narrow_model():
    """A bfloat16 model keeps float32 states, of one size for any length; its pass is the float32 one's, rounded."""
    wide, narrow = (RecurrentLM(97, 32, PATTERN[1:2], 2, 0, dtype=d) for d in ("float32", "bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(narrow.init_cache(2, 64).states)} == {jnp.dtype("float32")}
    shapes = lambda slots: [x.shape for x in jax.tree.leaves(wide.init_cache(2, slots))]
    assert shapes(8) == shapes(4096)
    token, weights = jnp.arange(10)[None], drawn(wide.specs(), 0)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    a, b = jax.jit(wide.forward)(weights, token).logits, jax.jit(narrow.forward)(rounded, token).logits
    assert 1e-4 < float(jnp.abs(a - b).max()) < 0.1 * float(jnp.abs(a).max())


def test_sizes_that_are_none():
    with pytest.raises(InputError, match="head_dim must be at least 1"):
        LSTM(2, 0)
