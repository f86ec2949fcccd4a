"""The notebook interface: generate, stream, compare, on a tiny model from a folder."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paradec
from paradec import components, params
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
    from paradec import composition

    def lossy(ask, options=None):
        return runner(ask, {"accept": "typical"} if ask.method == "jacobi" else options)

    monkeypatch.setattr(type(lm), "decoder", lambda self, ask, options=None: lossy(ask, options))
    assert composition.promises("jacobi", {}, 2.0)
    report = paradec.compare(lm, PROMPTS, ["jacobi"], max_new_tokens=20, temperature=2.0, repeats=1, batch_size=4)
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


def louder(lm, seed):
    """Other weights of the same shapes."""
    model = lm.model
    return params.init(model.specs(), jax.random.key(seed))


def test_other_weights_are_used_at_once(lm):
    ask = dict(max_new_tokens=8, method="prompt_lookup", ignore_eos=True)
    own = dataclasses.replace(lm)
    before, programs = own.generate("Hello", **ask)[0], len(own.decoders)
    other = dataclasses.replace(own, params=louder(lm, 7))
    after = other.generate("Hello", **ask)[0]
    assert after.token_ids != before.token_ids
    assert own.generate("Hello", **ask)[0].token_ids == before.token_ids
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.params = other.params
    assert len(own.decoders) == programs  # nothing was compiled for them


def test_parts_follow_the_weights(lm):
    own = dataclasses.replace(lm, components={})
    first = components.opened(own, "draft", "layers:1").params
    assert components.opened(own, "draft", "layers:1").params is first
    other = dataclasses.replace(own, params=louder(lm, 7))  # with the same store of what was opened
    np.testing.assert_array_equal(components.opened(other, "draft", "layers:1").params.embed, other.params.embed)
    assert components.opened(other, "draft", "layers:1").params is not first


def test_a_value_compiles_nothing(lm):
    own = dataclasses.replace(lm, decoders={})
    ask = dict(max_new_tokens=4, ignore_eos=True, temperature=0.7)
    own.generate("Hello", seed=1, **ask)
    programs = len(own.decoders)
    own.generate("Hello", seed=2, **ask | {"temperature": 0.0})
    assert len(own.decoders) == programs == 2  # the prompt's and the loop's


def test_inside_a_mesh_after_outside(lm, plain):
    from paradec import mesh

    ask = dict(max_new_tokens=20, batch_size=4)
    with mesh.use(mesh.make_mesh(2, 1)):
        inside = lm.generate(PROMPTS, **ask)
    assert [r.token_ids for r in inside] == [r.token_ids for r in plain]
    assert [r.token_ids for r in lm.generate(PROMPTS, **ask)] == [r.token_ids for r in plain]


def test_what_a_stream_has_shown_stays(lm, plain):
    """Also where a stop string begins, and where a token is a part of a character."""
    stop = plain[1].text[5:9]
    for request in ({"stop": stop}, {"stop": (stop, "\0never")}, {}):
        steps = list(lm.stream(PROMPTS[1], max_new_tokens=20, **request))
        for a, b in itertools.pairwise(steps):
            assert b.text.startswith(a.text), (a.text, b.text)
        assert all("".join(s.pieces) == s.text for s in steps)
    whole = lm.generate(PROMPTS[1], max_new_tokens=20, stop=stop)[0]
    shown = list(lm.stream(PROMPTS[1], max_new_tokens=20, stop=stop))[-1]
    assert (shown.text, shown.token_ids, shown.finish) == (whole.text, whole.token_ids, "stop")
    assert "".join(whole.pieces) == whole.text


def test_one_string_is_one_string_and_a_wrong_name_an_error(lm):
    few = dict(max_new_tokens=2, repeats=0)
    report = paradec.compare(lm, "Hello", "jacobi", **few)
    assert report.settings["prompts"] == 1 and [e.method for e in report.methods] == ["ar", "jacobi"]
    with pytest.raises(UnknownName, match="Did you mean 'jacobi'"):
        paradec.compare(lm, ["Hello"], ["jacobi"], method_args={"jacbi": {"window": 3}}, **few)
    with pytest.raises(UnknownName, match="max_new_tokens"):
        lm.generate("Hello", max_new_token=3)
    for bad in ([], ["jacobi", 3]):
        with pytest.raises(InputError):
            paradec.compare(lm, bad, ["jacobi"], **few)
    for repeats in (-1, True, 2**31 - 1):
        with pytest.raises(InputError, match="repeats"):
            paradec.compare(lm, "Hello", ["jacobi"], max_new_tokens=2, repeats=repeats)
    for options in ({"jacobi": {"window": 2.5}}, {"jacobi": {"window": "3"}}):
        with pytest.raises(InputError, match="window"):
            paradec.compare(lm, "Hello", ["jacobi"], method_args=options, **few)


def test_a_stream_that_would_not_end_is_refused(lm):
    for every in (0, -1, True):
        with pytest.raises(InputError, match="every"):
            lm.stream("Hello", every=every)


def test_no_more_rows_than_prompts(lm, plain):
    ask = dict(max_new_tokens=20, batch_size=10**6)
    assert [r.token_ids for r in lm.generate(PROMPTS, **ask)] == [r.token_ids for r in plain]
    big = dataclasses.replace(lm, model=dataclasses.replace(lm.model, max_length=2**30))
    with pytest.raises(InputError, match="lower batch_size or max_new_tokens"):
        big.generate("Hello", max_new_tokens=2**29)


def test_a_model_is_shown_in_a_line(lm):
    assert len(repr(lm)) < 120 and "\n" not in repr(lm) and "Transformer" in repr(lm)


def test_without_a_chat_template_raw_is_named(lm, plain):
    tokenizer = copy.copy(lm.tokenizer)
    tokenizer.chat_template = None
    base = dataclasses.replace(lm, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"raw=True \(--raw"):
        base.generate("Hello")
    assert base.generate("Hello", raw=True, max_new_tokens=2)


def test_a_method_built_by_hand(lm, plain):
    method = paradec.build("jacobi", lm.model, lm.tokenizer.eos_ids, window=3)
    (r,) = lm.generate(PROMPTS[0], method=method, max_new_tokens=20)
    assert (r.method, r.token_ids) == ("jacobi", plain[0].token_ids)
    report = paradec.compare(lm, PROMPTS[:1], [method], max_new_tokens=20, repeats=0)
    assert [(e.method, e.exact, e.identical) for e in report.methods] == [("ar", True, 1), ("jacobi", True, 1)]
    other = paradec.build("jacobi", dataclasses.replace(lm.model, num_layers=1), ())
    for wrong, hint in ((dict(method=other), "another model"), (dict(method=method, ignore_eos=True), "without eos"),
                        (dict(method=method, method_args={"window": 4}), "built already")):  # fmt: skip
        with pytest.raises(InputError, match=hint):
            lm.generate("Hello", **wrong)


def test_a_draft_model_of_another_tokenizer_is_refused(lm, tmp_path):
    folder = write_tiny_model(tmp_path / "other")
    path = folder / "tokenizer.json"
    swapped = json.loads(path.read_text())
    vocab = swapped["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    path.write_text(json.dumps(swapped))
    with pytest.raises(InputError, match="their tokenizers differ"):
        lm.generate("y", method="draft_model", method_args={"draft": paradec.load(str(folder))})


@pytest.mark.parametrize(("rows", "accept"), [(-7, "rejection"), (30, "match")])
def test_a_draft_model_may_be_padded_otherwise(lm, plain, rows, accept):
    """Its table may have rows that mean nothing, or lack those that mean nothing in the target's."""
    table = lambda x: x[:rows] if rows < 0 else jnp.concatenate([x, x[:rows]])
    smaller = dataclasses.replace(lm.model, vocab_size=lm.model.vocab_size + rows)
    weights = lm.params.replace(embed=table(lm.params.embed), head=table(lm.params.head))
    draft = dataclasses.replace(lm, model=smaller, params=weights)
    options = {"draft": draft, "accept": accept}
    found = lm.generate(PROMPTS, method="draft_model", method_args=options, max_new_tokens=20, batch_size=4)
    assert [r.token_ids for r in found] == [r.token_ids for r in plain]
    if rows > 0:
        assert max(r.calls for r in found) <= 5  # it is the target but for rows that mean nothing
