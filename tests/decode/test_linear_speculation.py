"""Linear self-speculation: what it drafts, what its steps keep, and that it is plain decoding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import struct
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.linear_speculation import LinearSpeculation
from paradec.decode.sampling import sampling
from paradec.decode.speculative import Speculative, speculative
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.testing import laws, ragged_prompts
from paradec.types import Place, Rows
from tests.decode.nemotron import dense, nemotron, prefill, same_cache

VOCAB = 9  # so few that drafts of random weights are right now and then, and every number of them is accepted
BLOCK = 4
PROMPT = ragged_prompts(1, VOCAB - 1, width=128)


def small(**options):
    return nemotron(BLOCK, VOCAB, **options)


@pytest.fixture(scope="module")
def states():
    model, params = small()
    return laws.exactness(model, params, speculative(model, LinearSpeculation(model)), PROMPT)


def test_it_is_plain_decoding(states):
    """Greedy, sampled, filtered, penalised, to the end of text, at limits and in a full canvas, row by row."""
    for name, state in states.items():
        new, calls = np.asarray(state.length - state.prompt), np.asarray(state.calls)
        assert calls.sum() < new.sum(), f"{name}: no draft was ever accepted, so the law is empty"


def test_steps_commit_one_token_to_a_whole_block(states):
    greedy = states["greedy"]
    at, length, prompt = (np.asarray(x) for x in (greedy.committed_at, greedy.length, greedy.prompt))
    sizes = np.concatenate([np.unique(at[b, prompt[b] : length[b]], return_counts=True)[1] for b in range(len(at))])
    assert set(sizes) == set(range(1, BLOCK + 1))
    np.testing.assert_array_equal(greedy.stats.drafts, greedy.calls)
    np.testing.assert_array_equal(greedy.stats.queries, BLOCK * greedy.calls)


def test_the_cache_is_a_prefill_of_the_text(states):
    """Whatever was drafted and refused on it."""
    model, params = small()
    state = states["sampled at 0.8"]
    same_cache(state.cache, prefill(model, params, state.tokens, state.length - 1, state.cache.k.shape[3]), atol=1e-4)


def drafted(drafter, params):
    """The drafts of a state, and what a dense pass over text and masks says of the same positions."""
    model, length = drafter.base, PROMPT.length
    state = laws.loop.start(
        speculative(model, drafter),
        params,
        PROMPT,
        length + 9,
        laws.row_keys(0, range(5)),
        sampling(5),
        slots=128,
        chunk=8,
    )
    tree, _ = jax.jit(drafter.propose)(params, state)
    at = jnp.arange(PROMPT.token.shape[1])[None]
    token = jnp.where(at < length[:, None], PROMPT.token, model.mask_id)
    logits = dense(model, params, token, length - 1, length - 1 + drafter.size)
    wanted = jnp.argmax(
        jnp.take_along_axis(logits, (length[:, None] + jnp.arange(drafter.depth)[None])[..., None], 1), -1
    )
    return np.asarray(tree.token[:, 1:]), np.asarray(wanted)


@pytest.mark.parametrize("block", [0, 9])
def test_drafts_are_the_argmax_of_a_denoised_block(block):
    """A row of a mask predicts the token at its own position."""
    model, params = nemotron(BLOCK)
    got, wanted = drafted(LinearSpeculation(model, block), params)
    assert got.shape == (5, (block or BLOCK) - 1) and len(np.unique(wanted)) > 3
    np.testing.assert_array_equal(got, wanted)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shifted(NemotronDiffusion):
    """A mutant: a row of an open block is read as the prediction of the token after it."""

    def extend(self, params, cache, rows, *rest, **options):
        return super().extend(
            params, cache, rows.replace(read=None if rows.read is None else rows.read - 1), *rest, **options
        )


def test_a_shift_in_the_denoiser_is_seen():
    got, wanted = drafted(LinearSpeculation(nemotron(BLOCK, model=Shifted)[0]), nemotron(BLOCK)[1])
    assert (got != wanted).any(axis=1).sum() > 2


@struct.dataclass
class DraftIsKept(Speculative):
    """A mutant: the keys that go to the cache are those of the denoising call."""

    def score(self, params: Any, state: Any, tree: Any) -> Any:
        scored, _, width = super().score(params, state, tree)
        position = state.length[:, None] - 1 + jnp.arange(tree.token.shape[1])[None]
        end = jnp.broadcast_to(position[:, -1:] + 1, position.shape)
        place = Place(position=position, sees=end, fresh=jnp.ones(position.shape, bool))
        _, delta = self.target.extend(params["target"], state.cache, Rows.canvas(tree.token, place))
        return scored, delta, width


def test_a_draft_that_writes_the_cache_is_seen():
    model, params = small()
    right = speculative(model, LinearSpeculation(model))
    wrong = DraftIsKept(right.target, right.drafter, right.accept, right.eos)
    state = laws.decode(params, wrong, PROMPT)
    with pytest.raises(AssertionError, match="the target's forward says"):
        laws.exact(model, params, wrong, state)
    with pytest.raises(AssertionError, match="row"):
        same_cache(state.cache, prefill(model, params, state.tokens, state.length - 1, state.cache.k.shape[3]))


def test_blocks_of_one_are_plain_decoding():
    """No call of the denoiser, and one token a step; blocks of one *denoised* would be another text."""
    model, params = small()
    one = laws.decode(params, speculative(model, LinearSpeculation(model, 1)), PROMPT)
    plain = laws.decode(params, speculative(model, NoDraft()), PROMPT)
    laws.same(one, plain, [(b, b) for b in range(5)])
    assert not np.asarray(one.stats.drafts).any()
