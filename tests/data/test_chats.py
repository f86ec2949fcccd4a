"""Conversations: what the assistant says is learned, and a bad line is named."""

import copy
import json

import pytest

from paradec.data import chats
from paradec.errors import InputError
from paradec.io.tokenizer import Tokenizer
from tests.fixtures import write_tiny_model
from tests.io.small_vocab import sentencepiece

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


def test_the_whole_text_is_tokenised_at_once():
    """Sentencepiece puts a space before each text: a turn tokenised by itself would begin with one too many."""
    template = (
        "{% for m in messages %}{{ 'he ' + m['content'] + ' t' if m['role'] == 'user' else m['content'] + eos_token }}"
        "{% endfor %}"
    )
    tokenizer = Tokenizer.from_gguf(sentencepiece() | {"tokenizer.chat_template": template})
    talk = [{"role": role, "content": "the"} for role in ("user", "assistant", "user", "assistant")]
    token, learn = chats.encode(tokenizer, talk)
    assert token.tolist() == tokenizer.encode("he the tthe</s>he the tthe</s>", special=False)
    assert pieces(tokenizer, token, learn) == ["the</s>", "the</s>"]


@pytest.mark.parametrize("content", ["Hello!", "  Hello!", "", "You", "\0"])
def test_an_assistant_who_begins_learns_neither_the_default_prompt_nor_its_header(tokenizer, content):
    odd = copy.copy(tokenizer)
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    odd.chat_template = default + tokenizer.chat_template
    talk = [{"role": "assistant", "content": content}, *TALK[1:3]]
    token, learn = chats.encode(odd, talk)
    assert odd.shown(token, special=True).decode() == odd.chat(talk, add_generation_prompt=False)
    assert pieces(odd, token, learn) == [f"{content}<|im_end|>\n", "Hello!<|im_end|>\n"]


def test_long_conversations_are_cut_and_those_without_an_answer_left_out(tokenizer):
    said = []
    late = [{"role": "user", "content": "a" * 80}, TALK[2]]
    conversations = [chats.Conversation(talk, f"Line {n} of f") for n, talk in enumerate((TALK, late, TALK[1:3]))]
    rows = chats.Chats.of(conversations, tokenizer, 60, said.append)
    assert [len(row["token"]) for row in rows] == [60, len(chats.encode(tokenizer, TALK[1:3])[0])]
    assert [sentence.partition(" is left out")[0] for sentence in said] == ["Line 1 of f"]
    train, held = rows.split(0.1)
    assert (len(train), len(held)) == (1, 1) and held[0] is rows[1]
    with pytest.raises(InputError, match="No conversation reaches the assistant within 60 tokens"):
        chats.Chats.of(conversations[1:2], tokenizer, 60, said.append)
    with pytest.raises(InputError, match="at least 2"):
        train.split(0.1)
    with pytest.raises(InputError, match="A row of 1 tokens predicts nothing"):
        chats.Chats.of(conversations, tokenizer, 1, said.append)


def test_a_conversation_that_the_template_refuses_is_named(tokenizer):
    odd = copy.copy(tokenizer)
    odd.chat_template = "{{ raise_exception('Only users begin.') }}"
    with pytest.raises(InputError, match="Line 7 of f: .*Only users begin"):
        chats.Chats.of([chats.Conversation(TALK, "Line 7 of f")], odd, 80, print)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
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
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "needs a role"),
        ('{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "half a character"),
        ('{"messages": [{"role": "assistant", "content": NaN}]}', "must be a string; got a number"),
        ('{"messages": [{"role": "assistant", "content": ' + "9" * 6000 + "}]}", "too many digits"),
        ('{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
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
    assert chats.read(path) == [chats.Conversation(TALK, f"Line 2 of {path}")]
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no conversations"):
        chats.read(path)
    with pytest.raises(InputError, match="There is no file"):
        chats.read(tmp_path / "none.jsonl")
