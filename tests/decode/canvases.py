"""Denoisers, canvases and shortcuts that the tests of the canvas engine share."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.posterior import HiddenMarkov, random_chain
from paradec.testing import tiny_transformer
from paradec.types import OPEN, Prompt

VOCAB, MASK, SLOTS = 97, 96, 48
LENGTHS = np.asarray([8, 1, 5, 17, 16])  # 8 and 16 are whole blocks: a prompt that must not be forgotten
LIMITS = np.asarray([48, 40, 48, 32, 48])


@cache
def denoiser(layers=2, seed=1, **options):
    """A random transformer as a denoiser, sharp enough that confidences vary, and its parameters."""
    base, weights = tiny_transformer(seed, num_layers=layers)
    weights = weights.replace(norm=weights.norm * 3.0)
    return BlockDiffusion(base, mask_id=MASK, **options), {"target": weights}


def prompts(vocab=VOCAB - 1, lengths=LENGTHS, seed=0):
    token = np.random.default_rng(seed).integers(vocab, size=(len(lengths), SLOTS))
    return Prompt(token=jnp.asarray(token, jnp.int32), length=jnp.asarray(lengths, jnp.int32))


def decode(method, params, prompt=None, limit=None, *, temperature=0.0, key=None, slots=SLOTS, chunk=16):
    """A finished decode; rows are keyed by their number."""
    prompt = prompts() if prompt is None else prompt
    limit = jnp.asarray(LIMITS if limit is None else limit, jnp.int32)
    rows = len(prompt.length)
    key = row_keys(0, range(rows)) if key is None else key
    how = sampling(rows, temperature=temperature)
    state = loop.start(method, params, prompt, limit, key, how, slots=slots, chunk=chunk)
    return loop.run(method, params, state, OPEN)


@cache
def chain(rows=8, length=32, vocab=12, seed=1, accuracy=0.7):
    """An exact denoiser with evidence, its parameters and the true texts."""
    drawn, text = random_chain(jax.random.key(seed), vocab, rows, length, accuracy=accuracy)
    return HiddenMarkov(vocab, parallel=False), {"target": drawn}, text


STARTS, ENDS = (0, 3, 5, 0, 8, 1, 2, 0), (32, 32, 29, 20, 32, 32, 11, 32)


def on_chain(names, options=None, *, seed=1, accuracy=0.7, **rest):
    """A decode of ragged rows of `chain` by the rules of that name."""
    model, params, text = chain(seed=seed, accuracy=accuracy)
    method = compose(model, names, options, **({"block": 8} | rest))
    prompt = Prompt(token=text, length=jnp.asarray(STARTS, jnp.int32))
    return decode(method, params, prompt, ENDS, slots=32)


def same(a, b, stamps=True):
    """Both decodes committed the same tokens, and, with `stamps`, in the same calls."""
    for row in range(len(a.length)):
        assert int(a.length[row]) == int(b.length[row]), f"row {row} ends at {a.length[row]} and at {b.length[row]}"
        n = int(a.length[row])
        x, y = np.asarray(a.tokens[row, :n]), np.asarray(b.tokens[row, :n])
        assert np.array_equal(x, y), f"row {row}: {x} and {y}"
        if stamps:
            x, y = np.asarray(a.committed_at[row, :n]), np.asarray(b.committed_at[row, :n])
            assert np.array_equal(x, y), f"row {row} commits in calls {x} and {y}"
    if stamps:
        assert np.array_equal(a.calls, b.calls), f"calls {a.calls} and {b.calls}"


def differs(a, b):
    """Whether two decodes differ in tokens or calls: a law between equal programs proves nothing."""
    try:
        same(a, b)
    except AssertionError:
        return True
    return False
