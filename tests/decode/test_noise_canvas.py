"""Uniform diffusion on the canvas engine: no mask token, open positions hold noise that every call draws anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from paradec import struct
from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.canvas import Canvas
from paradec.decode.sampling import ORDER, row_keys, sampling, uniform
from paradec.models.block_diffusion import BlockDiffusion
from paradec.types import OPEN, Prompt
from tests.decode.canvases import LENGTHS, LIMITS, SLOTS, VOCAB, decode, denoiser, differs, prompts


@dataclasses.dataclass(frozen=True)
class Maskless(BlockDiffusion):
    """A denoiser that is shown whatever stands at open positions."""

    mask_id: None = None

    def __post_init__(self):
        pass


@struct.dataclass
class FromNoise(Canvas):
    """A canvas on which every call reads new noise: keyed by the row's own calls, or it would return the same."""

    def init(self, *args):
        return noised(Canvas.init(self, *args))

    def transition(self, state, reply):
        return noised(Canvas.transition(self, state, reply))


def noised(state):
    at = lax.broadcasted_iota(jnp.int32, state.tokens.shape, 1)
    drawn = uniform(jax.vmap(jax.random.fold_in)(state.key, state.calls), at, ORDER) * VOCAB
    return state.replace(tokens=jnp.where(state.committed_at == OPEN, drawn.astype(jnp.int32), state.tokens))


def method():
    model, params = denoiser()
    made = compose(model, "threshold", {"tau": 0.2}, block=8)
    parts = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return FromNoise(**parts | {"target": Maskless(model.base)}), params


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_alone_is_the_row_in_its_batch(temperature):
    m, params = method()
    together = decode(m, params, temperature=temperature)
    assert together.done.all() and (together.calls < LIMITS - LENGTHS).any()
    every = prompts()
    for row in range(len(LENGTHS)):
        prompt = Prompt(token=every.token[row : row + 1], length=every.length[row : row + 1])
        alone = decode(m, params, prompt, LIMITS[row : row + 1], temperature=temperature, key=row_keys(0, [row]))
        n = int(alone.length[0])
        assert int(alone.calls[0]) == int(together.calls[row])
        for a, b in ((alone.tokens, together.tokens), (alone.committed_at, together.committed_at)):
            np.testing.assert_array_equal(a[0, :n], b[row, :n])


def test_committed_tokens_stay_and_noise_does_not():
    m, params = method()
    how, limit = sampling(len(LENGTHS)), jnp.asarray(LIMITS, jnp.int32)
    state = loop.start(m, params, prompts(), limit, row_keys(0, range(len(LENGTHS))), how, slots=SLOTS, chunk=16)
    changed = stayed = 0
    for _ in range(4):
        before, was = np.asarray(state.tokens), np.asarray(state.committed_at)
        state = loop.run(m, params, state, 1)
        after, now = np.asarray(state.tokens), np.asarray(state.committed_at)
        committed, open_ = was != OPEN, now == OPEN
        assert (after[committed] == before[committed]).all() and (now[committed] == was[committed]).all()
        stayed, changed = stayed + committed.sum(), changed + (after[open_] != before[open_]).mean()
    assert stayed > LENGTHS.sum() and changed / 4 > 0.9


def test_the_model_reads_the_noise():
    """With masks, and with other noise, it answers otherwise."""
    m, params = method()
    first = decode(m, params)
    assert differs(first, decode(m.replace(target=denoiser()[0]), params))
    assert differs(first, decode(m, params, key=row_keys(1, range(len(LENGTHS)))))
