"""Conversations at every door: Python, the shell, and files of JSON lines."""

from __future__ import annotations

import io
import json

import pytest

import paradec
from paradec.cli import main
from paradec.errors import InputError
from paradec.prompts import question, read_prompts
from paradec.request import Request, one_text, texts
from tests.fixtures import TEMPLATE, write_tiny_model

USER = {"role": "user", "content": "Hello"}
CHAT = [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go on"}]
SYSTEM = {"role": "system", "content": "Be brief."}
LOUD = TEMPLATE + "{% if loud %}<{{ loud }}>{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": LOUD}))
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return paradec.load(str(folder))


def text(lm, ids):
    return lm.tokenizer.decode(ids, special=True)


def test_one_conversation_is_one_prompt(lm):
    assert texts(CHAT) == [CHAT] == texts([CHAT]) == texts(iter(CHAT)) == texts((tuple(CHAT),))
    assert texts([CHAT, "Hello", [1, 2], [USER]]) == [CHAT, "Hello", [1, 2], [USER]]
    ask = dict(max_new_tokens=6, batch_size=4)
    given = [CHAT, "Hello", lm.encode("x"), [USER]]
    together = lm.generate(given, **ask)
    assert [r.token_ids for r in together] == [lm.generate(p, **ask)[0].token_ids for p in given]
    assert together[1].token_ids == together[3].token_ids != together[0].token_ids
    assert together[0].prompt == "user: Hello\nassistant: Yes?\nuser: Go on"
    *_, last = lm.stream(CHAT, max_new_tokens=6)
    assert last.token_ids == together[0].token_ids


def test_messages_are_written_by_the_template(lm):
    assert lm.encode(CHAT) == lm.tokenizer.encode(lm.tokenizer.chat(CHAT), special=False)
    assert lm.encode([USER]) == lm.encode("Hello")
    opened = lm.encode([SYSTEM, USER])
    assert opened == lm.encode("Hello", system="Be brief.") == lm.encode([USER], system="Be brief.")
    assert opened == lm.encode([SYSTEM, USER], system="Another."), "a conversation's own system message counts"
    assert text(lm, opened).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>")
    assert text(lm, lm.encode(CHAT, template_args={"loud": "AH"})).endswith("<AH>")
    ask = dict(max_new_tokens=5, system="Be brief.", template_args={"loud": True})
    (found,) = lm.generate("Hello", **ask)
    (wanted,) = lm.generate([SYSTEM, USER], template_args={"loud": True}, max_new_tokens=5)
    assert found.token_ids == wanted.token_ids
    report = paradec.compare(lm, [CHAT], ["prompt_lookup"], repeats=0, **ask)
    assert report.generations["ar"][0].token_ids == lm.generate(CHAT, **ask)[0].token_ids


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda lm: lm.encode([{"content": "Hi"}]), "has no role"),
        (lambda lm: lm.encode([{"role": "user", "content": 3}]), "content of a message is a string"),
        (lambda lm: lm.encode([{"role": "user"}]), "content of a message is a string"),
        (lambda lm: one_text([USER, "x"]), "neither text nor an id"),
        (lambda lm: one_text(USER), "a dict was given"),
        (lambda lm: lm.encode(CHAT, raw=True), "leave out raw"),
        (lambda lm: lm.encode([1, 2], system="x"), "Token ids are read as they stand"),
        (lambda lm: lm.generate("x", raw=True, system="y"), "leave out raw"),
        (lambda lm: lm.generate("x", template_args=3), "template_args must map names"),
        (lambda lm: lm.generate("x", template_args={"loud": object()}), "as JSON"),
        (lambda lm: lm.generate("x", template_args={"messages": []}), "messages is no variable"),
        (lambda lm: lm.generate("x", template_args={"self": 1}), "self is no variable"),
        (lambda lm: lm.generate("x", system=3), "system"),
        (lambda lm: question([1, 2]), "Token ids are no text"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_a_sentence(lm, given, words):
    with pytest.raises(InputError, match=words):
        given(lm)


def test_messages_in_a_file(tmp_path):
    """An answer at the end is what somebody else said: the question before it is asked."""
    lines = [
        {"messages": CHAT}, {"messages": [*CHAT, CHAT[1]]}, {"prompt": "x"}, {"messages": [SYSTEM]}, {"messages": []},
        {"messages": [CHAT[1]]}, {"messages": [{"role": "user", "content": None}]}, {"turns": ["a", "b"]},
        {"messages": [SYSTEM, USER]},
    ]  # fmt: skip
    path, said = tmp_path / "chats.jsonl", []
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_prompts(path, said.append) == [CHAT, CHAT, "x", "a", [SYSTEM, USER]]
    assert [line.split(" is skipped: ")[0].rpartition(" ")[2] for line in said] == ["4", "5", "6", "7"]
    assert [question(one_text(p)) for p in (CHAT, "x")] == ["Go on", "x"]


def run(capsys, *argv):
    status = main([str(a) for a in argv])
    return status, *capsys.readouterr()


def test_the_shell_speaks_conversations(lm, folder, capsys, tmp_path, monkeypatch):
    path, plain = tmp_path / "chats.jsonl", tmp_path / "plain.txt"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    plain.write_bytes(b"\xef\xbb\xbfHello\n")  # a byte-order mark is no part of a text
    ask = ("generate", "--model", folder, "--max-new-tokens", "5", "--json")
    more = dict(system="Be brief.", template_args={"loud": 3})
    told = ("--system", "Be brief.", "--template-arg", "loud=3")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    for given, prompt in ((("--prompts", path), CHAT), (("--prompts", plain), "Hello"), (("--prompt", "-"), "Hello")):
        status, out, _ = run(capsys, *ask, *given, *told)
        line = json.loads(out)
        assert status == 0 and line["token_ids"] == list(lm.generate(prompt, max_new_tokens=5, **more)[0].token_ids)
        assert line["prompt"] == lm.shown(prompt)
    assert run(capsys, *ask, "--prompt", "x", "--template-arg", "loud")[0] == 2
    deep = "unread=" + "[" * 100_000  # no JSON, so a string
    assert run(capsys, *ask, "--prompt", "x", "--template-arg", deep)[0] == 0
    assert run(capsys, *ask, "--prompts", tmp_path / "none.txt")[0] == 2
    (tmp_path / "empty.txt").write_bytes(b"\n")
    assert run(capsys, *ask, "--prompts", tmp_path / "empty.txt")[0] == 2
    assert Request(system="a").reading == {"raw": False, "system": "a", "template_args": {}}
