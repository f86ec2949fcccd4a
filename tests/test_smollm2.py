"""The real model: greedy text equal to transformers' (stored), exactness on real text, the demo's promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "smollm2_greedy.json"


@pytest.fixture(scope="module")
def golden():
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) == 20
    return rows


@pytest.mark.parametrize("method", ["ar", "prompt_lookup"])
def test_greedy_text_is_that_of_transformers(smollm2, golden, method):
    results = smollm2.generate([r["prompt"] for r in golden], method=method, max_new_tokens=32, batch_size=10)
    for row, result in zip(golden, results, strict=True):
        assert list(result.token_ids) == row["token_ids"], row["prompt"]
    assert sum(r.calls for r in results) <= sum(r.new_tokens for r in results)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["prompt_lookup", "jacobi", "lookahead"])
def test_exact_on_real_text(smollm2, golden, method, temperature):
    """A row alone under plain decoding, and the same rows in ragged batches under another method: the same tokens."""
    prompts = [r["prompt"] for r in golden[:6]]
    ask = dict(max_new_tokens=24, temperature=temperature, seed=5)
    alone = [r.token_ids for r in smollm2.generate(prompts, method="ar", **ask)]
    together = smollm2.generate(prompts, method=method, batch_size=3, **ask)
    assert [r.token_ids for r in together] == alone
