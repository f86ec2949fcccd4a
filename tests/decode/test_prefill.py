"""A prompt is read alike in chunks of any length, up to the last slot of the canvas and beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.models.block_diffusion import BlockDiffusion
from paradec.testing import ragged_prompts, tiny_recurrence, tiny_transformer

VOCAB, SLOTS, LENGTHS = 97, 300, (290, 257, 3)


def causal(make, drafter=lambda model: NoDraft()):
    model, weights = make()
    return speculative(model, drafter(model)), {"target": weights, "draft": weights}


def diffusion(cache):
    base, weights = tiny_transformer(max_length=512)
    return compose(BlockDiffusion(base, mask_id=0, block=4), "quota", block=4, cache=cache), {"target": weights}


METHODS = {
    "transformer": lambda: causal(tiny_transformer),
    "recurrence": lambda: causal(tiny_recurrence),
    "draft model": lambda: causal(tiny_transformer, lambda model: DraftModel(model=model, num_draft=3)),
    "block diffusion": lambda: diffusion("block"),
}


@pytest.mark.parametrize("name", METHODS)
def test_chunks_of_any_length_give_the_same_text(name):
    method, params = METHODS[name]()
    prompt = ragged_prompts(2, VOCAB, LENGTHS, width=SLOTS)
    rows, texts = len(LENGTHS), {}
    limit = jnp.minimum(prompt.length + 10, SLOTS) // 4 * 4
    for chunk in (8, 256):  # the second window of 256 ends behind the cache
        keys, greedy = row_keys(0, range(rows)), sampling(rows)
        state = loop.start(method, params, prompt, limit, keys, greedy, slots=SLOTS, chunk=chunk)
        texts[chunk] = np.asarray(loop.run(method, params, state).tokens)
    np.testing.assert_array_equal(texts[256], texts[8])


def test_chunks_of_any_length_leave_the_same_cache():
    model, weights = tiny_transformer()
    method, prompt = speculative(model, NoDraft()), ragged_prompts(2, VOCAB, LENGTHS, width=SLOTS)
    read = lambda chunk: loop.start(
        method, {"target": weights}, prompt, prompt.length + 1, row_keys(0, range(3)), sampling(3), slots=SLOTS,
        chunk=chunk,
    ).cache  # fmt: skip
    pieces = read(8)
    for chunk in (256, 400):  # 400 is longer than the whole cache
        for a, b in zip(jax.tree.leaves(read(chunk)), jax.tree.leaves(pieces), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
