"""Encoding, decoding, special tokens and chat templates; llama.cpp's stored answers are the truth for GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.errors import InputError, WeightsError
from paradec.io.detokenize import Detokenizer
from paradec.io.gguf import read_metadata
from paradec.io.gguf_vocab import NORMAL, USER_DEFINED, frame
from paradec.io.tokenizer import Tokenizer
from tests.io.real_models import real_model
from tests.io.small_vocab import CHATML, byte_level, sentencepiece
from tests.io.tiny_tokenizers import FLAVOURS, write

BYTES, PIECES = Tokenizer.from_gguf(byte_level()), Tokenizer.from_gguf(sentencepiece())
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "llamacpp_tokens.json").read_text())
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(real_model("smollm2-135m")))


def test_smollm2_cuts_as_llamacpp(smollm2: Tokenizer) -> None:
    for text, ids in zip(GOLDEN["texts"], GOLDEN["smollm2-135m"], strict=True):
        assert smollm2.encode(text) == ids, text
        assert smollm2.decode(ids, special=True) == text


def test_gemma3_cuts_as_llamacpp() -> None:
    gemma3 = Tokenizer.from_gguf(read_metadata(real_model("gemma3-270m", download=False)))
    for text, ids in zip(GOLDEN["texts"], GOLDEN["gemma3-270m"], strict=True):
        assert gemma3.encode(text, special=False) == ids, text
        assert gemma3.encode(text) == [2, *ids]  # <bos>
        assert gemma3.decode(ids, special=True) == text.replace("▁", " ")
    assert gemma3.eos_ids == {1, 106}  # <eos>, <end_of_turn>


def test_smollm2_facts(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_ids) == (49152, 1, {0, 2})
    assert smollm2.token(2) == b"<|im_end|>"
    ids = smollm2.encode("In 2024: ä😀")
    assert b"".join(map(smollm2.token, ids)) == "In 2024: ä😀".encode()
    assert len(smollm2.encode("1234567")) == 7  # this model reads numbers digit by digit
    assert smollm2.chat(HI).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert smollm2.chat(HI).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.decode(smollm2.encode(smollm2.chat(HI[:1], False), special=False)).endswith("user\nHi\n")


@settings(deadline=None)
@given(st.text())
def test_byte_level_round_trip(text: str) -> None:
    ids = BYTES.encode(text)
    assert BYTES.decode(ids, special=True) == text
    assert BYTES.core.decode(ids, skip_special_tokens=True) == BYTES.decode(
        ids
    )  # the Rust decoder, on whole characters


@settings(deadline=None)
@given(st.text().map(lambda text: text.replace("▁", "_")))
def test_sentencepiece_round_trip(text: str) -> None:
    ids = PIECES.encode(text)
    assert ids[0] == PIECES.bos_id
    assert PIECES.decode(ids, special=False) == text.replace("<s>", "")
    assert PIECES.core.decode(ids, skip_special_tokens=True) == PIECES.decode(ids)


@settings(deadline=None)
@given(st.lists(st.integers(0, 300)))
def test_any_ids_decode(ids: list[int]) -> None:
    for tokenizer in (BYTES, PIECES):
        text = tokenizer.decode(ids, special=True)
        assert text.encode().strip() == b"".join(map(tokenizer.token, ids)).decode("utf-8", "replace").encode().strip()
        assert tokenizer.decode(np.array(ids, np.int32), special=True) == text


def test_small_cases() -> None:
    assert BYTES.decode([]) == "" == PIECES.decode([])
    assert PIECES.encode("the") == [1, 261] and PIECES.encode("the", special=False) == [261]
    assert PIECES.token(261) == b" the" and PIECES.decode([261]) == "the"
    assert PIECES.token(3 + 0xE4) == b"\xe4" and PIECES.decode([3 + 0xE4]) == "\ufffd"
    assert BYTES.token(10_000) == b"" and BYTES.decode([10_000]) == "", "rows past the vocabulary mean nothing"
    with pytest.raises(InputError, match="mask out padding"):
        BYTES.token(-1)
    with pytest.raises(InputError, match="half a character"):
        BYTES.encode("a\udcff")


def test_special_tokens_in_text() -> None:
    start, end, think = BYTES.vocab_size - 3, BYTES.vocab_size - 2, BYTES.vocab_size - 1
    assert BYTES.encode("<|im_start|><think><|im_end|>") == [start, think, end]
    assert BYTES.decode([start, think, end]) == "<think>"
    assert BYTES.decode([start, think, end], special=True) == "<|im_start|><think><|im_end|>"
    assert BYTES.special_ids == {start, end}


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [("gpt-2", 2), ("smollm", 3), ("llama-bpe", 2), ("qwen2", 3), ("tekken", 3), ("gpt-4o", 2), ("qwen35", 3)],
)
def test_digits_follow_the_named_rule(pre: str, pieces: int) -> None:
    """The only merge of digits is "12", so a text of "123" tells whether the rule lets digits stand together."""
    assert len(Tokenizer.from_gguf(byte_level(pre)).encode("123", special=False)) == pieces


@pytest.mark.parametrize(("pre", "pieces"), [("gpt-2", 2), ("qwen2", 2), ("llama-bpe", 1), ("tekken", 1)])
def test_a_word_that_is_a_token(pre: str, pieces: int) -> None:
    """Some rules take a word that is a token as it is, although no merge leads there."""
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "qz"]
    assert len(Tokenizer.from_gguf(byte_level(pre, tokens=tokens)).encode("qz", special=False)) == pieces


def test_capital_endings() -> None:
    """The newer rules see 'LL as an ending in any case; GPT-2 only small letters."""
    with_merge = {"merges": ["L L", "' LL"], "tokens": [*byte_level()["tokenizer.ggml.tokens"], "LL", "'LL"]}
    count = {
        pre: len(Tokenizer.from_gguf(byte_level(pre, **with_merge)).encode("a'LL", False)) for pre in ("gpt-2", "qwen2")
    }
    assert count == {"gpt-2": 3, "qwen2": 2}


def test_bos_follows_the_metadata() -> None:
    text = "the"
    assert Tokenizer.from_gguf(byte_level("llama-bpe")).encode(text)[0] == BYTES.bos_id  # llama.cpp's default for it
    assert Tokenizer.from_gguf(byte_level(add_bos_token=True)).encode(text)[0] == BYTES.bos_id
    assert Tokenizer.from_gguf(sentencepiece(add_bos_token=False)).encode(text) == [261]
    assert Tokenizer.from_gguf(sentencepiece(add_eos_token=True)).encode(text) == [1, 261, 2]
    plain = Tokenizer.from_gguf(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert plain.decode(plain.encode(" the")) == " the" and plain.encode("the")[0] != 261


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_what_ends_or_marks_a_turn_is_special_whatever_its_type(make: Any, kind: int) -> None:
    """Many converters call these tokens normal, or user-defined: text then spelled them out, and showed them."""
    known = make()
    tokens, types = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    marks = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bye>", "[BOS]", "<|plain|>"]
    tokens = [*(t for t in tokens if t not in marks), *marks]
    types = [*types, *[NORMAL] * len(marks)][: len(tokens) - len(marks)] + [kind] * len(marks)
    named = {"eot_token_id": tokens.index("<bye>"), "bos_token_id": tokens.index("[BOS]")}
    found = Tokenizer.from_gguf(
        make(tokens=tokens, token_type=types, scores=[-float(i) for i in range(len(tokens))], **named)
    )
    ids = found.encode("".join(marks), special=False)
    assert [tokens[i] for i in ids if tokens[i] in marks] == marks and len(ids) <= len(marks) + 1
    assert found.decode(ids) == ("<|plain|>" if kind == USER_DEFINED else "")
    assert {tokens.index(text) for text in ("<|im_end|>", "<end_of_turn>", "<bye>")} <= found.eos_ids


def test_a_plain_word_named_as_beginning_stays_a_word() -> None:
    comma = byte_level()["tokenizer.ggml.tokens"].index(",")
    found = Tokenizer.from_gguf(byte_level(bos_token_id=comma))
    assert found.decode(found.encode("a, b")) == "a, b"


def test_eos_set() -> None:
    assert PIECES.eos_ids == {2, PIECES.vocab_size - 1}
    eot = Tokenizer.from_gguf(byte_level(eot_token_id=5)).eos_ids
    assert eot == {5} | BYTES.eos_ids
    tokens = [*byte_level()["tokenizer.ggml.tokens"][:-3], "<|return|>", "<|end|>", "<|call|>"]
    harmony = byte_level(tokens=tokens, token_type=[1] * 263 + [3] * 3, eos_token_id=263)
    assert Tokenizer.from_gguf(harmony).eos_ids == {263, 265}, "<|end|> closes a message, not the answer"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "bert"}, "of the kind 'bert'"),
        ({"pre": "unheard-of"}, "calls 'unheard-of'"),
        ({"tokens": []}, "holds no vocabulary"),
        ({"merges": ["no such"]}, "is damaged"),
        ({"model": "llama", "scores": [0.0]}, "no score for each"),
    ],
)
def test_unusable_metadata(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        Tokenizer.from_gguf(byte_level(**change))


def test_chat() -> None:
    assert BYTES.chat(HI) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert BYTES.chat(HI, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"
    with pytest.raises(InputError, match="has no chat template.*raw=True in Python, --raw on"):
        PIECES.chat(HI)
    with pytest.raises(InputError, match="no message"):
        BYTES.chat([])
    with pytest.raises(InputError, match="looks like"):
        BYTES.chat([{"content": "Hi"}])
    with pytest.raises(InputError, match="refuses these messages"):
        BYTES.chat([{"role": "user"}])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{% for m in messages %}\n  {% if m %}\nx\n  {% endif %}\n{% endfor %}\n",
            "x\n",
        ),  # blocks leave no blank lines
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
        ("{{ {'a': '<é>'} | tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{{ bos_token }}{{ tools is none }}{{ mood }}", "<|im_start|>Truegood"),
        ("{% generation %}{% set x = 1 %}Hi{% endgeneration %}{{ x is defined }}", "HiFalse"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1"),
    ],
)
def test_template_language(template: str, text: str) -> None:
    assert Tokenizer(BYTES.core, BYTES.names, chat_template=template).chat(HI, mood="good") == text


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% if %}"],
)
def test_template_refusals(template: str) -> None:
    """The template's own refusal, two escapes from the sandbox, and a template that is none."""
    with pytest.raises(InputError, match="chat template refuses"):
        Tokenizer(BYTES.core, chat_template=template).chat(HI)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BYTES.core.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, "tokenizer_config", {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"})
    return tmp_path


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_folder(folder: Path) -> None:
    found = Tokenizer.from_folder(folder)
    assert found.encode("the <|im_end|>") == BYTES.encode("the <|im_end|>")
    assert (found.bos_id, found.eos_ids, found.special_ids) == (BYTES.bos_id, BYTES.eos_ids, BYTES.special_ids)
    assert found.chat_template is None


def test_folder_ends(folder: Path) -> None:
    _write(folder, "config", {"eos_token_id": 7})
    assert Tokenizer.from_folder(folder).eos_ids == {7} | BYTES.eos_ids
    _write(folder, "generation_config", {"eos_token_id": [8, 9]})
    assert Tokenizer.from_folder(folder).eos_ids == {8, 9} | BYTES.eos_ids, "generation_config.json comes first"


def test_tokenizer_json_decides_what_is_put_around_a_text(folder: Path) -> None:
    """As in transformers 5: it saves what the flags say into tokenizer.json, and then asks that alone."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    _write(folder, "tokenizer_config", names | {"add_bos_token": True, "add_eos_token": True})
    assert Tokenizer.from_folder(folder).encode("x") == BYTES.encode("x")
    framed = tokenizers.Tokenizer.from_str(BYTES.core.to_str())
    framed.post_processor = frame(framed, "<|im_start|>", None)
    framed.save(str(folder / "tokenizer.json"))
    _write(folder, "tokenizer_config", names | {"add_bos_token": False})
    assert Tokenizer.from_folder(folder).encode("x") == [BYTES.bos_id, *BYTES.encode("x")]


def test_folder_of_a_model_whose_texts_all_begin(folder: Path) -> None:
    text = tokenizers.Tokenizer.from_str(BYTES.core.to_str())
    text.add_special_tokens(["<|endoftext|>"])
    text.save(str(folder / "tokenizer.json"))
    _write(folder, "config", {"model_type": "mdlm"})
    found = Tokenizer.from_folder(folder)
    assert found.encode("x") == [found.bos_id, *BYTES.encode("x")] and found.names["bos_token"] == "<|endoftext|>"


def test_folder_special_tokens_map(folder: Path) -> None:
    _write(folder, "tokenizer_config", {})
    _write(folder, "special_tokens_map", {"bos_token": {"content": "<|im_start|>"}})
    assert Tokenizer.from_folder(folder).bos_id == BYTES.bos_id


def test_folder_declares_more_tokens(folder: Path) -> None:
    entry = {
        "content": "<tool>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    _write(folder, "tokenizer_config", {"added_tokens_decoder": {str(BYTES.vocab_size): entry}})
    found = Tokenizer.from_folder(folder)
    assert found.encode("<tool>") == [BYTES.vocab_size] and found.vocab_size == BYTES.vocab_size + 1
    assert found.decode([BYTES.vocab_size]) == ""


def test_folder_chat_templates(folder: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    _write(folder, "tokenizer_config", {"chat_template": several})
    assert Tokenizer.from_folder(folder).chat(HI) == BYTES.chat(HI)
    (folder / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.from_folder(folder).chat(HI) == "from the file"


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_folder(folder: Path, content: str) -> None:
    _write(folder, "generation_config", content)
    with pytest.raises(WeightsError, match="generation_config.json"):
        Tokenizer.from_folder(folder)
    _write(folder, "tokenizer", content)
    with pytest.raises(WeightsError, match="tokenizer.json is damaged"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer.json"):
        Tokenizer.from_folder(folder)


def test_other_decoders() -> None:
    """WordPiece, whole words and Metaspace are spelled in bytes too; an unknown decoder is refused."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "day": 1, "##day": 2, "▁to": 3}, unk_token="to"))
    assert Tokenizer(words).decode([0, 1]) == "to day" == words.decode([0, 1])
    words.decoder = tokenizers.decoders.WordPiece()
    assert Tokenizer(words).decode([0, 2, 1]) == "today day" == words.decode([0, 2, 1])
    words.decoder = tokenizers.decoders.Metaspace()
    assert Tokenizer(words).decode([3, 1, 3]) == "today to" == words.decode([3, 1, 3])
    words.decoder = tokenizers.decoders.CTC()
    with pytest.raises(WeightsError, match="CTC"):
        Tokenizer(words)


def _shown(tokenizer: Tokenizer, text: str, shown: bool = True) -> tuple[list[str], str]:
    """Its tokens, and what is read back; a stream of it is the same."""
    ids = tokenizer.encode(text)
    reader = Detokenizer(tokenizer, shown)
    streamed = "".join(map(reader.feed, ids)) + reader.flush()
    assert streamed == tokenizer.decode(ids, shown)
    return [tokenizer.core.id_to_token(i) for i in ids], streamed


@pytest.mark.parametrize(
    ("name", "text", "tokens", "back"),
    [  # each as transformers 5 has it
        ("bytes, odd added tokens", "Ġé é▁x", "Ġé Ġ é ▁x", " \ufffd \ufffd▁x"),
        ("pairs, odd added tokens", "▁xthe", "<s> ▁x ▁the", "<s> x the"),
        ("pairs, a space before the text", "▁xthe</s>the", "<s> ▁x t he </s> t he", "<s> xthe</s>the"),
        ("pairs, no space (Gemma)", "the▁x", "<s> t he ▁x", "<s>the x"),
        ("Llama", "the</s>the", "<s> ▁the </s> t he", "<s> the</s>the"),
        ("Llama, legacy", "the</s>the", "<s> ▁the </s> ▁the", "<s> the</s> the"),
        ("Llama, no space", "the</s> the", "<s> t he </s> ▁the", "<s>the</s> the"),
        ("Llama's class for Mistral", "the</s>the", "<s> ▁the </s> ▁the", "<s> the</s> the"),
        ("unigram", "▁the </s>the", "▁the ▁ </s> ▁the", "the </s> the"),
        ("wordpiece", "the,it", "[CLS] the , it [SEP]", "[CLS] the, it [SEP]"),
        ("wordpiece, odd added tokens, spaces kept", "it,##q", "[CLS] it , ##q [SEP]", "[CLS] it ,q [SEP]"),
        ("words", "the <|m|>a", "the <|m|> a", "the <|m|> a"),
        ("bytes, special by name alone", "<new>a<|im_end|>", "<new> a <|im_end|>", "<new>a<|im_end|>"),
    ],
)  # fmt: skip
def test_text_of_added_tokens(name: str, text: str, tokens: str, back: str, tmp_path: Path) -> None:
    found = Tokenizer.from_folder(write(tmp_path, *FLAVOURS[name]()))
    assert _shown(found, text) == (tokens.split(" "), back)


def test_tokens_that_other_files_declare(tmp_path: Path) -> None:
    """New ones get the next ids: first those listed with ids, then the named ones in a fixed order, then the others."""
    found = Tokenizer.from_folder(
        write(tmp_path / "a", *FLAVOURS["bytes, tokens that only tokenizer_config.json has"]())
    )
    new = ["<|im_end|>", "<tool>", "<|im_start|>", "<sep>", "<pad>", "<c>", "<extra>"]
    assert [found.core.id_to_token(i) for i in range(266, found.vocab_size)] == [*new, "the"]
    assert _shown(found, "<tool><pad><extra>&", False)[1] == "<tool>" and "mask_token" not in found.names
    found = Tokenizer.from_folder(write(tmp_path / "b", *FLAVOURS["bytes, the older files"]()))
    assert [
        found.core.id_to_token(i) for i in range(266, found.vocab_size)
    ] == "<late> <|im_start|> <|im_end|> <p> <e>".split()
    assert found.names["eos_token"] == "<|im_end|>" and _shown(found, "<late><p><e>", False)[1] == "<late>"
    found = Tokenizer.from_folder(write(tmp_path / "c", *FLAVOURS["bytes, special by name alone"]()))
    assert _shown(found, "<|im_end|><think><new>&", False)[1] == "<think>"


def test_added_tokens_of_a_gguf_file_stand_for_their_letters() -> None:
    """As in llama.cpp; in a folder the decoder has its way with them too."""
    tokens = [*sentencepiece()["tokenizer.ggml.tokens"], "▁x"]
    types = [*sentencepiece()["tokenizer.ggml.token_type"], USER_DEFINED]
    found = Tokenizer.from_gguf(sentencepiece(tokens=tokens, token_type=types, scores=[0.0] * len(tokens)))
    assert _shown(found, "▁x")[1] == "<s>▁x"


def test_a_vocabulary_that_lacks_a_part_of_a_text() -> None:
    core = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)], unk_id=None))
    with pytest.raises(InputError, match="no token for a part of this text"):
        Tokenizer(core).encode("ab")
