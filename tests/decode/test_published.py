"""KLASS, WINO, FreeDave under a prefix cache and drawn tokens take the path of the published procedures, on smooth and
on sharp logits: the same tokens, committed in the same calls, as many calls and as many rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.sampling import NEXT, gumbel, row_keys, sampling
from paradec.types import Prompt
from tests.decode import numpy_dllm, numpy_published
from tests.decode.canvases import MASK, denoiser
from tests.decode.tables import NumpyTables, Tables, draw

SLOTS, BLOCK, V = 32, 8, 12
LENGTHS = (3, 8, 1, 17)
CASES = 24
MODEL = Tables(V)
SHARPNESS = {
    "smooth": dict(scale=3.1, moving=0.04),
    "sharp": dict(scale=25.0, moving=0.2),
    "flooded": dict(scale=5.0, moving=0.2, flood=18.0),  # beyond float32, and within float64
}


def prompts(seed):
    token = np.random.default_rng(seed).integers(V - 1, size=(len(LENGTHS), SLOTS))
    return Prompt(token=jnp.asarray(token, jnp.int32), length=jnp.asarray(LENGTHS, jnp.int32))


def decode(method, table, prompt, keys, temperature=0.0):
    rows = len(LENGTHS)
    limit = jnp.full(rows, SLOTS, jnp.int32)
    how = sampling(rows, temperature=temperature)
    params = {"target": jnp.asarray(table)}
    return loop.run(method, params, loop.start(method, params, prompt, limit, keys, how, slots=SLOTS, chunk=8))


RULES = {
    "klass": ({"tau": 0.6, "kl": 0.05}, lambda *a: numpy_published.klass(*a, tau=0.6, kl=0.05, history=2)),
    "klass of three": (
        {"tau": 0.5, "kl": 0.3, "history": 3},
        lambda *a: numpy_published.klass(*a, tau=0.5, kl=0.3, history=3),
    ),
    "wino": ({"tau": 0.6, "tau_remask": 0.9}, lambda *a: numpy_published.wino(*a, tau=0.6, tau_remask=0.9)),
    "quota": ({"per_call": 2}, lambda *a: numpy_published.quota(*a, per_call=2)),
    "prophet": (
        {"early": 20.0, "mid": 8.0, "late": 2.0},
        lambda *a: numpy_published.prophet(*a, bars=(20.0, 8.0, 2.0), width=5),
    ),
}


@pytest.mark.parametrize("logits", SHARPNESS)
@pytest.mark.parametrize("rule", RULES)
def test_the_path_is_the_published_one(rule, logits):
    options, published = RULES[rule]
    method, parallel = compose(MODEL, rule.split()[0], options, block=BLOCK), 0
    for case in range(CASES):
        table, prompt = draw(case, SLOTS, V, **SHARPNESS[logits]), prompts(case)
        state = decode(method, table, prompt, row_keys(0, range(len(LENGTHS))))
        for b, n in enumerate(LENGTHS):
            text, run = np.asarray(prompt.token)[b, :n], NumpyTables(table).run
            found = published(run, text, SLOTS - n, BLOCK, V - 1)
            same(state, b, n, *found, f"case {case}, row {b}")
            parallel += found[2] < SLOTS - n
    assert parallel, "one position a call proves little"


@pytest.mark.parametrize("logits", ["smooth", "sharp"])
def test_a_drawn_token_is_judged_by_its_own_probability(logits):
    method, keys, parallel = compose(MODEL, "threshold", {"tau": 0.6}, block=BLOCK), row_keys(7, range(len(LENGTHS))), 0
    position = jnp.broadcast_to(jnp.arange(SLOTS, dtype=jnp.int32), (len(LENGTHS), SLOTS))
    noise = np.asarray(gumbel(keys, position, V, NEXT), np.float64)
    for case in range(CASES):
        table, prompt = draw(case, SLOTS, V, **SHARPNESS[logits]), prompts(case)
        state = decode(method, table, prompt, keys, temperature=0.8)
        for b, n in enumerate(LENGTHS):
            text, run = np.asarray(prompt.token)[b, :n], NumpyTables(table).run
            found = numpy_published.threshold_at(run, text, SLOTS - n, BLOCK, V - 1, 0.6, 0.8, noise[b])
            same(state, b, n, *found, f"case {case}, row {b}")
            parallel += found[2] < SLOTS - n
    assert parallel, "one position a call proves little"


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_freedave_under_a_prefix_cache_computes_the_published_rows(sharpness):
    target, params = denoiser(2)
    weights = params["target"].replace(norm=params["target"].norm * sharpness)
    model = numpy_dllm.NumpyTransformer(target.base, weights)
    method = compose(target, "threshold+freedave", {"tau": 0.5, "drafts": 3}, block=BLOCK, cache="prefix")
    saved, key, how = 0, row_keys(0, range(1)), sampling(1)
    for case, n in enumerate((3, 8, 16, 17, 1, 24)):
        text = np.random.default_rng(case).integers(MASK, size=n)
        row = np.zeros((1, SLOTS), np.int32)
        row[0, :n] = text
        prompt = Prompt(token=jnp.asarray(row), length=jnp.asarray([n], jnp.int32))
        limit = jnp.asarray([SLOTS], jnp.int32)
        state = loop.start(method, {"target": weights}, prompt, limit, key, how, slots=SLOTS, chunk=8)
        state = loop.run(method, {"target": weights}, state)
        tokens, when, calls, rows = numpy_published.freedave_prefix(model, text, SLOTS - n, BLOCK, MASK, 0.5, 3)
        same(state, 0, n, tokens, when, calls, rows, f"prompt of {n}")
        plain, _, without = numpy_dllm.generate(
            model, text, SLOTS - n, BLOCK, numpy_dllm.threshold_rule(0.5), MASK, "prefix"
        )
        assert np.array_equal(plain, tokens)
        saved += without - calls
    assert saved > 0, "no draft ever came true"


def test_a_constant_law_is_known_to_be_calm_when_its_block_opens():
    law = np.full(V, np.log(0.01 / (V - 2)), np.float32)
    law[3], law[V - 1] = np.log(0.99), -30.0
    table = np.broadcast_to(law, (13, 2 * SLOTS, V))
    method, prompt = compose(MODEL, "klass", {}, block=BLOCK), prompts(0).replace(length=jnp.zeros(4, jnp.int32))
    state = decode(method, table, prompt, row_keys(0, range(4)))
    assert state.calls.tolist() == [9] * 4, "three calls for the first block, two for each other one"


def test_greedy_positions_are_judged_by_the_model_s_own_law_also_after_temperature():
    table, prompt, keys = draw(0, SLOTS, V, **SHARPNESS["smooth"]), prompts(0), row_keys(0, range(len(LENGTHS)))
    ways = [
        compose(MODEL, "threshold", {"tau": 0.6}, block=BLOCK, temper_confidence=tempered) for tempered in (False, True)
    ]
    greedy, tempered = (decode(method, table, prompt, keys) for method in ways)
    assert np.array_equal(greedy.committed_at, tempered.committed_at)
    drawn = [decode(method, table, prompt, keys, temperature=0.5).calls.tolist() for method in ways]
    assert sum(drawn[1]) < sum(drawn[0]), "half the temperature makes a law surer"


def same(state, b, n, tokens, when, calls, rows, where):
    assert np.array_equal(np.asarray(state.tokens)[b, n:], tokens), f"{where}: tokens"
    assert np.array_equal(np.asarray(state.committed_at)[b, n:], when), f"{where}: order"
    assert int(state.calls[b]) == calls, f"{where}: {state.calls[b]} calls, published {calls}"
    assert int(state.stats.queries[b]) == rows, f"{where}: {state.stats.queries[b]} rows, published {rows}"
