"""Conversations: what the assistant says is learned, and a bad line is named."""

import json

import pytest

from paradec.data import chats
from paradec.errors import InputError
from paradec.io.tokenizer import Tokenizer
from tests.fixtures import write_tiny_model

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_tiny_model(tmp_path_factory.mktemp("chats") / "tiny"))


def pieces(tokenizer, token, learn):
    """The learned spans as text."""
    spans, now = [], []
    for i, mine in zip(token.tolist(), learn.tolist(), strict=True):
        if mine:
            now.append(i)
        elif now:
            spans.append(now)
            now = []
    return [tokenizer.shown(span, special=True).decode() for span in [*spans, *([now] if now else [])]]


def test_the_assistant_is_learned_and_nobody_else(tokenizer):
    token, learn = chats.encode(tokenizer, TALK)
    whole = tokenizer.chat(TALK, add_generation_prompt=False)
    assert tokenizer.shown(token, special=True).decode() == whole
    assert pieces(tokenizer, token, learn) == ["Hello!<|im_end|>\n", "Bye.<|im_end|>\n"]


def test_a_turn_is_tokenised_as_decoding_meets_it(tokenizer):
    token, learn = chats.encode(tokenizer, TALK[1:3])
    prompt = tokenizer.encode(tokenizer.chat(TALK[1:2]), special=False)
    assert token[: len(prompt)].tolist() == prompt and not learn[: len(prompt)].any() and learn[len(prompt) :].all()


def test_long_conversations_are_cut(tokenizer):
    row = chats.Chats([TALK], tokenizer, 20)[0]
    assert len(row["token"]) == len(row["learn"]) == 20


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    import copy

    odd = copy.copy(tokenizer)
    odd.chat_template = "{{ messages|length }}" + tokenizer.chat_template
    with pytest.raises(InputError, match="rewrites earlier turns"):
        chats.encode(odd, TALK)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Line 2 of .* is not JSON"),
        ('{"text": "a"}', 'no object with "messages"'),
        ("[1]", 'no object with "messages"'),
        ('{"messages": []}', "has no assistant's turn"),
        ('{"messages": "hi"}', "needs a role"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', "one of system, user, assistant, tool"),
        ('{"messages": [{"role": "assistant", "content": 3}]}', "must be a string"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "has no assistant's turn"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, words):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + line + "\n")
    with pytest.raises(InputError, match=words) as error:
        chats.read(path)
    assert "Line 2" in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(f"\n{json.dumps({'messages': TALK})}\n\n")
    assert chats.read(path) == [TALK]
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no conversations"):
        chats.read(path)
    with pytest.raises(InputError, match="There is no file"):
        chats.read(tmp_path / "none.jsonl")
