"""A diffusion model behind `generate`, `stream` and `compare`: the same calls as for any other model."""

import dataclasses
import itertools

import numpy as np
import pytest

import paradec
from paradec.composition import compose
from paradec.errors import InputError
from paradec.models.block_diffusion import BlockDiffusion
from tests.fixtures import write_tiny_model

PROMPTS = ["abc abc abc", "Hello, world", "x"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("diffusion") / "tiny")))


def denoiser(lm, **options):
    model = BlockDiffusion(lm.model, mask_id=0, **options)
    return dataclasses.replace(lm, model=model, decoders={}, components={})


def test_generate_and_its_options(causal):
    lm = denoiser(causal)
    ask = dict(max_new_tokens=12, method="quota", method_args={"per_call": 2, "block": 6}, ignore_eos=True)
    alone = [lm.generate(p, **ask)[0] for p in PROMPTS]
    together = lm.generate(PROMPTS, batch_size=4, **ask)
    for a, b in zip(alone, together, strict=True):
        assert a.token_ids == b.token_ids and a.settled == b.settled and a.calls == b.calls
        assert len(a.token_ids) == 12 and 0 not in a.token_ids and a.finish == "length"
        assert 1 <= min(a.settled) and max(a.settled) == a.calls == 6 and a.tokens_per_call == 2
    fast = lm.generate(PROMPTS, **ask | {"method": "quota+freedave"})
    assert [r.token_ids for r in fast] == [r.token_ids for r in alone]
    assert sum(r.calls for r in fast) < sum(r.calls for r in alone)
    again = lm.generate(PROMPTS, **ask, temperature=0.9, seed=3)
    assert [r.token_ids for r in again] == [r.token_ids for r in lm.generate(PROMPTS, **ask, temperature=0.9, seed=3)]
    assert again[0].token_ids != alone[0].token_ids


def test_blocks_are_filled_and_the_rest_is_cut(causal):
    for grid in ("text", "prompt"):
        lm = denoiser(causal, block=8, grid=grid)
        for cache in ("none", "block"):
            ask = dict(max_new_tokens=11, method="quota", method_args={"cache": cache}, ignore_eos=True)
            (result,) = lm.generate("Hello", **ask)
            assert len(result.token_ids) == 11 and result.calls >= 11


def test_the_end_is_a_border_inside_the_model(causal):
    longest = causal.model.max_length
    for grid, block, prompt in (("text", 8, 5), ("text", 24, 30), ("prompt", 24, 30)):
        lm = denoiser(causal, block=block, grid=grid)
        for new in (1, 11, longest):
            end, first = lm.end(prompt, new), prompt if grid == "prompt" else 0
            assert (end - first) % block == 0 and end <= longest
            assert end >= min(prompt + new, longest - block + 1)
    assert denoiser(causal).end(5, 11) == 16 and causal.end(5, 10**6) == longest


def test_stream_grows(causal):
    lm = denoiser(causal)
    seen = list(lm.stream("Hello", method="quota", max_new_tokens=10, method_args={"block": 5}, ignore_eos=True))
    assert [r.calls for r in seen] == list(range(1, 11))
    lengths = [r.new_tokens for r in seen]
    assert lengths == sorted(lengths) and lengths[-1] == 10
    for before, after in itertools.pairwise(seen):
        assert after.token_ids[: before.new_tokens] == before.token_ids


def test_compare_with_one_position_a_call(causal):
    lm = denoiser(causal)
    report = paradec.compare(lm, PROMPTS, ["threshold", "quota+freedave"], repeats=1, max_new_tokens=8, batch_size=2)
    rows = {e.method: e for e in report.methods}
    assert set(rows) == {"quota", "threshold", "quota+freedave"}
    assert rows["quota+freedave"].exact and rows["quota+freedave"].identical == 3 and not report.broken()
    assert rows["quota+freedave"].calls < rows["quota"].calls and not rows["threshold"].exact
    trace = report.generations["quota"][0].trace()
    assert not trace.ordered or len(set(np.diff(trace.settled))) > 0


def test_what_does_not_fit_is_said(causal):
    lm = denoiser(causal)
    with pytest.raises(InputError, match="is a diffusion model: choose an unmasking rule"):
        lm.generate("Hello", method="ar")
    with pytest.raises(InputError, match="fills a canvas"):
        causal.generate("Hello", method="threshold")
    with pytest.raises(InputError, match="no repetition penalty"):
        lm.generate("Hello", method="quota", repetition=1.2)
    with pytest.raises(InputError, match="both fill the slot"):
        lm.generate("Hello", method="eb+threshold")
    with pytest.raises(InputError, match="at least 1"):
        lm.generate("Hello", method="quota", max_new_tokens=0)


def test_a_stop_string_behind_the_asked_length_is_not_met(causal):
    lm = denoiser(causal, block=8, grid="prompt")
    ask = dict(method="quota", ignore_eos=True)
    whole = lm.generate("Hello", max_new_tokens=8, **ask)[0]
    (short,) = lm.generate("Hello", max_new_tokens=5, **ask)
    behind = whole.text[len(short.text) - 1 :]
    assert behind and behind not in short.text
    for result in (lm.generate("Hello", max_new_tokens=5, stop=behind, **ask)[0], list(
        lm.stream("Hello", max_new_tokens=5, stop=behind, **ask))[-1]):  # fmt: skip
        assert (result.new_tokens, result.text, result.finish) == (5, short.text, "length")


def test_a_prompt_that_leaves_no_whole_block_is_refused(causal):
    for grid in ("text", "prompt"):
        lm = denoiser(causal, block=24, grid=grid)
        longest = lm.model.max_length
        with pytest.raises(InputError, match="no whole block of 24 fits"):
            lm.encode([5] * (longest - 1))
        room = longest - 24 if grid == "prompt" else longest // 24 * 24 - 1
        assert lm.encode([5] * room)
        with pytest.raises(InputError, match="no whole block"):
            lm.encode([5] * (room + 1))


def test_a_composed_method_is_a_method(causal):
    lm = denoiser(causal)
    ask = dict(max_new_tokens=6)
    method = compose(lm.model, "threshold+freedave", {"tau": 0.3}, block=6, vocab_limit=lm.tokenizer.vocab_size)
    (given,) = lm.generate("Hello", method=method, **ask)
    options = {"tau": 0.3, "block": 6}
    (named,) = lm.generate("Hello", method="threshold+freedave", method_args=options, ignore_eos=True, **ask)
    assert (given.method, given.token_ids) == ("threshold+freedave", named.token_ids)
    programs = len(lm.decoders)
    lm.generate("Hello", method=compose(lm.model, "threshold+freedave", {"tau": 0.9}, block=6, vocab_limit=259), **ask)
    assert len(lm.decoders) == programs  # another threshold is a value


def test_what_a_stream_has_shown_stays_where_a_rule_takes_tokens_back(causal):
    lm = denoiser(causal)
    options = {"block": 12, "tau": 0.0, "tau_remask": 0.9}
    ask = dict(method="wino", method_args=options, max_new_tokens=24, ignore_eos=True)
    steps = list(lm.stream("Hello", **ask))
    for before, after in itertools.pairwise(steps):
        assert after.token_ids[: before.new_tokens] == before.token_ids and after.text.startswith(before.text)
    assert 0 < steps[-2].new_tokens < 24 and steps[-1].token_ids == lm.generate("Hello", **ask)[0].token_ids
