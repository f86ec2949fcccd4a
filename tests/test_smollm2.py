"""The real model: greedy text equal to transformers' (stored), exactness on real text, the demo's promises."""

from __future__ import annotations

import json

import pytest

from tests.golden.make_greedy import GOLDEN


@pytest.fixture(scope="module")
def golden():
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) == 20
    return rows


@pytest.mark.parametrize(
    ("method", "options", "rows", "least"),
    [
        ("ar", {}, slice(0, 10), 1.0),
        ("medusa", {"num_draft": 7}, slice(10, 20), 1.3),  # with the shipped heads
    ],
)
def test_greedy_text_is_that_of_transformers(smollm2, golden, method, options, rows, least):
    """And every call gives so many tokens."""
    wanted = golden[rows]
    ask = dict(method=method, method_args=options, max_new_tokens=32, batch_size=10)
    results = smollm2.generate([row["prompt"] for row in wanted], **ask)
    for row, result in zip(wanted, results, strict=True):
        assert list(result.token_ids) == row["token_ids"], row["prompt"]
    assert sum(r.new_tokens for r in results) / sum(r.calls for r in results) >= least


@pytest.fixture(scope="module")
def alone(smollm2, golden):
    """Four prompts of about one length, so that few shapes are compiled; plain decoding of each row by itself."""
    prompts = [r["prompt"] for r in golden[:4]]
    ask = dict(max_new_tokens=20, seed=5)
    return prompts, {
        t: [r.token_ids for r in smollm2.generate(prompts, temperature=t, **ask)] for t in (0.0, 0.8)
    }, ask  # fmt: skip


@pytest.mark.parametrize("method", ["prompt_lookup", "jacobi", "lookahead"])
def test_exact_on_real_text(smollm2, alone, method):
    """The same rows in a ragged batch under another method, greedy and sampled: the same tokens."""
    prompts, truth, ask = alone
    for temperature, right in truth.items():
        together = smollm2.generate(prompts, method=method, batch_size=4, temperature=temperature, **ask)
        assert [r.token_ids for r in together] == right
