"""The diffusion model that paradec ships: small, known to theory, and there without a network."""

from __future__ import annotations

import json

import numpy as np
import pytest

import paradec
from paradec.composition import compose
from paradec.data.lists import OPERATIONS, Lists
from paradec.errors import InputError
from paradec.evals.answers import ask
from paradec.evals.parallelbench import theory
from paradec.io.resolve import PRESETS


@pytest.fixture(scope="module")
def lm():
    return paradec.load("lists", progress=False, check=True)


def test_it_is_small_and_says_where_it_comes_from(lm):
    folder = PRESETS["lists"].model
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    facts = json.loads((folder / "training.json").read_text())
    assert facts["command"] == "python train/masked.py lists" and facts["config"]["seed"] == 0
    assert lm.tokenizer.decode([lm.model.mask_id], special=True) == "<|mask|>"
    assert lm.tokenizer.encode("sort - - D A") == [Lists().words.index(w) for w in ("sort", "-", "-", "D", "A")]


def test_one_position_a_call_is_right(lm):
    source = Lists(rows=400, seed=5)
    answers = ask(compose(lm.model, "quota", vocab_limit=source.symbols), lm.params, source)
    by_operation = np.asarray([source[i]["token"][0] for i in range(len(source))])
    assert len(set(by_operation.tolist())) == len(OPERATIONS)
    assert answers.accuracy >= 0.98


@pytest.mark.parametrize(("operation", "per_call"), [("replace_random", 3), ("shuffle", 2)])
def test_more_a_call_cost_what_theory_says(lm, operation, per_call):
    source = Lists(rows=1500, seed=6, operations=[operation])
    method = compose(lm.model, "quota", {"per_call": per_call, "score": "random"}, vocab_limit=source.symbols)
    answers = ask(method, lm.params, source, temperature=1.0)
    known = theory.accuracy(operation.removesuffix("_random"), 6, per_call)
    assert abs(answers.accuracy - known) < 0.03 + 3 * answers.error


def test_text_in_and_text_out(lm):
    prompts = ["sort - - D A C B F E", "replace_index 2 G A B C D E F"]
    plain, fast = (lm.generate(prompts, method=m, max_new_tokens=6) for m in ("threshold", "threshold+freedave"))
    assert [r.text.split() for r in plain] == [list("ABCDEF"), list("ABGDEF")]
    assert [r.token_ids for r in plain] == [r.token_ids for r in fast]
    with pytest.raises(InputError, match="knows whole words only, and 'please' is none of its 35: A B C"):
        lm.generate("sort - - D please C B F E", method="threshold", max_new_tokens=6)
