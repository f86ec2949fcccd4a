"""Finished text read causally, an open block that sees all of itself: the cache policy "causal" and its truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.canvas_cache import CausalCache, Whole
from paradec.decode.sampling import row_keys, sampling
from paradec.errors import InputError
from paradec.models.block_diffusion import BlockDiffusion
from paradec.ops.mask import Given
from paradec.types import OPEN
from tests.decode.canvases import LENGTHS, LIMITS, MASK, SLOTS, decode, denoiser, differs, prompts, same

BLOCK = 8
ENDS = LENGTHS + (LIMITS - LENGTHS) // BLOCK * BLOCK  # whole blocks from the prompt's end


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CausalText(BlockDiffusion):
    """CausalCache before the open block; what is seen is in the rows' places, so the base needs to know nothing."""

    causal_cache = True


def method(cache=None, **options):
    plain, params = denoiser(block=BLOCK, grid="prompt")
    target = CausalText(plain.base, mask_id=MASK, block=BLOCK, grid="prompt")
    return compose(target, "threshold", {"tau": 0.4}, cache=cache, **options), params


def begun(m, params, turns):
    rows = len(LENGTHS)
    state = loop.start(
        m, params, prompts(), jnp.asarray(ENDS), row_keys(0, range(rows)), sampling(rows), slots=SLOTS, chunk=16
    )
    return loop.run(m, params, state, turns)


def truth(m, params, state):
    """One pass over the canvas under a dense mask, and what it says of each row's open block."""
    at, base = (
        np.arange(SLOTS),
        np.asarray(state.carry.block_start) - (np.asarray(state.carry.block_start) - LENGTHS) % BLOCK,
    )
    causal = at[None, None] <= at[None, :, None]
    block = at[None, None] < base[:, None, None] + BLOCK
    see = np.where(at[None, :, None] < base[:, None, None], causal, block)
    token = np.where(np.asarray(state.committed_at) == OPEN, MASK, np.asarray(state.tokens))
    out = m.target.base.forward(params["target"], jnp.asarray(token), mask=Given(jnp.asarray(see)))
    return np.asarray(out.logits)


def worst(m, params, state, predict):
    """How far a call's logits are from the truth in the open blocks of the rows that take part in it."""
    reply, _, acting = predict(params, state)
    want, off = truth(m, params, state), 0.0
    assert acting.any()
    for b in np.flatnonzero(acting):
        start = int(state.carry.block_start[b])
        size = BLOCK - (start - LENGTHS[b]) % BLOCK
        off = max(off, np.abs(np.asarray(reply.logits[b, :size]) - want[b, start : start + size]).max())
    return off


@pytest.mark.parametrize("cache", ["none", "causal"])
def test_a_call_is_one_pass_under_a_dense_mask(cache):
    m, params = method(cache)
    predict, stages = jax.jit(m.predict), set()
    for turns in (0, 2, 5):
        state = begun(m, params, turns)
        stages |= set(np.asarray(state.carry.fresh)[~np.asarray(state.done)].tolist())
        assert worst(m, params, state, predict) < 2e-4
    assert stages == {True, False}, "both opening and steady calls were looked at"


@pytest.fixture(scope="module")
def whole():
    return decode(*method("none"), limit=ENDS)


@pytest.mark.parametrize("wait", [True, False])
def test_the_cache_changes_no_token(whole, wait):
    m, params = method(synchronous_blocks=wait)
    assert isinstance(m.cache, CausalCache), "it is the default of such a model"
    kept = decode(m, params, limit=ENDS, chunk=1)
    same(whole, kept)
    opened = np.asarray(kept.stats.refreshes)
    assert (opened == (ENDS - LENGTHS) // BLOCK).all() and (np.asarray(kept.calls) > opened).any()
    assert (np.asarray(kept.cache.length) == ENDS - BLOCK).all(), "all but the last block is stored"
    if wait:
        turns = np.asarray(kept.stats.queries) // BLOCK
        assert (np.asarray(kept.stats.queries) % BLOCK == 0).all() and (turns >= kept.calls + opened).all()


def test_a_call_on_an_open_block_leaves_the_cache():
    m, params = method()
    state = begun(m, params, 1)
    assert not np.asarray(state.carry.fresh).all(), "rows that are due wait for the others"
    called = jax.jit(lambda s: m.predict(params, s)[1])(state)
    jax.tree.map(np.testing.assert_array_equal, called.cache, state.cache)


class KeepsTheCanvas(CausalCache):
    """A mutant: keys of the open block are stored too."""

    def opening(self, target, state):
        span = super().opening(target, state)
        return span._replace(store=span.end - span.at, length=span.end)

    def steady(self, target, state, window):
        (span,) = super().steady(target, state, window)
        return (span._replace(new=span.end),)


class NeverReadsAgain(CausalCache):
    """A mutant: the block before is not read again in its final form."""

    def opening(self, target, state):
        span = super().opening(target, state)
        return span._replace(new=jnp.where(state.carry.block_start > state.prompt, state.carry.block_start, span.new))


@pytest.mark.parametrize("mutant", [KeepsTheCanvas, NeverReadsAgain])
def test_mutants_are_seen(whole, mutant):
    m, params = method()
    assert differs(whole, decode(m.replace(cache=mutant()), params, limit=ENDS))


def test_reading_both_ways_is_seen(whole):
    """The same weights, blocks of finished text seen as an ordinary block-causal model sees them."""
    plain, params = denoiser(block=BLOCK, grid="prompt")
    assert differs(whole, decode(compose(plain, "threshold", {"tau": 0.4}, cache="block"), params, limit=ENDS))


def test_who_it_is_for():
    plain, _ = denoiser(block=BLOCK, grid="prompt")
    with pytest.raises(InputError, match="'causal' is for models that read finished text causally"):
        compose(plain, "threshold", cache="causal")
    for cache, words in (("block", "take 'causal'"), ("sub_block", "take 'causal'"), ("dual", "whole canvas")):
        with pytest.raises(InputError, match=words):
            method(cache)
    with pytest.raises(InputError, match="prophet must see the whole canvas; this model reads one block"):
        compose(method()[0].target, "prophet", cache="none")
    assert type(compose(plain, "threshold").cache) is Whole
