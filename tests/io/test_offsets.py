"""The characters that each token stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.io.tokenizer import Tokenizer
from tests.io.small_vocab import byte_level, sentencepiece

KINDS = [
    Tokenizer.from_gguf(byte_level("qwen2", add_bos_token=True)),
    Tokenizer.from_gguf(sentencepiece()),
    Tokenizer.from_gguf(sentencepiece(add_space_prefix=False, add_eos_token=True)),
]
texts = st.lists(st.text(max_size=6) | st.sampled_from(["the", "  ", "\n", "<|im_end|>", "</s>", "<think>", "ä😀"]))


@settings(deadline=None)
@given(st.sampled_from(KINDS), texts.map("".join))
def test_spans_follow_one_another_and_hold_what_is_shown(tokenizer: Tokenizer, text: str) -> None:
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text, special=False)
    reached, before = 0, (0, 0)
    for token, (start, end) in zip(ids, spans, strict=True):
        assert start < end and (start == reached or (start, end) == before or start == before[0]), (text, spans)
        shown = tokenizer.token(token)
        assert shown in (" " + text[start:end]).replace("▁", " ").encode(), (text, start, end)
        reached, before = end, (start, end)
    assert reached == len(text)


def test_added_ends_have_no_characters() -> None:
    ids, spans = KINDS[2].encode_with_offsets("the", special=True)
    assert ids == KINDS[2].encode("the") and spans == [(0, 0), (0, 1), (1, 3), (0, 0)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_spaces_belong_to_a_token_whatever_the_file_says(wrapped: bool, tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_str(KINDS[0].core.to_str())
    trims = tokenizers.processors.ByteLevel(trim_offsets=True)
    core.post_processor = tokenizers.processors.Sequence([trims]) if wrapped else trims
    core.save(str(tmp_path / "tokenizer.json"))
    assert core.encode("a  the ").offsets == [(0, 1), (2, 2), (3, 6), (7, 7)]
    assert Tokenizer.from_folder(tmp_path).encode_with_offsets("a  the ")[1] == [(0, 1), (1, 2), (2, 6), (6, 7)]
