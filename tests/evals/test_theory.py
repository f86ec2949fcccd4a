"""The closed forms against enumeration, and against decodes of the exact denoiser."""

import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.evals.parallelbench import theory
from paradec.types import Prompt

RANDOM = ("replace", "shuffle", "insert", "remove")
CARD = {  # (operation, items): total correlation, one-step accuracy, as published to four digits
    ("replace", 4): (0.8630, 0.42188), ("shuffle", 4): (2.3671, 0.09375), ("insert", 4): (2.3468, 0.12288),
    ("remove", 4): (0.4315, 0.75), ("replace", 8): (0.9347, 0.39270), ("shuffle", 8): (6.0309, 0.00240),
    ("insert", 8): (4.4040, 0.02664), ("remove", 8): (1.8150, 0.30762),
}  # fmt: skip


@pytest.mark.parametrize("operation", theory.OPERATIONS)
@pytest.mark.parametrize("items", range(2, 9))
def test_closed_forms_are_the_enumeration(operation, items):
    texts = theory.answers(operation, items)
    correlation, once = theory.total_correlation(texts), theory.one_step_accuracy(texts)
    assert abs(correlation - theory.correlation(operation, items)) < 1e-9
    assert abs(once - theory.accuracy(operation, items, max(texts.shape[1], 1))) < 1e-9
    assert once >= math.exp(-correlation) - 1e-12
    if (operation, items) in CARD:
        assert (round(correlation, 4), round(once, 5)) == CARD[operation, items]


def test_latin_squares_and_shuffles_that_change():
    rows = [np.asarray(p) for p in theory.answers("shuffle", 4)]
    squares = [np.concatenate(s) for s in _squares(rows, [])]
    texts = np.stack(squares)
    assert len(texts) == 576 and round(theory.total_correlation(texts), 4) == 15.8246
    assert abs(theory.one_step_accuracy(texts) - 1.34e-7) < 1e-9
    moved = np.stack([p for p in rows if (p != np.arange(4)).any()])
    assert round(theory.total_correlation(moved), 4) == 2.3980 and round(theory.one_step_accuracy(moved), 5) == 0.09185


def _squares(rows, chosen):
    if len(chosen) == 4:
        yield chosen
    else:
        for row in rows:
            if all((row != other).all() for other in chosen):
                yield from _squares(rows, [*chosen, row])


def test_steps_of_the_card():
    found = {op: [theory.accuracy(op, 8, k) for k in (1, 2, 4, 8)] for op in ("shuffle", "replace")}
    np.testing.assert_allclose(found["shuffle"], [1, 0.2734, 0.0385, 0.0024], atol=5e-5)
    np.testing.assert_allclose(found["replace"], [1, 0.7803, 0.5823, 0.3927], atol=5e-5)
    bounds = {op: [theory.bound(op, 8, k) for k in (1, 2, 4, 8)] for op in ("shuffle", "replace")}
    np.testing.assert_allclose(bounds["shuffle"], [0, 1.2967, 3.2583, 6.0309], atol=5e-5)
    np.testing.assert_allclose(bounds["replace"], [0, 0.2588, 0.5523, 0.9347], atol=5e-5)
    for op in ("shuffle", "replace"):
        assert abs(theory.bound(op, 8, 8) - theory.correlation(op, 8)) < 1e-9
        assert all(a >= math.exp(-b) - 1e-12 for a, b in zip(found[op], bounds[op], strict=True))


def decoded(operation, items, per_calls, decodes, temperature=1.0, names="quota", **options):
    """How many of `decodes` decodes of the exact denoiser are valid, for each number of positions a call."""
    model, texts = theory.table(operation, items)
    rows, length = 250, texts.text.shape[1]
    valid = {tuple(t) for t in np.asarray(texts.text).tolist()}
    prompt = Prompt(token=jnp.zeros((rows, 1), jnp.int32), length=jnp.zeros(rows, jnp.int32))
    right = []
    for k in per_calls:
        rule = {"per_call": k, "score": "random"} if names == "quota" else options
        method, count = compose(model, names, rule), 0
        for first in range(0, decodes, rows):
            keys, limit = row_keys(7, range(first, first + rows)), jnp.full(rows, length)
            how = sampling(rows, temperature=temperature)
            state = loop.start(method, {"target": texts}, prompt, limit, keys, how, slots=length, chunk=8)
            state = loop.run(method, {"target": texts}, state)
            assert int(state.calls.max()) == -(-length // k) or names != "quota"
            count += sum(tuple(t) in valid for t in np.asarray(state.tokens).tolist())
        right.append(count)
    return right


MANY = pytest.mark.skipif("PARADEC_CASES" not in os.environ, reason="takes PARADEC_CASES=1000")
REST = [pytest.param(n, marks=MANY) for n in (5, 6, 7)]
BIG = [4, 8, *REST]


@pytest.mark.parametrize("operation", RANDOM)
@pytest.mark.parametrize("items", BIG)
def test_decodes_of_the_exact_denoiser_are_as_good_as_theory_says(operation, items):
    length = theory.answers(operation, items).shape[1]
    known = [k for k in (1, 2, 4, 8) if k <= length]
    if operation in ("insert", "remove"):
        known = [1, length]
    decodes = int(os.environ.get("PARADEC_CASES", "100")) * 20
    for k, right in zip(known, decoded(operation, items, known, decodes), strict=True):
        p = theory.accuracy(operation, items, k)
        sigma = math.sqrt(decodes * p * (1 - p))
        assert abs(right - decodes * p) <= 3 * sigma, f"{operation} of {items}, {k} a call: {right / decodes}, {p}"


@pytest.mark.parametrize("operation", ["copy", "reverse"])
def test_what_has_one_answer_is_always_right(operation):
    assert decoded(operation, 6, [1, 3, 6], 250) == [250] * 3


def test_greedy_thresholds_fall_off_a_cliff():
    """Every open item of a replacement is 1 - 1/m sure: a bar of .9 is right below 10 items and wrong above."""
    assert decoded("replace", 8, [1], 250, 0.0, "threshold", tau=0.9) == [250]
    assert decoded("replace", 12, [1], 250, 0.0, "threshold", tau=0.9) == [0]
    assert decoded("replace", 12, [1], 250, 0.0, "factor") == [250]
    assert decoded("replace", 12, [1], 250, 0.0, "factor", compat=True) == [0]


def test_bad_input():
    with pytest.raises(ValueError, match="no operation 'swap'"):
        theory.answers("swap", 3)
    with pytest.raises(ValueError, match="an exact table holds"):
        theory.answers("shuffle", 9)
    with pytest.raises(ValueError, match="all 5 at once only"):
        theory.accuracy("insert", 4, 2)
