"""Folders in every form, read by paradec and by `transformers`: the same ids, the same text, the same offsets."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from paradec.io.detokenize import Detokenizer
from paradec.io.tokenizer import Tokenizer
from tests.io.tiny_tokenizers import FLAVOURS, write

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

BITS = (
    "the |the| the|a|er| |  |\n|\t| a|ä|語|😀|e\u0301|ﬁ|é|12|'ll|don't|it's|.|,|!|?| .|x|_w_|Keep|&|▁|a▁b|▁x|Ġé|the er"
    "|##e|##q|[CLS]|[SEP]|[MASK]|<0x41>|<s>|</s>|<unk>|<l>|<r>|<w>|<sp>|<pad>|<extra>|<tool>|<think>|<new>|<p>|<e>|<c>|<sep>"
    "|<late>|<unseen>"
).split("|") + ["<|im_start|>", "<|im_end|>", "<|m|>", "|"]  # fmt: skip


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(BITS, k=draw.randrange(10))) for _ in range(count)]


def stream(tokenizer: Tokenizer, ids: list[int], special: bool) -> str:
    reader = Detokenizer(tokenizer, special)
    return "".join([reader.feed(i) for i in ids] + [reader.flush()])


@pytest.mark.parametrize("name", FLAVOURS)
def test_ids_and_text(name: str, tmp_path: Path) -> None:
    write(tmp_path, *FLAVOURS[name]())
    theirs, mine = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    assert (mine.vocab_size, mine.bos_id) == (len(theirs), theirs.bos_token_id)
    some = texts(2000)
    assert [mine.encode(text, special=False) for text in some] == theirs(some, add_special_tokens=False)["input_ids"]
    ids = theirs(some)["input_ids"]
    assert [mine.encode(text) for text in some] == ids
    for shown in (True, False):
        wanted = theirs.batch_decode(ids, skip_special_tokens=not shown)
        assert [mine.decode(i, shown) for i in ids] == wanted
        assert [stream(mine, i, shown) for i in ids[:500]] == wanted[:500]


@pytest.mark.parametrize("name", FLAVOURS)
def test_any_ids(name: str, tmp_path: Path) -> None:
    """Any tokens in any order. Lone byte tokens are left out: there transformers loses the characters around them."""
    write(tmp_path, *FLAVOURS[name]())
    theirs, mine = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    plain = [i for i in range(len(theirs) + 5) if not str(theirs.convert_ids_to_tokens(i)).startswith("<0x")]
    draw = random.Random(0)
    for _ in range(500):
        ids = draw.choices(plain, k=draw.randrange(12))
        for shown in (True, False):
            wanted = theirs.decode(ids, skip_special_tokens=not shown)
            assert mine.decode(ids, shown) == stream(mine, ids, shown) == wanted, ids


@pytest.mark.parametrize("name", FLAVOURS)
def test_offsets(name: str, tmp_path: Path) -> None:
    """The same characters, but for what some of their byte-level files cut off the ends."""
    write(tmp_path, *FLAVOURS[name]())
    theirs, mine = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    for text in texts(500):
        wanted = theirs(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, spans = mine.encode_with_offsets(text)
        assert ids == wanted["input_ids"]
        if name.startswith("bytes"):
            pairs = zip(spans, wanted["offset_mapping"], strict=True)
            assert all(ours[0] <= cut[0] and cut[1] <= ours[1] for ours, cut in pairs), text
        else:
            assert spans == [tuple(span) for span in wanted["offset_mapping"]], text
