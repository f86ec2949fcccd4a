"""The rule of DiffusionGemma: its loop written out in NumPy, and what holds whatever the model."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.canvas_cache import CausalCache
from paradec.decode.sampling import NEXT, NOISE, gumbel, integers, row_keys, sampling
from paradec.decode.unmasking.eb import bounded
from paradec.decode.unmasking.renoise import Past, Renoise
from paradec.errors import InputError
from paradec.models.posterior import JointTable, JointTexts
from paradec.types import OPEN, Prompt
from tests.decode.canvases import decode, denoiser, differs, same
from tests.diffusion_gemma import calm, fixture
from tests.models.test_diffusion_gemma import Passes

BLOCK, SLOTS, VOCAB = 6, 32, 64
LENGTHS = np.asarray([7, 1, 3, 12])
ENDS = LENGTHS + BLOCK * np.asarray([3, 2, 3, 1])
RULE = {"steps": 7, "gamma": 2.0, "t_min": 0.4, "t_max": 0.8, "stability": 1, "confidence": 1.5}


def method(options=None, **engine):
    model, weights = calm()
    return compose(model, "renoise", RULE | (options or {}), **engine), {"target": weights}


def texts():
    token = np.random.default_rng(3).integers(2, VOCAB, size=(len(LENGTHS), 16))
    return Prompt(token=jnp.asarray(token, jnp.int32), length=jnp.asarray(LENGTHS, jnp.int32))


def decoded(options=None, prompt=None, ends=ENDS, key=None, **engine):
    m, params = method(options, **engine)
    return decode(m, params, texts() if prompt is None else prompt, ends, slots=SLOTS, key=key)


# The published loop for one row, from its own description: no engine, no cache policy, no state.


def entropy(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)


def published(prompt, blocks, key, rule, eos=()):
    """Text, calls of each block and every canvas that a call was shown."""
    model, weights = calm()
    passes = Passes(model, weights)
    text, fed, calls, shown, call = list(prompt), 0, [], [], 0
    for _ in range(blocks):
        passes.read(text[fed:])
        at, fed = jnp.arange(len(text), len(text) + BLOCK)[None], len(text)
        x = np.asarray(integers(key, at, VOCAB, NOISE))[0]
        told, past, count = None, [], 0
        for left in range(rule["steps"], 0, -1):
            shown.append(x)
            heat = rule["t_min"] + (rule["t_max"] - rule["t_min"]) * left / rule["steps"]
            z = passes.canvas(x, jnp.zeros((1, BLOCK, 32)) if told is None else told) / heat
            told, z = model.soften(weights, z), np.asarray(z[0], np.float64)
            call, count = call + 1, count + 1
            keyed = jax.vmap(jax.random.fold_in)(key, jnp.asarray([call]))
            drawn = (z + np.asarray(gumbel(keyed, at, VOCAB, NEXT))[0]).argmax(-1)
            nats, guess = entropy(z), z.argmax(-1)
            order = np.argsort(nats, kind="stable")
            kept = np.zeros(BLOCK, bool)
            kept[order] = np.cumsum(nats[order]) - nats[order] <= rule["gamma"]
            x = np.where(kept, drawn, np.asarray(integers(keyed, at, VOCAB, NOISE))[0])
            stable = rule["stability"] == 0 or (
                len(past) >= rule["stability"] and all((g == guess).all() for g in past[-rule["stability"] :])
            )
            past.append(guess)
            if stable and nats.mean() < rule["confidence"]:
                break
        text, calls = text + guess.tolist(), [*calls, count]
        if ends := [i for i in range(fed, len(text)) if text[i] in eos]:
            return text[: ends[0] + 1], calls, shown
    return text, calls, shown


@cache
def together():
    return decoded()


@pytest.mark.parametrize("changes", [{}, {"stability": 2, "gamma": 5.0}, {"stability": 0, "confidence": 1.0}])
def test_texts_and_calls_of_the_loop_written_out(changes):
    state, keys = decoded(changes), row_keys(0, range(len(LENGTHS)))
    stops = []
    for b, prompt in enumerate(np.asarray(texts().token)):
        blocks = (ENDS[b] - LENGTHS[b]) // BLOCK
        text, calls, _ = published(prompt[: LENGTHS[b]].tolist(), blocks, keys[b : b + 1], RULE | changes)
        assert state.tokens[b, : len(text)].tolist() == text and int(state.length[b]) == len(text)
        assert int(state.calls[b]) == sum(calls)
        at = state.committed_at[b, LENGTHS[b] : len(text)]
        assert at.tolist() == np.repeat(np.cumsum(calls), BLOCK).tolist(), "blocks are committed whole"
        stops += calls
    assert len(set(stops)) > 1 and min(stops) < RULE["steps"], "some blocks stopped early: the rule was tried"


def test_every_canvas_of_the_loop_written_out():
    """Row by row and call by call: what the model was shown."""
    m, params = method()
    rows, keys = len(LENGTHS), row_keys(0, range(len(LENGTHS)))
    state = loop.start(m, params, texts(), jnp.asarray(ENDS), keys, sampling(rows), slots=SLOTS, chunk=16)
    wanted = [
        published(np.asarray(texts().token)[b, :n].tolist(), (ENDS[b] - n) // BLOCK, keys[b : b + 1], RULE)[2]
        for b, n in enumerate(LENGTHS)
    ]
    changed = np.zeros((rows, SLOTS), int)
    while not loop.finished(state):
        before, start, calls = np.asarray(state.tokens), np.asarray(state.carry.block_start), np.asarray(state.calls)
        assert (np.asarray(state.committed_at)[np.arange(SLOTS)[None] >= start[:, None]] == OPEN).all()
        for b in np.flatnonzero(~np.asarray(state.done)):
            assert before[b, start[b] : start[b] + BLOCK].tolist() == wanted[b][calls[b]].tolist()
        state = loop.run(m, params, state, 1)
        still = np.asarray(state.committed_at) == OPEN
        changed += still & (np.asarray(state.tokens) != before)
    np.testing.assert_array_equal(state.carry.revised, changed)
    assert changed.max() > 2


def test_a_row_alone_is_the_row_in_its_batch():
    prompt, state = texts(), together().replace(cache=None, key=None)
    for b in (0, 2):
        row = slice(b, b + 1)
        one = Prompt(token=prompt.token[row], length=prompt.length[row])
        alone = decoded(prompt=one, ends=ENDS[row], key=row_keys(0, [b]))
        same(jax.tree.map(lambda x, row=row: x[row], state), alone)


def test_the_cache_changes_nothing():
    m, _ = method()
    assert isinstance(m.cache, CausalCache)
    same(together(), decoded(cache="none"))
    same(together(), decoded(synchronous_blocks=False))


def test_half_of_the_digits():
    """In bfloat16 too every type fits, and what is written are tokens that depend on what was read."""
    model, weights = calm()
    narrow = dataclasses.replace(model, dtype="bfloat16")
    kept = jax.tree.map(lambda s: s.dtype, narrow.specs(), is_leaf=lambda s: hasattr(s, "init"))
    m = compose(narrow, "renoise", RULE)
    state = decode(
        m, {"target": jax.tree.map(lambda x, dtype: x.astype(dtype), weights, kept)}, texts(), ENDS, slots=32
    )
    assert state.carry.condition.dtype == jnp.bfloat16 and state.cache.full.k.dtype == jnp.bfloat16
    assert np.asarray(state.done).all() and (np.asarray(state.length) == ENDS).all()
    new = np.concatenate([state.tokens[b, n : ENDS[b]] for b, n in enumerate(LENGTHS)])
    old = np.concatenate([together().tokens[b, n : ENDS[b]] for b, n in enumerate(LENGTHS)])
    assert (new == old).mean() > 0.3, "far more than chance, 1 in 64"


def test_another_seed_is_another_text():
    assert differs(together(), decoded(key=row_keys(1, range(len(LENGTHS)))))


def test_the_end_of_a_text_is_looked_for_in_what_is_written():
    """Not in the noise: an end that only a canvas showed does not end the row."""
    free = np.asarray(together().tokens)
    eos = [int(free[0, LENGTHS[0] + 8]), int(free[1, LENGTHS[1] + 1])]
    state, noise = decoded(eos=eos), []
    keys = row_keys(0, range(len(LENGTHS)))
    for b, n in enumerate(LENGTHS):
        blocks = (ENDS[b] - n) // BLOCK
        text, calls, shown = published(np.asarray(texts().token)[b, :n].tolist(), blocks, keys[b : b + 1], RULE, eos)
        assert state.tokens[b, : int(state.length[b])].tolist() == text and int(state.calls[b]) == sum(calls)
        noise += shown
    assert (np.asarray(state.length) < ENDS).sum() >= 2
    assert np.isin(np.concatenate(noise), eos).any(), "an end stood in the noise somewhere"


def test_the_entropy_of_a_law_that_is_computed_anew():
    """Compiled, a quotient may be computed once for its maximum and once more inside a sum, rounded otherwise."""
    state = together()
    m, params = method()
    reply = jax.jit(lambda s: m.predict(params, s.replace(done=jnp.zeros_like(s.done)))[0])(state)
    view = m.look(state, reply)
    found = jax.jit(lambda v, heat: v.replace(law=v.logits / heat).entropy)(view, jnp.float32(0.7))
    np.testing.assert_allclose(found, entropy(np.asarray(view.logits, np.float64) / np.float32(0.7)), rtol=1e-4)


# What is kept together.


def joint_entropy(text, weight, positions):
    """Of the tokens at these positions, in nats, from the list of all texts."""
    _, which = np.unique(text[:, positions], axis=0, return_inverse=True)
    p = np.bincount(which.ravel(), weights=weight)
    return -(p[p > 0] * np.log(p[p > 0])).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.6, 1e6])
def test_what_is_kept_tells_of_each_other_no_more_than_the_bound(gamma):
    """On exact laws: marginal entropies of the kept, less their joint one, is what drawing them apart loses."""
    model, text = JointTable(3), np.stack(np.meshgrid(*[range(3)] * 5), axis=-1).reshape(-1, 5)
    masks, among = jnp.full((1, 5), 3), jnp.ones((1, 5), bool)

    @jax.jit
    def kept(weight):
        law = jnp.log(model.marginals(JointTexts(text=jnp.asarray(text, jnp.int32), weight=weight), masks))
        nats = -jnp.sum(jnp.exp(law) * law, axis=-1)
        return nats[0], bounded(nats, among, jnp.float32(gamma))[0]

    sizes, lost = set(), []
    for seed in range(25):
        weight = np.random.default_rng(seed).gamma(0.006, size=len(text)) + 1e-6
        weight /= weight.sum()
        nats, held = map(np.asarray, kept(jnp.asarray(weight, jnp.float32)))
        chosen = np.flatnonzero(held)
        spent = nats[chosen].sum() - nats[chosen].max()
        loss = nats[chosen].sum() - joint_entropy(text, weight, chosen)
        assert -1e-4 < loss <= spent + 1e-4 and spent <= gamma + 1e-6
        rest = np.sort(nats[~held])
        assert not len(rest) or (rest[0] >= nats[chosen].max() and nats[chosen].sum() > gamma), "one more fits"
        sizes, lost = sizes | {len(chosen)}, [*lost, loss]
    assert sizes == ({1} if gamma == 0 else {5} if gamma == 1e6 else sizes) and (len(sizes) > 1) is (0 < gamma < 9)
    assert gamma == 0 or max(lost) > 0.1, "the kept depend on each other, so the bound was tried"


# Limits of the rule.


def test_temperatures_fall_from_the_first_call_to_the_last():
    rule = Renoise.of(steps=4, t_min=0.4, t_max=0.8)
    heat = [float(rule.heat(Past(jnp.asarray([s]), jnp.zeros((1, 1, 1))), jnp.asarray([False]))[0]) for s in range(4)]
    np.testing.assert_allclose(heat, [0.8, 0.7, 0.6, 0.5])
    assert float(rule.heat(Past(jnp.asarray([3]), jnp.zeros((1, 1, 1))), jnp.asarray([True]))[0]) == np.float32(0.8)


def test_one_step_is_the_likeliest_token_everywhere():
    """What is written never depends on what was drawn in the same call."""
    state = decoded({"steps": 1})
    assert (np.asarray(state.calls) == (ENDS - LENGTHS) // BLOCK).all()
    same(state, decoded({"steps": 1, "gamma": 0.0}))
    assert differs(decoded({"steps": 2}), decoded({"steps": 2, "gamma": 0.0})), "with two steps it does"


@pytest.mark.parametrize(
    ("names", "options", "engine", "words"),
    [
        ("quota", {}, {}, "this model has none: take renoise"),
        ("renoise+freedave", {}, {}, "freedave cannot guess the noise"),
        ("renoise+credit", {}, {}, "credit rewrites logits"),
        ("renoise", {}, {"block": 3}, "told of its whole block of 6"),
        ("renoise+prophet", {}, {"cache": "none"}, "must see the whole canvas"),
        ("renoise", {"steps": 0}, {}, "steps >= 1"),
        ("renoise", {"t_max": 0.0}, {}, "t_max above 0"),
        ("renoise", {"gamma": float("nan")}, {}, "gamma"),
        ("renoise", {}, {"cache": "dual"}, "whole canvas"),
    ],
)
def test_what_does_not_fit(names, options, engine, words):
    with pytest.raises(InputError, match=words):
        compose(fixture()[0], names, options, **engine)


def test_a_model_with_a_mask_is_shown_no_noise():
    with pytest.raises(InputError, match="trained with a mask"):
        compose(denoiser()[0], "renoise", block=8)
