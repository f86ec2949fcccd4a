"""Recurrences by kernel, interpreted: against `lax.scan` of the same pointwise function, differentiated by jax."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from paradec.errors import InputError
from paradec.models.cells.gru import GRU
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.slstm import SLSTM
from paradec.ops.kernels import recurrent
from tests.ops.kernels import agree, random

T, N, B, D = 7, 2, 3, 4
CHUNKS = (("steps", 3),)  # three chunks, the last of one step


def plain(cell, facts=(None, None), clip=None):
    """One step after the other; the gradient that reaches h through R is bounded by hand."""
    reset, valid = (jnp.full((T, B), n == 1) if x is None else x for n, x in enumerate(facts))

    @jax.custom_vjp
    def bounded(h):
        return h

    bounded.defvjp(lambda h: (h, None), lambda _, g: (g if clip is None else jnp.clip(g, -clip, clip),))

    def run(wx, r, b, first):
        def step(states, each):
            x, reset, valid = each
            old = tuple(jnp.where(reset[None, :, None], 0.0, s) for s in states)
            ry = jnp.einsum("nbd,nde->nbe", bounded(old[0]).astype(r.dtype), r, preferred_element_type=jnp.float32)
            gates, raw = cell.gates, []
            for g in range(gates.bias):
                late = g - gates.bias + gates.input
                raw.append(b[g] + (ry[..., g * D : (g + 1) * D] if g < gates.recurrent else 0.0))
                raw[g] = raw[g] + (x[..., late * D : (late + 1) * D].astype(jnp.float32) if late >= 0 else 0.0)
            new = cell.pointwise(old, tuple(raw))
            new = tuple(jnp.where(valid[None, :, None], x, y) for x, y in zip(new, old, strict=True))
            return new, new

        return lax.scan(step, first, (wx, reset, valid))[1]

    return run


def inputs(cell, dtype=jnp.float32):
    gates = cell.gates
    first = tuple(0.0 * random((N, B, D)) if isinstance(cell, SLSTM) else random((N, B, D), seed=4 + i)
                  for i in range(cell.states))  # fmt: skip
    r = random((N, D, gates.recurrent * D), dtype, 2, 0.5)
    return random((T, N, B, gates.input * D), dtype, 1), r, random((gates.bias, N, 1, D), seed=3), first


FACTS = (jax.random.bernoulli(jax.random.key(1), 0.3, (T, B)), jax.random.bernoulli(jax.random.key(2), 0.7, (T, B)))
CASES = {
    "lstm, resets and gaps": (LSTM(N, D), FACTS, None, "float32"),
    "gru, bounded gradient": (GRU(N, D), (None, None), 0.1, "float32"),
    "slstm, bfloat16": (SLSTM(N, D), (None, None), None, "bfloat16"),
}


@pytest.mark.parametrize(("cell", "facts", "clip", "dtype"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_scan(cell, facts, clip, dtype):
    kernel = lambda wx, r, b, first: recurrent.recur(cell, 1, clip, wx, r, b, first, facts, blocks=CHUNKS)
    rtol = 1e-5 if dtype == "float32" else 2e-2  # gates' cotangents are rounded before they meet R, on both sides
    agree(kernel, plain(cell, facts, clip), *inputs(cell, jnp.dtype(dtype)), rtol=rtol)


def test_refusals_are_sentences():
    lstm = LSTM(1, 2048)
    assert recurrent.refusal(lstm, (64, 1, 8, 4 * 512), jnp.bfloat16, "tpu") is None
    assert "64 MiB and do not fit" in recurrent.refusal(lstm, (64, 1, 8, 4 * 2048), jnp.float32, "tpu")
    assert "only on TPUs" in recurrent.refusal(lstm, (64, 1, 8, 512), jnp.float32, "gpu")
    assert "no float64" in recurrent.refusal(lstm, (64, 1, 8, 512), jnp.float64, "tpu")
    with pytest.raises(InputError, match="no empty arrays"):
        recurrent.recur(
            LSTM(1, 4), 1, None, jnp.zeros((0, 1, 2, 16)), jnp.zeros((1, 4, 16)), jnp.zeros((4, 1, 1, 4)), ()
        )
