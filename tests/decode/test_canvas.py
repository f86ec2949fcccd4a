"""The canvas engine: its trace, its rows, its caches, and autoregressive decoding as one of its corners."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.types import OPEN, Prompt
from tests.decode.canvases import LENGTHS, LIMITS, MASK, SLOTS, VOCAB, decode, denoiser, differs, prompts, same

CASES = {  # model, decode options
    "whole": (dict(), dict(block=8)),
    "dual": (dict(), dict(block=8, cache="dual")),
    "prefix": (dict(), dict(block=8, cache="prefix")),
    "block-causal": (dict(block=8), dict(cache="none")),
    "block": (dict(block=8), dict(cache="block")),
    "block, shifted": (dict(block=8, shift=True), dict(cache="block")),
    "sub-block, shifted": (dict(block=8, shift=True), dict(cache="sub_block", block=4)),
    "sub-block, free-running": (dict(block=8), dict(cache="sub_block", block=4, synchronous_blocks=False)),
}


def method(case, names="threshold", options=None, **rest):
    model, how = CASES[case]
    target, params = denoiser(**model)
    return compose(target, names, {"tau": 0.4} if options is None else options, **(how | rest)), params


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


def test_the_trace(case):
    m, params = method(case)
    prompt = prompts()
    state = decode(m, params)
    tokens, at = np.asarray(state.tokens), np.asarray(state.committed_at)
    for b in range(len(LENGTHS)):
        assert (at[b, : LENGTHS[b]] == 0).all() and (tokens[b, : LENGTHS[b]] == prompt.token[b, : LENGTHS[b]]).all()
        new = at[b, LENGTHS[b] : LIMITS[b]]
        assert sorted(set(new.tolist())) == sorted(set(new.tolist()) & set(range(1, int(state.calls[b]) + 1)))
        assert new.max() == state.calls[b] and (at[b, LIMITS[b] :] == OPEN).all()
        assert (tokens[b, : LIMITS[b]] != MASK).all()
    assert np.asarray(state.done).all() and (np.asarray(state.length) == LIMITS).all()
    each = [np.unique(at[b, LENGTHS[b] : LIMITS[b]], return_counts=True)[1].max() for b in range(len(LENGTHS))]
    assert max(each) > 1, "no call committed two tokens: the laws on this decode are empty"
    blocks = (LIMITS - LENGTHS) // (m.region.reach or SLOTS)
    assert (np.asarray(state.calls) > np.maximum(blocks, 1)).all(), "one call a block: nothing stayed open"


def test_a_row_is_the_same_in_any_company(case):
    m, params = method(case)
    key, how = row_keys(0, range(5)), [0.7, 0.0, 1.0, 0.0, 0.9]
    together, prompt = decode(m, params, temperature=how), prompts()
    for order in ([3, 0, 4, 1, 2], [2]):
        ids = np.asarray(order)
        some = Prompt(token=prompt.token[ids], length=prompt.length[ids])
        alone = decode(m, params, some, LIMITS[ids], key=key[ids], temperature=[how[i] for i in order])
        picked = taken(together, ids)
        same(picked, alone)
    text = jnp.arange(SLOTS)[None] < prompt.length[:, None]
    padded = prompt.replace(token=jnp.where(text, prompt.token, 5))
    same(together, decode(m, params, padded, temperature=how))


def taken(state, ids):
    return jax.tree.map(lambda x: x[ids], state.replace(cache=None, key=None))


def test_stream_is_run():
    m, params = method("dual")
    prompt, args = prompts(), (jnp.asarray(LIMITS, jnp.int32), row_keys(0, range(5)), sampling(5))
    shown = list(loop.stream(m, params, loop.start(m, params, prompt, *args, slots=SLOTS, chunk=16)))
    final = loop.snapshot(decode(m, params))
    jax.tree.map(np.testing.assert_array_equal, shown[-1], final)
    for now in shown:
        committed = now.committed_at != OPEN
        assert np.array_equal(now.tokens[committed], final.tokens[committed])
        for b in range(5):
            assert committed[b, : now.length[b]].all(), "length counts an open position"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_blocks_of_one_are_autoregressive_decoding(temperature):
    target, params = denoiser(block=1, shift=True)
    right = decode(speculative(target.base, NoDraft()), params, temperature=temperature)
    never = next(i for i in range(VOCAB) if i not in np.asarray(right.tokens))  # a canvas does not commit on its mask
    target = dataclasses.replace(target, mask_id=never)
    for cache in ("none", "block"):
        same(right, decode(compose(target, "quota", cache=cache), params, temperature=temperature))


@pytest.mark.parametrize(("layers", "options"), [(1, {}), (3, {"shift": True}), (3, {"grid": "prompt"})], ids=str)
def test_the_block_cache_is_exact(layers, options):
    target, params = denoiser(layers, block=8, **options)
    right = decode(compose(target, "threshold", {"tau": 0.4}), params)
    for wait in (True, False):
        found = decode(compose(target, "threshold", {"tau": 0.4}, cache="block", synchronous_blocks=wait), params)
        same(right, found)
        assert (found.stats.queries < right.stats.queries).all()
    whole = decode(compose(target, "threshold", {"tau": 0.4}, cache="sub_block"), params)
    same(right, whole)  # sub-blocks as long as the block


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["dual", "prefix"])
def test_caches_are_exact_for_one_layer_and_not_for_more(cache, shift):
    for layers, wait in ((1, True), (1, False), (3, True)):
        target, params = denoiser(layers, shift=shift)
        right = decode(compose(target, "threshold", {"tau": 0.4}, block=8), params)
        found = decode(
            compose(target, "threshold", {"tau": 0.4}, block=8, cache=cache, synchronous_blocks=wait), params
        )
        if layers == 1:
            same(right, found)
        else:
            assert differs(right, found), "an approximate cache that changes nothing was not used"
        if not wait:  # where rows wait, a cache that recomputes long suffixes may save nothing on so short a canvas
            assert found.stats.queries.sum() < right.stats.queries.sum()


@pytest.mark.parametrize("shift", [False, True])
def test_the_sub_block_cache_is_exact_for_one_layer(shift):
    target, params = denoiser(1, block=8, shift=shift)
    right = decode(compose(target, "threshold", {"tau": 0.4}, block=4), params)
    same(right, decode(compose(target, "threshold", {"tau": 0.4}, block=4, cache="sub_block"), params))


def test_a_prompt_of_exactly_one_block_is_read():
    target, params = denoiser(block=8, shift=True)
    for cache in ("none", "block", "sub_block"):
        m = compose(target, "quota", cache=cache)
        texts = []
        for seed in (0, 1):
            prompt = prompts(lengths=np.asarray([8]), seed=seed)
            texts.append(np.asarray(decode(m, params, prompt, np.asarray([24])).tokens)[0, 8:24])
        assert (texts[0] != texts[1]).sum() > 4, f"cache {cache}: another prompt, the same text"


def test_rows_wait_only_where_asked():
    target, params = denoiser()
    cost = {}
    for wait in (True, False):
        state = decode(
            compose(target, "threshold", {"tau": 0.4}, block=8, cache="dual", synchronous_blocks=wait), params
        )
        cost[wait] = np.asarray(state.stats.queries)
        blocks = -(-(LIMITS - LENGTHS) // 8)
        assert (np.asarray(state.stats.refreshes) == blocks).all(), "one opening call a block"
    assert cost[True].sum() < cost[False].sum()


def test_waiting_costs_little():
    """Eight rows with an opening call each block: at most 1.4 times a row alone, waits counted; free-running, more."""
    target, params = denoiser(shift=False)
    lengths, ends, spent = np.asarray([8, 1, 5, 3, 6, 2, 4, 7]), np.full(8, SLOTS), {}
    prompt = prompts(lengths=lengths)
    for wait in (True, False):
        m = compose(target, "threshold", {"tau": 0.4}, block=8, cache="dual", synchronous_blocks=wait)
        spent[wait] = int(decode(m, params, prompt, ends).stats.queries.sum())
    alone = 0
    for row in range(8):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], prompt)
        alone += int(decode(m, params, one, ends[:1]).stats.queries[0])
    assert 1 < spent[True] / alone <= 1.4 < spent[False] / alone, f"{spent}, and {alone} alone"


def test_rows_stop_at_the_first_end_of_text_and_late_is_last():
    target, params = denoiser()
    free = decode(compose(target, "quota", block=8), params)
    text = np.asarray(free.tokens)
    eos = (int(text[0, 20]), int(text[2, 11]))
    stopped = decode(compose(target, "quota", block=8, eos=eos), params)
    for b in range(5):
        ends = [s for s in range(LENGTHS[b], LIMITS[b]) if text[b, s] in eos]
        wanted = ends[0] + 1 if ends else LIMITS[b]
        assert int(stopped.length[b]) == wanted
        assert np.array_equal(np.asarray(stopped.tokens)[b, :wanted], text[b, :wanted])
    assert (stopped.calls <= free.calls).all() and (stopped.calls < free.calls).any()
    never = np.asarray(decode(compose(target, "quota", block=8, eos=eos, eos_policy="never"), params).tokens)
    assert not any(np.isin(never[b, LENGTHS[b] : LIMITS[b]], eos).any() for b in range(5))
    late = decode(compose(target, "quota", block=8, eos=eos, eos_policy="late"), params)
    at = np.asarray(late.committed_at)
    for b in range(5):
        for s in range(LENGTHS[b], int(late.length[b])):
            if np.asarray(late.tokens)[b, s] in eos:
                block = LENGTHS[b] + (s - LENGTHS[b]) // 8 * 8
                assert at[b, s] == max(at[b, block : min(block + 8, int(late.length[b]))])


@pytest.mark.parametrize("cache", ["block", "dual", "prefix"])
def test_shadow_rows_stay_inside_a_canvas_without_slack(cache):
    """Slots as many as the attention's blocks hold: what a call computes beside the canvas must not reach the cache."""
    target, params = denoiser(2, block=8) if cache == "block" else denoiser(1)  # where these caches are exact
    prompt, limit = prompts(lengths=np.asarray([40, 1, 33, 50, 20])), np.full(5, 64)
    prompt = prompt.replace(token=jnp.pad(prompt.token, ((0, 0), (0, 16)), constant_values=3))
    a, b = (
        decode(compose(target, "wino", {}, block=8, cache=c), params, prompt, limit, slots=64) for c in (cache, "none")
    )
    same(a, b)
    assert np.asarray(a.carry.revised).any(), "nothing was ever taken back"
