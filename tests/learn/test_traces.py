"""Recordings: what is written is what the model did, once, and goes on after a kill."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import paradec
from paradec.errors import InputError
from paradec.io.gguf_vocab import frame
from paradec.io.tokenizer import Tokenizer
from paradec.record import traces
from tests.fixtures import write_tiny_model

PROMPTS = ["abc abc abc", "Hello, world", "x", "The list: one two one two", "zyx"]
ASK = dict(max_new_tokens=9, batch_size=2, shard=2)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("traces") / "tiny")))


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    return traces.record(lm, PROMPTS, tmp_path_factory.mktemp("recording"), **ASK)


def test_a_record_is_what_generate_gives(lm, folder):
    wanted = lm.generate(PROMPTS, max_new_tokens=9)
    found = list(traces.read(folder))
    assert [r["row"] for r in found] == list(range(5))
    for record, result, prompt in zip(found, wanted, PROMPTS, strict=True):
        assert tuple(record["new"]) == result.token_ids and tuple(record["settled"]) == result.settled
        assert record["prompt"] == lm.encode(prompt)


def test_it_goes_on_at_the_first_missing_shard(lm, folder, tmp_path, monkeypatch):
    done = []
    traces.record(lm, PROMPTS, tmp_path / "again", told=lambda n, of: done.append((n, of)), **ASK)
    assert done == [(1, 3), (2, 3), (3, 3)]
    (tmp_path / "again" / "00001.jsonl").unlink()
    asked = []
    real = lm.decode
    monkeypatch.setattr(
        type(lm), "decode", lambda self, d, batch, *rest: asked.append(len(batch)) or real(d, batch, *rest)
    )
    traces.record(lm, PROMPTS, tmp_path / "again", **ASK)
    assert asked == [2] and list(traces.read(tmp_path / "again")) == list(traces.read(folder))


def test_another_recording_is_refused(lm, folder):
    with pytest.raises(InputError, match=r"request.temperature: 0.0 → 0.5"):
        traces.record(lm, PROMPTS, folder, **ASK, temperature=0.5)
    with pytest.raises(InputError, match="prompts"):
        traces.record(lm, PROMPTS[:3], folder, **ASK)
    with pytest.raises(InputError, match="no prompts"):
        traces.record(lm, [], folder, **ASK)


def test_hidden_states_are_those_of_the_text(lm, folder):
    rows = traces.hidden_states(lm, folder, length=64, ahead=2, batch=2)
    assert len(rows) == 5
    for row, record in zip((rows[i] for i in range(5)), traces.read(folder), strict=True):
        ids, mine = [*record["prompt"], *record["new"]][-64:], min(len(record["prompt"]), 64 - len(record["new"]))
        first = mine - 3
        size = len(ids) - first
        assert row["token"].shape == (12,) and row["token"][:size].tolist() == ids[first:]
        assert row["learn"].tolist() == [False] * 3 + [True] * len(record["new"]) + [False] * (12 - size)
        hidden = lm.model.forward(lm.params, jnp.asarray([ids], jnp.int32)).hidden[0, first:]
        np.testing.assert_allclose(row["hidden"][:size].astype(np.float32), hidden, rtol=2e-2, atol=2e-2)
        assert str(row["hidden"].dtype) == "bfloat16"
    stamp = {p: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    traces.hidden_states(lm, folder, length=64, ahead=2)
    assert stamp == {p: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}


def test_rows_split_and_count(lm, folder):
    rows = traces.hidden_states(lm, folder, length=64, ahead=2, batch=2)
    train, held = rows.split(3)
    assert (len(train), len(held)) == (4, 1)
    np.testing.assert_array_equal(held[0]["token"], rows[2]["token"])
    counts = rows.counts(lm.model.vocab_size)
    assert counts.sum() == sum(len(r["new"]) for r in traces.read(folder))
    assert counts[next(traces.read(folder))["new"][0]] > 0


def test_imagined_prompts_continue_the_users_turn(lm, tmp_path):
    prompts = traces.imagined(lm, 5, tmp_path, max_new_tokens=9, batch_size=2, shard=2)
    assert prompts == traces.imagined(lm, 5, tmp_path, max_new_tokens=9, batch_size=2, shard=2)
    assert len(set(prompts)) == len(prompts) >= 4 and all(p == p.strip() != "" for p in prompts)
    whole, plain = lm.encode("Hello"), lm.tokenizer.encode("Hello")
    for record in traces.read(tmp_path):  # the chat up to where the user's words would begin
        opening = len(record["prompt"])
        assert record["prompt"] == whole[:opening] and whole[opening : opening + len(plain)] == plain


def test_an_imagined_prompt_begins_once(lm, tmp_path):
    """Where the template writes what begins a text, encoding adds it no second time."""
    core = tokenizers.Tokenizer.from_str(lm.tokenizer.core.to_str())
    core.post_processor = frame(core, "<|im_start|>", None)
    odd = Tokenizer(core, lm.tokenizer.names, lm.tokenizer.eos_ids, "{{ bos_token }}" + lm.tokenizer.chat_template)
    assert odd.encode("a")[0] == odd.bos_id
    traces.imagined(dataclasses.replace(lm, tokenizer=odd, decoders={}), 2, tmp_path, max_new_tokens=3)
    opening = odd.chat([{"role": "user", "content": "\0"}]).partition("\0")[0]
    for record in traces.read(tmp_path):
        assert record["prompt"] == odd.encode(opening, special=False)
        assert record["prompt"][:2] == [odd.bos_id] * 2 != record["prompt"][1:3]  # the template's, and the turn's own


def test_one_string_is_one_prompt(lm, tmp_path):
    traces.record(lm, "abc", tmp_path, **ASK)
    assert [record["prompt"] for record in traces.read(tmp_path)] == [lm.encode("abc")]


@pytest.mark.parametrize("every", [0, 1, 6, -1])
def test_each_side_of_a_split_has_a_row(every):
    with pytest.raises(InputError, match=f"Of 5 texts every {every}th"):
        traces.parted(5, every)
    assert traces.parted(5, 5) == ([0, 1, 2, 3], [4]) and traces.parted(5, 2) == ([0, 2, 4], [1, 3])


@pytest.mark.parametrize(
    "line",
    ["[]", '{"row": 1}', '{"row": 1, "prompt": "a", "new": [], "settled": []}', "[" * 99_999, "\xff", "1" * 5000],
)
def test_any_damaged_record_is_named(tmp_path, line):
    (tmp_path / "00000.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(InputError, match="00000.jsonl is damaged; delete it and record again. Line 1 of"):
        list(traces.read(tmp_path))


def test_a_damaged_record_is_named(lm, folder, tmp_path):
    traces.record(lm, PROMPTS, tmp_path, **ASK)
    path = tmp_path / "00001.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"row": 3')
    with pytest.raises(InputError, match=r"00001\.jsonl is damaged; delete it .* Line 2 of"):
        list(traces.read(tmp_path))


def test_what_is_said_of_a_recording(folder):
    facts = json.loads((folder / "recording.json").read_text())
    assert facts["request"]["max_new_tokens"] == 9 and len(facts["model_digest"]) == 16
