"""Nemotron-Labs-Diffusion's block denoising by vLLM's three policies, against a loop in NumPy: every canvas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode.sampling import NEXT, gumbel, row_keys
from paradec.decode.unmasking.threshold import Threshold
from tests.decode.canvases import SLOTS, decode, differs, prompts
from tests.decode.nemotron import dense, nemotron

BLOCK, STEPS, TAU = 6, 4, 0.3
LENGTHS = np.asarray([8, 1, 17])
LIMITS = LENGTHS + [24, 15, 18]  # the second row's last block is cut short
HOT = [0.0, 0.8, 0.8]


def confidence_threshold(log_p, masked, left):
    best = max(np.flatnonzero(masked), key=lambda i: (log_p[i], -i))
    return [i for i in np.flatnonzero(masked) if left == 1 or i == best or log_p[i] >= math.log(TAU)]


def low_confidence(log_p, masked, left):
    order = sorted(np.flatnonzero(masked), key=lambda i: (-log_p[i], i))
    return order[: math.ceil(masked.sum() / left)]


def leftmost(log_p, masked, left):
    return np.flatnonzero(masked)[: math.ceil(masked.sum() / left)]


POLICIES = {  # the loop's rule, ours, our options, and which of them is the number of steps
    "confidence_threshold": (confidence_threshold, "threshold", {"tau": TAU}, "max_steps"),
    "low_confidence": (low_confidence, "quota", {}, "steps"),
    "leftmost": (leftmost, "quota", {"score": "position"}, "steps"),
}


def loop(model, params, prompt, limit, key, policy, steps, temperature):
    """Each step's canvas of one row, from its published procedure: text, block by block, one full pass a step."""
    text, canvases = list(prompt), []
    noise = np.asarray(gumbel(key, jnp.arange(SLOTS)[None], model.vocab_size, NEXT))[0]
    while len(text) < limit:
        at = np.arange(len(text), min(len(text) + model.block, limit))
        block, step = np.full(len(at), model.mask_id), 0
        while (masked := block == model.mask_id).any():
            token = np.zeros((1, SLOTS), np.int32)
            token[0, : at[-1] + 1] = [*text, *block]
            logits = dense(model, params, token, jnp.asarray(at[:1]), jnp.asarray(at[-1:] + 1))
            logits = np.asarray(logits[0], np.float64)[at]
            assert (logits[:, model.mask_id] == -np.inf).all()
            proposed = np.argmax(logits + temperature * noise[at], axis=-1)
            log_p = logits[np.arange(len(at)), proposed] - np.log(np.exp(logits).sum(-1))
            for i in policy(log_p, masked, max(steps - step, 1)):
                block[i] = proposed[i]
            step += 1
            canvases.append([*text, *block])
        text += list(block)
    return canvases


def compared(policy, rule, options, steps, temperature):
    """A decode of ragged rows, each of whose canvases was seen to be the loop's."""
    model, params = nemotron(BLOCK)
    key, prompt = row_keys(0, range(3)), prompts(lengths=LENGTHS)
    method = compose(model, rule, options)
    state = decode(method, params, prompt, LIMITS, temperature=temperature, key=key)
    tokens, at = np.asarray(state.tokens), np.asarray(state.committed_at)
    for b, (n, end) in enumerate(zip(LENGTHS, LIMITS, strict=True)):
        row = np.asarray(prompt.token)[b, :n]
        canvases = loop(model, params, row, end, key[b : b + 1], policy, steps, temperature[b])
        assert int(state.calls[b]) == len(canvases), f"row {b}: {state.calls[b]} calls, {len(canvases)} denoising steps"
        for call, canvas in enumerate(canvases, start=1):
            mine = np.where(at[b] <= call, tokens[b], model.mask_id)[: len(canvas)]
            np.testing.assert_array_equal(mine, canvas, err_msg=f"row {b}, after call {call}")
    return state


@pytest.mark.parametrize("steps", [STEPS, BLOCK])
@pytest.mark.parametrize("name", POLICIES)
def test_every_canvas_is_that_of_the_published_loop(name, steps):
    """Calls are the denoising steps alone: vLLM spends one more forward a block, in which it is committed; here the
    opening call of the next block commits it."""
    policy, rule, options, key = POLICIES[name]
    state = compared(policy, rule, options | {key: steps}, steps, HOT)
    blocks = -(-(LIMITS - LENGTHS) // BLOCK)
    calls, new = np.asarray(state.calls), LIMITS - LENGTHS
    np.testing.assert_array_equal(state.stats.refreshes, blocks)
    if name != "confidence_threshold" and steps == BLOCK:
        np.testing.assert_array_equal(calls, new)
    else:
        assert (calls < new).any() and (calls <= steps * blocks).all()


def test_the_last_step_commits_what_the_threshold_left():
    """Without `max_steps` some block takes longer; so the law above looked at forced commitment."""
    model, params = nemotron(BLOCK)
    prompt = prompts(lengths=LENGTHS)
    free, cut = (
        decode(compose(model, "threshold", {"tau": TAU, "max_steps": n}), params, prompt, LIMITS) for n in (0, STEPS)
    )
    assert differs(free, cut) and (np.asarray(free.calls) > np.asarray(cut.calls)).any()


def test_leftmost_goes_from_left_to_right_and_low_confidence_does_not():
    model, params = nemotron(BLOCK)
    for options, ordered in (({"score": "position"}, True), ({}, False)):
        method = compose(model, "quota", options | {"steps": STEPS})
        at = np.asarray(decode(method, params, prompts(lengths=LENGTHS), LIMITS).committed_at)
        assert all((np.diff(at[b, LENGTHS[b] : LIMITS[b]]) >= 0).all() for b in range(3)) is ordered


def test_steps_are_a_value():
    assert jax.tree.structure(Threshold.of(max_steps=3)) == jax.tree.structure(Threshold.of(max_steps=5))
    with pytest.raises(ValueError, match="max_steps is 0"):
        Threshold.of(max_steps=-1)
