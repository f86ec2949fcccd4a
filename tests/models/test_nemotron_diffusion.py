"""Nemotron-Labs-Diffusion: two passes of one set of weights, and the one cache under both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.speculative import speculative
from paradec.errors import InputError
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.models.transformer import Transformer
from paradec.testing import model_laws, tiny_transformer
from paradec.types import Place, Rows
from tests.decode.canvases import LENGTHS, LIMITS, SLOTS, decode, differs, prompts
from tests.decode.nemotron import dense, nemotron, prefill, same_cache

BLOCK = 4
TOKEN = jnp.asarray(np.random.default_rng(0).integers(96, size=(3, 24)), jnp.int32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ByRow(Transformer):
    """A mutant: queries grow with the row of the call, as in training code that sees a sequence twice."""

    def _angles(self, position):
        row = jnp.broadcast_to(jnp.arange(position.shape[1])[None], position.shape)
        return (*super()._angles(position)[:2], super()._angles(row)[2])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CommitsBothWays(NemotronDiffusion):
    """A mutant: a finished block sees all of itself when it is read again."""

    def extend(self, params, cache, rows, pending=None, taps=(), live=None):
        if (place := rows.place) is not None:
            end = place.position + self.block - (place.position - place.block_start[:, None]) % self.block
            rows = rows.replace(place=place.replace(sees=jnp.maximum(place.sees, end)))
        return super().extend(params, cache, rows, pending, taps, live)


def cached(model, params, chain):
    model_laws.cache(model, params["target"], TOKEN, model_laws.plan(1, 7, 3, 3, 6), chain=chain)


@pytest.mark.parametrize("chain", [True, False])
def test_the_causal_pass_in_pieces_is_forward(chain):
    cached(*nemotron(BLOCK), chain)


def test_queries_that_grow_by_the_row_are_seen():
    with pytest.raises(AssertionError, match="away from forward"):
        cached(*nemotron(BLOCK, kind=ByRow), True)


def test_no_row_of_either_pass_says_the_mask_token():
    model, params = nemotron(BLOCK)
    start = jnp.full(3, 8)
    for logits in (model.forward(params["target"], TOKEN).logits, dense(model, params, TOKEN, start, start + BLOCK)):
        assert (logits[..., model.mask_id] == -jnp.inf).all()
        assert np.isfinite(np.asarray(logits[..., : model.mask_id])).all()


def canvas(model, params, cut, size, sees_end, first):
    """Logits of `size` rows from position `cut` on a cache of what stands before; those before `first` are causal."""
    cache = prefill(model, params, TOKEN, jnp.full(3, cut), 64)
    position = jnp.broadcast_to(cut + jnp.arange(size)[None], (3, size))
    sees = jnp.where(position < first, position + 1, sees_end)
    place = Place(position=position, sees=sees, fresh=jnp.ones(position.shape, bool), block_start=jnp.full(3, first))
    return model.extend(params["target"], cache, Rows.canvas(TOKEN[:, cut : cut + size], place))


def test_an_open_block_is_what_a_dense_mask_says():
    """Also in one call with the finished block before it, whose rows are those of the causal pass."""
    model, params = nemotron(BLOCK)
    want = dense(model, params, TOKEN, jnp.full(3, 16), jnp.full(3, 20))
    alone, _ = canvas(model, params, 16, BLOCK, 20, 16)
    both, delta = canvas(model, params, 12, 2 * BLOCK, 20, 16)
    np.testing.assert_allclose(alone.logits[..., :96], want[:, 16:20, :96], atol=1e-4)
    np.testing.assert_allclose(both.logits[..., :96], want[:, 12:20, :96], atol=1e-4)
    assert np.abs(want - model.forward(params["target"], TOKEN).logits)[:, 16:20, :96].max() > 0.1, "it is causal"
    stored = model.store(
        prefill(model, params, TOKEN, jnp.full(3, 12), 64), delta, *(jnp.full(3, n) for n in (12, 4, 16))
    )
    same_cache(stored, prefill(model, params, TOKEN, jnp.full(3, 16), 64))


def test_finished_text_is_blind_to_the_open_block_and_blocks_to_later_ones():
    """Clean tokens of a block do not change the logits of the blocks before it, nor of its own noisy rows."""
    model, params = nemotron(BLOCK)
    alone, _ = canvas(model, params, 12, BLOCK, 16, 12)
    with_later, _ = canvas(model, params, 12, 2 * BLOCK, 16, 12)  # rows behind position 16 stand there too
    np.testing.assert_allclose(alone.logits[..., :96], with_later.logits[:, :BLOCK, :96], atol=1e-5)


def committed(model, params):
    """A canvas decode, and the caches that it leaves and that a prefill of the same text makes."""
    state = decode(compose(model, "threshold", {"tau": 0.3}), params, limit=LENGTHS + 4 * BLOCK)
    assert (np.asarray(state.stats.refreshes) == 4).all()
    return state, prefill(model, params, state.tokens, state.cache.length, state.cache.k.shape[3])


def test_committing_blocks_is_a_prefill_of_the_same_text():
    state, want = committed(*nemotron(BLOCK))
    assert (np.asarray(state.cache.length) == LENGTHS + 3 * BLOCK).all(), "the last block is never stored"
    same_cache(state.cache, want)


def test_a_commit_that_reads_both_ways_is_seen():
    state, want = committed(*nemotron(BLOCK, model=CommitsBothWays))
    with pytest.raises(AssertionError, match="row"):
        same_cache(state.cache, want)


def test_the_prefix_engine_goes_on_where_the_canvas_stopped():
    """One cache: plain decoding of a text that a canvas began equals plain decoding of it from a prompt."""
    model, params = nemotron(BLOCK)
    begun, _ = committed(model, params)
    method = speculative(model, NoDraft())
    length = begun.cache.length + 1
    prompt = prompts().replace(token=begun.tokens, length=length)
    limit = jnp.minimum(length + 6, SLOTS)
    right = decode(method, params, prompt, limit)
    state = method.init(params, prompt, limit, right.key, right.sampling, SLOTS).replace(cache=begun.cache)
    step = jax.jit(method.step)
    for _ in range(6):
        state = step(params, state)
    np.testing.assert_array_equal(state.tokens, right.tokens)


def test_blocks_of_one_are_not_plain_decoding():
    """A row of an open block predicts its own token, a causal row the next: another alignment, another text."""
    model, params = nemotron(1)
    plain = decode(speculative(model, NoDraft()), params)
    assert differs(plain, decode(compose(model, "quota", {"score": "position"}), params))
    assert (np.asarray(plain.length) == LIMITS).all()


def test_who_cannot_be_one():
    base, _ = tiny_transformer()
    with pytest.raises(InputError, match="outside the vocabulary"):
        NemotronDiffusion(base, mask_id=97)
    with pytest.raises(InputError, match="1 token or more; 0"):
        NemotronDiffusion(base, mask_id=96, block=0)
    with pytest.raises(InputError, match="sliding"):
        NemotronDiffusion(dataclasses.replace(base, window=4), mask_id=96)
