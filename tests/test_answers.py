"""Files of prompts: every line answered once, with its own options, turn by turn, whatever ends the run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock

import paradec
from paradec import answers
from paradec.cli import main
from paradec.errors import InputError, ResourceError
from paradec.prompts import Line, drawn, read_lines, total_turns
from tests.fixtures import write_tiny_model

TURNS = ["Hello", "Go on", "And now?"]
LINES = [
    {"id": "a", "prompt": "abc abc abc", "temperature": 0.9, "seed": 7},
    {"task_id": 3, "question": "x", "seed": 1},
    {"question_id": 81, "doc_id": "error", "turns": TURNS, "seed": 2},
    {"prompt": "long " * 200, "seed": 3, "id": "error"},
    {"messages": [{"role": "user", "content": "Hello"}], "temperature": 1.2, "top_k": 5, "seed": 9, "id": None},
]
ASK = {"max_new_tokens": 8, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def lm(folder):
    return paradec.load(str(folder))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_its_answer(lm, prompts, tmp_path):
    """Drawn as it asks, under its own name, turn by turn, or with the reason why not."""
    said = []
    errors = answers.write(lm, prompts, tmp_path / "out.jsonl", logprobs=1, complain=said.append, **ASK)
    first, second, third, fourth, fifth = read(tmp_path / "out.jsonl")
    assert (first["id"], second["task_id"], third["question_id"], fifth["id"]) == ("a", 3, 81, None)
    (alone,) = lm.generate(LINES[0]["prompt"], temperature=0.9, seed=7, max_new_tokens=8)
    assert first["text"] == alone.text and first["token_ids"] == list(alone.token_ids) and "seconds" not in first
    assert len(first["logprobs"]) == first["new_tokens"]
    assert second["text"] == lm.generate("x", max_new_tokens=8)[0].text
    assert fifth["text"] == lm.generate("Hello", temperature=1.2, top_k=5, seed=9, max_new_tokens=8)[0].text
    assert [turn["text"] for turn in third["turns"]] == [r.text for r in answers.converse(lm, [TURNS], **ASK)[0]]
    assert "error" in fourth and "text" not in fourth and len(errors) == 1 and "Line 4 of" in errors[0] and not said


def test_a_turn_sees_what_was_answered_before(lm):
    """In batches of conversations of other lengths."""
    talks = [TURNS, ["x"], ["abc", "Hello"]]
    found = answers.converse(lm, talks, max_new_tokens=6, batch_size=2, system="Be brief.")
    for turns, results in zip(talks, found, strict=True):
        messages = []
        for turn, result in zip(turns, results, strict=True):
            messages.append({"role": "user", "content": turn})
            (alone,) = lm.generate(messages, max_new_tokens=6, system="Be brief.")
            assert (result.token_ids, result.text) == (alone.token_ids, alone.text)
            messages.append({"role": "assistant", "content": result.text})
    for wrong in ([["a"], []], [], [["a", 3]], [3], ["a", ["b"]]):
        with pytest.raises(InputError, match="at least once"):
            answers.converse(lm, wrong)
    ask = dict(max_new_tokens=4)
    assert len(answers.converse(lm, "Hello", **ask)) == len(answers.converse(lm, "Hello", **ask)[0]) == 1
    assert [r.text for r in answers.converse(lm, TURNS, **ask)[0]] == [
        r.text for r in answers.converse(lm, [TURNS], **ask)[0]
    ]
    with pytest.raises(InputError, match="Turn 2 of conversation 1: The prompt has"):
        answers.converse(lm, [["a", "long " * 200]], max_new_tokens=4)


def test_turns_are_compared_behind_what_plain_decoding_answers(lm):
    lines = [Line(1, "abc", ("Hello",)), Line(2, "x")]
    ask = dict(max_new_tokens=6, method="jacobi")
    first, second, third = answers.unrolled(lm, lines, ask)
    (answer,) = lm.generate("abc", max_new_tokens=6)
    assert (first, third) == ("abc", "x")
    assert [m["content"] for m in second] == ["abc", answer.text, "Hello"]


def test_only_what_is_heard_is_decoded(lm, monkeypatch):
    """Of the lines those with turns, and of these every answer but the last."""
    asked, real = [], answers.answered
    note = lambda lm, decoder, ask, lines, rows: asked.append((lines, rows)) or real(lm, decoder, ask, lines, rows)
    monkeypatch.setattr(answers, "answered", note)
    lines = [Line(1, "x"), Line(2, "abc", ("Hello", "Bye")), Line(3, "y"), Line(4, "a", ("b",)), Line(5, "c", ("d",))]
    given = answers.unrolled(lm, lines, dict(max_new_tokens=3, batch_size=2))
    assert len(given) == total_turns(lines) == 9 and [given[0], given[4]] == ["x", "y"]
    assert [rows for _, rows in asked] == [[1, 3], [4]]
    assert [[1 + len(line.then) for line in lines] for lines, _ in asked] == [[2, 1], [1]]
    asked.clear()
    assert answers.unrolled(lm, lines[::2][:2], {}) == ["x", "y"] and not asked


def test_a_conversation_that_becomes_too_long_ends_there(lm):
    lines = [Line(1, "a", ("long " * 200, "b")), Line(2, "x")]
    first, second, third = answers.unrolled(lm, lines, dict(max_new_tokens=3))
    assert (first, third) == ("a", "x")
    with pytest.raises(InputError, match="The prompt has"):
        lm.encode(second)


def test_a_run_that_was_ended_anywhere_ends_as_if_it_had_not(lm, prompts, tmp_path):
    """A kill leaves any number of bytes of what was being written; the lines before are not written again."""
    out = tmp_path / "out.jsonl"
    wanted_errors = answers.write(lm, prompts, out, **ASK)
    wanted, draw = out.read_bytes(), random.Random(0)
    borders = [i + 1 for i, byte in enumerate(wanted) if byte == ord("\n")]
    for at in [0, len(wanted), *borders[:-1], *draw.sample(range(len(wanted)), 4)]:
        out.write_bytes(wanted[:at])
        begun, before = [], sum(border <= at for border in borders)
        track = lambda items, begun=begun: (begun.append(item) or item for item in items)
        assert answers.write(lm, prompts, out, resume=True, track=track, **ASK) == wanted_errors
        assert out.read_bytes() == wanted
        assert len(begun) == -(-len(LINES) // 2) - before // 2 or (before == len(LINES) and not begun)
    out.unlink()
    assert answers.write(lm, prompts, out, resume=True, **ASK) == wanted_errors and out.read_bytes() == wanted


def test_what_is_not_this_run_is_left_alone(lm, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    answers.write(lm, prompts, out, limit=2, **ASK)
    kept = out.read_bytes()

    def refused(words, **more):
        with pytest.raises(InputError, match=words):
            answers.write(lm, prompts, out, **{"limit": 2, "resume": True} | ASK | more)
        assert out.read_bytes() == kept

    refused("is there already: --resume goes on", resume=False)
    refused("request.max_new_tokens: 8 → 9", max_new_tokens=9)
    refused("limit: 2 → 3", limit=3)
    with FileLock(f"{out}.lock"):
        refused("Another process writes")
    out.write_bytes(kept * 2)
    with pytest.raises(InputError, match="has 4 lines for 2 prompts"):
        answers.write(lm, prompts, out, limit=2, resume=True, **ASK)
    beside = tmp_path / "out.jsonl.settings.json"
    beside.write_text("{")
    with pytest.raises(InputError, match="settings.json cannot be read"):
        answers.write(lm, prompts, out, limit=2, resume=True, **ASK)
    beside.unlink()
    with pytest.raises(InputError, match="what it answers is not known"):
        answers.write(lm, prompts, out, limit=2, resume=True, **ASK)
    with pytest.raises(InputError, match="is no regular file"):
        answers.write(lm, prompts, tmp_path, limit=2, **ASK)
    with pytest.raises(ResourceError, match="Cannot write"):
        answers.write(lm, prompts, tmp_path / ("x" * 300), limit=2, **ASK)


def test_lines_and_their_options(prompts, tmp_path):
    said = []
    assert [line.number for line in read_lines(prompts, pytest.fail)] == [1, 2, 3, 4, 5]
    bad = [{"prompt": "a", "temperature": "hot"}, {"prompt": "a", "seed": [1, 2]}, {"turns": []}, {"turns": ["a", 3]}]
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*bad, {"prompt": "b", "top_p": 0.5}]))
    (line,) = read_lines(path, said.append)
    assert (line.number, line.own) == (5, {"top_p": 0.5}) and len(said) == 4
    for sentence, words in zip(
        said, ("temperature must be a number", "seed must be one", "turns", "turns"), strict=True
    ):
        assert words in sentence
    path.write_text('{"prompt": "a", "seed": 1}\n{"prompt": "b"}\n')
    with pytest.raises(InputError, match="line 1 has a seed and line 2 has none"):
        read_lines(path, pytest.fail)
    assert drawn([Line(1, "a", own={"top_k": 3}), Line(2, "b")], {"top_k": 9, "seed": 4}) == {
        "top_k": (3, 9),
        "seed": 4,
    }


def test_from_the_shell(folder, lm, prompts, tmp_path, capfd):
    out = tmp_path / "out.jsonl"
    command = [
        "generate",
        "--model",
        str(folder),
        "--prompts",
        str(prompts),
        "--max-new-tokens",
        "8",
        "--batch-size",
        "2",
    ]
    assert main([*command, "--out", str(out)]) == 1
    written = read(out)
    assert "1 lines could not be decoded" in capfd.readouterr().err
    answers.write(lm, prompts, tmp_path / "python.jsonl", **ASK)
    assert read(tmp_path / "python.jsonl") == written
    assert main([*command, "--json"]) == 1
    printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    untimed = lambda fields: {k: v for k, v in fields.items() if k not in ("seconds", "turns")}
    assert [untimed(line) for line in printed] == [untimed(line) for line in written if "error" not in line]
    assert [turn["text"] for turn in printed[2]["turns"]] == [turn["text"] for turn in written[2]["turns"]]
    assert main([*command, "--out", str(out)]) == 2 and "--resume goes on" in capfd.readouterr().err
    assert main([*command, "--resume"]) == 2 and "give --prompts FILE --out FILE" in capfd.readouterr().err


def test_sigkill_at_random_moments(folder, tmp_path):
    """With PARADEC_CASES, twenty kills."""
    prompts, out, whole = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "whole.jsonl"))
    lines = [{"id": i, "prompt": f"text {i}", "temperature": 0.8} for i in range(60)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask = ("--model", folder, "--prompts", prompts, "--max-new-tokens", 150, "--batch-size", 2, "--logprobs", 2)
    command = [sys.executable, "-m", "paradec", "generate", *map(str, ask), "--resume", "--out"]
    begin = time.monotonic()
    subprocess.run([*command, whole], check=True)
    spent, kills = time.monotonic() - begin, 0
    draw, wanted = random.Random(5), 20 if "PARADEC_CASES" in os.environ else 4
    while kills < wanted:
        process = subprocess.Popen([*command, out])
        try:
            assert process.wait(draw.uniform(0, spent)) == 0
            out.unlink()  # it came to its end, so the next one begins anew
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run([*command, out], check=True)
    assert out.read_bytes() == whole.read_bytes() and [line["id"] for line in read(out)] == list(range(60))
