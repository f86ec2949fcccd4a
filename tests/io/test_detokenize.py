"""A stream of text is the text, however its tokens are dealt out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.io.detokenize import Detokenizer
from paradec.io.tokenizer import Tokenizer
from tests.io.small_vocab import byte_level, sentencepiece

KINDS = [
    Tokenizer.from_gguf(byte_level()),
    Tokenizer.from_gguf(sentencepiece()),
    Tokenizer.from_gguf(sentencepiece(add_space_prefix=False)),
]
kinds = st.sampled_from(KINDS)
# Any ids at all: special tokens, halves of characters, rows past the vocabulary.
any_ids = st.lists(st.integers(0, 280), max_size=60)


def deal(ids: list[int], sizes: list[int]) -> list[list[int]]:
    cuts = np.cumsum(sizes)
    return [list(part) for part in np.split(np.array(ids, int), cuts[cuts < len(ids)])]


@settings(deadline=None)
@given(kinds, any_ids, st.lists(st.integers(0, 5)), st.booleans())
def test_pieces_join_to_the_whole(tokenizer: Tokenizer, ids: list[int], sizes: list[int], special: bool) -> None:
    stream = Detokenizer(tokenizer, special)
    pieces = [stream.feed(part) for part in deal(ids, sizes)]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, special)


@settings(deadline=None)
@given(kinds, st.text())
def test_no_character_is_split(tokenizer: Tokenizer, text: str) -> None:
    """One id at a time: no piece shows a stand-in for half a character, and nothing is left at the end."""
    text = text.replace("\ufffd", "")
    stream = Detokenizer(tokenizer)
    for token in tokenizer.encode(text):
        assert "\ufffd" not in stream.feed(token)
    assert stream.flush() == ""


@settings(deadline=None)
@given(kinds, any_ids, any_ids)
def test_after_a_prompt(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> None:
    stream = Detokenizer(tokenizer, prompt=prompt)
    whole = Detokenizer(tokenizer)
    shown = whole.feed(prompt)
    assert shown + stream.feed(ids) + stream.flush() == tokenizer.decode(prompt + ids)


def test_characters_are_held_back() -> None:
    tokenizer = KINDS[0]
    stream = Detokenizer(tokenizer)
    first, *rest = tokenizer.encode("😀")
    assert stream.feed(first) == "" and [stream.feed(i) for i in rest] == ["", "", "😀"]
    assert stream.feed(first) == "" and stream.flush() == "\ufffd"
    assert stream.feed(tokenizer.encode("again")) == "again", "a flushed stream begins anew"


def test_first_space() -> None:
    tokenizer = KINDS[1]
    the = tokenizer.encode("the", special=False)
    stream = Detokenizer(tokenizer)
    assert [stream.feed(1), stream.feed(the), stream.feed(the)] == ["", "the", " the"]
    assert Detokenizer(tokenizer, prompt=the).feed(the) == " the", "text that goes on keeps its space"


def test_kinds_of_ids() -> None:
    for ids in (97, [97], np.int32(97), np.array([97]), jnp.array([97]), jnp.array(97), iter([97])):
        assert Detokenizer(KINDS[0]).feed(ids) == "a"
