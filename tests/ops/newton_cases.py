"""Cells of every structure for tests of Newton's method, and what they are run on."""

import jax
import jax.numpy as jnp
import numpy as np

from paradec.models.cells.para import ParaWeights
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.para_lstm import ParaLSTM

GRU, LSTM = ParaGRU(2, 4), ParaLSTM(2, 4)
T, B, N = 50, 2, 8


def dense(w, h, u):
    """A gated dense cell; `w` is "2 n n"."""
    z = jax.nn.sigmoid(h @ w[0] + u[..., 0, :])
    return (1 - z) * h + z * jnp.tanh(h @ w[1] + u[..., 1, :])


CELLS = {"diagonal": GRU.step, "block": LSTM.step, "dense": dense}


def case(structure, gain=1.0, steps=T, seed=0):
    """Weights, inputs and a first state, of which the gradient is wanted."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, h0 = draw(steps, B, 3, N), draw(B, N) / 2
    if structure == "dense":
        return gain * draw(2, N, N) / N**0.5, x[:, :, :2], h0
    block = structure == "block"
    scale = gain * 0.35
    w = ParaWeights(scale * draw(3, N), scale * draw(2, N) if block else None, None, None)
    return w, x, ((h0, draw(B, N) / 2) if block else h0)
