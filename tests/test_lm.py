"""The notebook interface: generate, stream, compare, on a tiny model from a folder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import paradec
from paradec.errors import InputError, UnknownName
from tests.fixtures import write_tiny_model

PROMPTS = ["abc abc abc", "Hello, world", "x", "The list: one two one two"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def plain(lm):
    return lm.generate(PROMPTS, max_new_tokens=20, batch_size=4)


def test_results_are_consistent(plain):
    for r in plain:
        assert r.new_tokens == len(r.token_ids) == len(r.settled) == len(r.pieces) <= 20
        assert r.calls == max(r.settled) == r.new_tokens
        assert r.finish == ("length" if r.new_tokens == 20 else "eos")
        assert "".join(r.pieces) == r.text
        assert r.seconds > 0
    assert len({r.text for r in plain}) == len(plain)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_methods_and_batches_agree(lm, temperature):
    ask = dict(max_new_tokens=20, temperature=temperature, seed=3)
    alone = [r.token_ids for r in lm.generate(PROMPTS, **ask)]
    together = [r.token_ids for r in lm.generate(PROMPTS, batch_size=3, method="prompt_lookup", **ask)]
    assert alone == together


def test_seed_matters_and_repeats(lm):
    ask = dict(max_new_tokens=12, temperature=1.0)
    first = [lm.generate("Hello", seed=s, **ask)[0].token_ids for s in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


def test_stream_grows_into_generate(lm, plain):
    steps = list(lm.stream(PROMPTS[0], max_new_tokens=20, method="prompt_lookup"))
    assert steps[-1].token_ids == plain[0].token_ids
    for a, b in itertools.pairwise(steps):
        assert b.token_ids[: a.new_tokens] == a.token_ids and b.new_tokens > a.new_tokens


@pytest.mark.parametrize("method", ["ar", "prompt_lookup"])
def test_stop_strings_cut_the_same_text_in_every_method(lm, plain, method):
    stop = plain[1].text[5:8]
    assert stop and stop in plain[1].text
    (r,) = lm.generate([PROMPTS[1]], method=method, max_new_tokens=20, stop=(stop,))
    assert r.finish == "stop"
    assert r.text == plain[1].text[: plain[1].text.index(stop)]
    assert r.token_ids == plain[1].token_ids[: r.new_tokens]


def test_token_ids_are_prompts_too(lm, plain):
    ids = lm.encode(PROMPTS[2])
    assert lm.generate(ids, max_new_tokens=20)[0].token_ids == plain[2].token_ids
    assert lm.generate([ids], max_new_tokens=20)[0].token_ids == plain[2].token_ids


def test_text_ends_at_the_context(lm):
    ids = [5] * 508
    (r,) = lm.generate([ids], max_new_tokens=100, ignore_eos=True)
    assert r.new_tokens == 4 and r.finish == "length"


@pytest.mark.parametrize(
    ("prompt", "request_", "hint"),
    [
        ("", {}, "empty"),
        ("  \n", {}, "empty"),
        ([], {}, "no prompts|no tokens|empty"),
        ([[1, 2, 100_000]], {}, "outside the vocabulary"),
        ([[-1]], {}, "outside the vocabulary"),
        ("y" * 600, {}, "reads at most"),
        ("y", {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ("y", {"temperature": -1.0}, "temperature"),
        ("y", {"temperature": float("nan")}, "temperature"),
        ("y", {"top_p": 0.0}, "top_p"),
        ("y", {"batch_size": 0}, "batch_size"),
        ("y", {"seed": -1}, "seed"),
        ("y", {"stop": ("",)}, "stop string"),
    ],
)
def test_bad_requests_say_what_to_do(lm, prompt, request_, hint):
    with pytest.raises(InputError, match=hint):
        lm.generate(prompt, **request_)


def test_unknown_method_and_option(lm):
    with pytest.raises(UnknownName, match="jacobi"):
        lm.generate("y", method="jakobi")
    with pytest.raises(UnknownName, match="window"):
        lm.generate("y", method="jacobi", method_args={"windows": 3})


@pytest.mark.slow
def test_a_draft_model_may_be_the_first_layers(lm, plain):
    rows = lm.generate(
        PROMPTS, method="draft_model", method_args={"draft": "layers:1"}, max_new_tokens=20, batch_size=4
    )
    assert [r.token_ids for r in rows] == [r.token_ids for r in plain]
    whole = lm.generate(
        PROMPTS, method="draft_model", method_args={"draft": "layers:2"}, max_new_tokens=20, batch_size=4
    )
    assert [r.token_ids for r in whole] == [r.token_ids for r in plain]
    assert max(r.calls for r in whole) == 4  # the draft is the target: five tokens a call
    with pytest.raises(InputError, match="from 1 to 2"):
        lm.generate("y", method="draft_model", method_args={"draft": "layers:3"})


def test_compare_counts_and_agrees(lm, plain):
    report = paradec.compare(lm, PROMPTS, ["prompt_lookup", "jacobi"], max_new_tokens=20, batch_size=3, repeats=2)
    assert [e.method for e in report.methods] == ["ar", "prompt_lookup", "jacobi"]
    for e in report.methods:
        assert (e.identical, e.total, e.first_divergence) == (4, 4, None)
        assert e.new_tokens == sum(r.new_tokens for r in plain)
        assert len(e.speedups) == 2 and e.seconds > 0
    ar, lookup, jacobi = report.methods
    assert ar.speedup == 1.0 and ar.calls == ar.new_tokens and ar.queries_per_call == 1.0
    assert jacobi.queries_per_call == 9.0 and len(jacobi.acceptance_by_depth) == 8
    assert lookup.calls <= ar.calls
    assert not report.broken()


def test_compare_finds_a_divergence(lm, monkeypatch):
    """A method that is declared exact and is not must be named, with the place."""
    runner = lm.decoder
    from paradec import catalog

    def lossy(ask, options=None):
        return runner(ask, {"accept": "typical"} if ask.method == "jacobi" else options)

    monkeypatch.setattr(lm, "decoder", lossy)
    assert catalog.promises("jacobi", {}, 2.0)
    report = paradec.compare(lm, PROMPTS, ["jacobi"], max_new_tokens=20, temperature=2.0, repeats=1)
    (broken,) = report.broken()
    where = broken.first_divergence
    assert broken.method == "jacobi" and broken.identical < 4
    a, b = (report.generations[m][where["row"]].token_ids for m in ("ar", "jacobi"))
    at = where["position"]
    assert a[:at] == b[:at] and a[at : at + 1] != b[at : at + 1]
    assert where["top2_gap"] >= 0


def test_rows_are_keyed_by_their_number_not_their_batch(lm):
    ask = dict(max_new_tokens=10, temperature=1.0)
    both = [r.token_ids for r in lm.generate(["same", "same"], **ask)]
    assert both[0] != both[1]
    assert both == [r.token_ids for r in lm.generate(["same", "same"], batch_size=2, **ask)]
    assert np.all(np.asarray(both[0]) >= 0)
