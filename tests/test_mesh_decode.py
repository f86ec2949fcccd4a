"""The mesh law: eight devices decode the tokens of one, and no device ever gets another's part of the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import mesh, params
from paradec.decode import loop, sampling
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.speculative import speculative
from paradec.explain import hlo
from paradec.testing import ragged_prompts, tiny_transformer

MODEL, WEIGHTS = tiny_transformer(vocab_size=96)
OTHER = tiny_transformer(seed=1, vocab_size=96)[1]
PARAMS = {
    "target": WEIGHTS,
    "draft": jax.tree.map(lambda a, b: jax.device_put(0.9 * np.asarray(a) + 0.1 * np.asarray(b)), WEIGHTS, OTHER),
}
PROMPT = ragged_prompts(0, MODEL.vocab_size, (21, 1, 2, 13, 17, 3, 8, 5))
DRAFTERS = {
    "ar": NoDraft(),
    "prompt_lookup": PromptLookup(num_draft=4, min_ngram=1),
    "jacobi": Jacobi(window=4),
    "draft_model": DraftModel(model=MODEL, num_draft=3),
}


def started(drafter, weights, rows=8):
    """A method and its state before the first step, for the first rows of the prompt; every second row samples."""
    method, prompt = speculative(MODEL, drafter), jax.tree.map(lambda x: x[:rows], PROMPT)
    keys, law = sampling.row_keys(0, range(rows)), sampling.sampling(rows, [0.8 * (row % 2) for row in range(rows)])
    return method, loop.start(method, weights, prompt, prompt.length + 24, keys, law, slots=48, chunk=16)


@pytest.fixture(scope="module")
def alone():
    """What one device generates with plain decoding: all methods here are exact."""
    method, state = started(NoDraft(), PARAMS)
    state = loop.run(method, PARAMS, state)
    tokens = np.asarray(state.tokens)
    assert min(len(set(row[:length])) for row, length in zip(tokens, state.length, strict=True)) > 8
    return tokens


def on_mesh(drafter, rules, rows=8):
    """The finished state of a decode on 4 × 2 devices, and the program that ran."""
    grid = mesh.make_mesh(4, 2)
    weights = jax.device_put(PARAMS, {name: params.shardings(MODEL.specs(), grid, rules) for name in PARAMS})
    with mesh.use(grid, rules):
        method, state = started(drafter, weights, rows)
        program = loop.run.lower(method, weights, state, jnp.int32(1000)).compile()
        return program(method, weights, state, jnp.int32(1000)), program


@pytest.mark.parametrize("name", DRAFTERS)
def test_eight_devices_equal_one(name, alone):
    state, program = on_mesh(DRAFTERS[name], mesh.TENSOR)
    np.testing.assert_array_equal(np.asarray(state.tokens), alone)
    assert state.cache.k.sharding.shard_shape(state.cache.k.shape) == (2, 2, 1, 128, 8)
    caches = [x for x in jax.tree.leaves((state.cache, state.carry)) if x.ndim == 5]
    module = hlo.Module(program.as_text())
    assert not hlo.moves(module, [(x.sharding.shard_shape(x.shape), x.shape) for x in caches])
    rows, nodes = 8, DRAFTERS[name].nodes
    widest = max(hlo.collectives(module), key=lambda c: c.bytes)
    assert widest.bytes <= 4 * rows * nodes * MODEL.width, widest  # activations, never a cache or the vocabulary


@pytest.mark.parametrize("rules", [mesh.REPLICATED, mesh.FSDP], ids=["replicated", "fsdp"])
def test_other_rules_give_the_same_tokens(rules, alone):
    state, _ = on_mesh(DRAFTERS["ar"], rules)
    np.testing.assert_array_equal(np.asarray(state.tokens), alone)


def test_a_batch_that_does_not_divide_is_kept_whole(alone):
    state, _ = on_mesh(DRAFTERS["ar"], mesh.TENSOR, rows=3)
    assert state.tokens.sharding.is_fully_replicated
    np.testing.assert_array_equal(np.asarray(state.tokens), alone[:3])


def test_forward_on_a_mesh_is_forward():
    grid = mesh.make_mesh(4, 2)
    token = ragged_prompts(1, MODEL.vocab_size, (20,) * 4, width=20).token
    forward = jax.jit(lambda w, t: MODEL.forward(w, t).logits)
    with mesh.use(grid, mesh.FSDP):
        placed = jax.device_put(WEIGHTS, params.shardings(MODEL.specs(), grid, mesh.FSDP))
        together = forward(placed, token)
    assert together.sharding.shard_shape(together.shape)[0] == 1  # rows stay split, although the weights' width is too
    np.testing.assert_allclose(np.asarray(together), np.asarray(forward(WEIGHTS, token)), rtol=2e-5, atol=2e-5)
