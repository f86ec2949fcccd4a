"""The tokenizer inside a GGUF file: its vocabulary and merges are there, the rules that cut text only by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from paradec.errors import WeightsError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type; byte tokens (6) and unused ones (5) need no care
# Tokens that end an answer in the chat formats in use. A base model keeps them too, and never needs to say them.
TURN_ENDS = frozenset(
    "<|im_end|> <end_of_turn> <turn|> <|eot_id|> <|eom_id|> <|end|> <|endoftext|> <|end_of_text|> <|return|> <|call|>"
    " <|end_of_turn|> <｜end▁of▁sentence｜>".split()
)
_TURN_STARTS = frozenset(
    "<|im_start|> <start_of_turn> <|turn> <|start_header_id|> <|end_header_id|> <｜begin▁of▁sentence｜> <｜User｜>"
    " <｜Assistant｜>".split()
)
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
# Words that change from small to capital letters are cut there.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CAMEL_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_CAMEL % ('', '')}|\p{{N}}|{_CAMEL_REST}"
_GPT4O = rf"{_CAMEL % (_ENDINGS + '?', _ENDINGS + '?')}|\p{{N}}{{1,3}}|{_CAMEL_REST}"

# tokenizer.ggml.pre -> how a byte-level vocabulary cuts text before merging. Files without a name are old: GPT-2 fits
# most of them.
_GPT2_NAMES = "default gpt-2 mpt olmo jais phi-2 roberta-bpe".split()
_DIGIT_NAMES = "smollm starcoder refact command-r codeshell".split()
_LLAMA3_NAMES = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2".split()
_PATTERNS = {
    **dict.fromkeys([*_LLAMA3_NAMES, "dbrx", "smaug-bpe"], _LLAMA3),
    **dict.fromkeys("qwen2 deepseek-r1-qwen stablelm2".split(), _QWEN2),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
}
_WHOLE_WORDS = frozenset([*_LLAMA3_NAMES, "tekken"])  # a word that is a token is that token, even against its merges


def _letters() -> dict[int, str]:
    """The printable letter of each byte in byte-level BPE (GPT-2): itself where it prints, else one from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(kept)]
    return {byte: chr(byte) for byte in kept} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


BYTE_OF_LETTER = {letter: byte for byte, letter in _letters().items()}


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The `tokenizers.Tokenizer` that GGUF metadata describe, and its named special tokens ("bos_token": "<s>").

    Raises `WeightsError` for metadata without a vocabulary, or with a kind of vocabulary or a way of cutting words
    that is not known here.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise WeightsError("This GGUF file holds no vocabulary (tokenizer.ggml.tokens): take one converted whole.")
    if kind not in ("gpt2", "llama"):
        raise WeightsError(
            f"This GGUF file holds a vocabulary of the kind {kind!r}; 'gpt2' (byte-level BPE) and 'llama'"
            " (sentencepiece) are known here. Load the model from its Hugging Face folder instead."
        )
    try:
        core = _byte_level(metadata, tokens) if kind == "gpt2" else _sentencepiece(metadata, tokens)
        _declare(core, tokens, _kinds(metadata, tokens))
        names = _names(metadata, tokens)
        by_default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
        first = names.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", by_default) else None
        last = names.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
        core.post_processor = frame(core, first, last)
    except WeightsError:
        raise
    except Exception as error:  # the Rust library raises bare Exception for a merge of tokens that do not exist
        raise WeightsError(f"The vocabulary of this GGUF file is damaged, download it again: {error}.") from error
    return core, names


def frame(core: Tokenizer, first: str | None, last: str | None) -> processors.TemplateProcessing:
    """A post-processor that puts the tokens `first` and `last` (None: nothing) around an encoded text."""
    template = [*([first] if first else []), "$A", *([last] if last else [])]
    named = [(text, core.token_to_id(text)) for text in (first, last) if text]
    return processors.TemplateProcessing(single=template, special_tokens=named)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in _WHOLE_WORDS))
    core.pre_tokenizer = _cutter(pre)
    core.decoder = decoders.ByteLevel()
    return core


def _cutter(pre: str) -> pre_tokenizers.PreTokenizer:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _GPT2_NAMES:
        return whole
    if pre in _DIGIT_NAMES:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    if pre not in _PATTERNS:
        known = ", ".join(sorted([*_GPT2_NAMES, *_DIGIT_NAMES, *_PATTERNS]))
        raise WeightsError(
            f"This GGUF file cuts text in the way it calls {pre!r}, which is not known here (known: {known})."
            " Load the model from its Hugging Face folder instead."
        )
    cut = pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    scores, types = metadata.get("tokenizer.ggml.scores"), metadata.get("tokenizer.ggml.token_type")
    if not scores or len(scores) != len(tokens):
        raise WeightsError("This GGUF file has no score for each of its tokens (tokenizer.ggml.scores): take another.")
    unknown = _token_id(metadata, "unknown")
    unknown = None if unknown is None else tokens[unknown]
    core = Tokenizer(
        models.BPE(vocab, _merges(tokens, scores, types), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        pieces.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(spaces)
    core.decoder = decoders.Sequence(pieces)
    return core


def _merges(tokens: list[str], scores: Sequence[float], types: Sequence[int] | None) -> list[tuple[str, str]]:
    """The merges that sentencepiece's rule implies: join the neighbours whose union is the best-scored token.

    Only normal tokens are joined: the others stand in the text whole or not at all.
    """
    order = sorted((i for i in range(len(tokens)) if types is None or types[i] == NORMAL), key=lambda i: -scores[i])
    known = {tokens[i] for i in order}
    found = []
    for i in order:
        token = tokens[i]
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        found += [(left, right) for left, right in cuts if left in known and right in known]
    return found


def _kinds(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """The type of each token, but control for what ends a text or marks a turn: converters often call those normal.

    Such a token is one that the metadata name as an end, or as the beginning unless that is a plain word (some files
    name token 11, a comma); one that ends or begins turns elsewhere (`TURN_ENDS`); and a normal one like "<|role|>".
    """
    types = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    ends, begin = end_ids(metadata), _token_id(metadata, "bos")
    for i, (token, kind) in enumerate(zip(tokens, types, strict=False)):
        marks = token in TURN_ENDS or token in _TURN_STARTS or (i == begin and token.startswith(("<", "[")))
        if i in ends or marks or (kind == NORMAL and _MARKER.fullmatch(token)):
            types[i] = CONTROL
    return types


def _declare(core: Tokenizer, tokens: list[str], types: Sequence[int]) -> None:
    """Tokens to find whole in a text before anything is cut: control tokens are special, user-defined ones are not."""
    for kind in (CONTROL, USER_DEFINED):
        found = [token for token, its_kind in zip(tokens, types, strict=False) if its_kind == kind]
        core.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token in found])


def end_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that the metadata name as the end of a text, of a turn or of a message."""
    ids = (_token_id(metadata, name) for name in ("eos", "eot", "eom"))
    return frozenset(i for i in ids if i is not None)


def _token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    found = metadata.get(key)
    if found is not None and (isinstance(found, bool) or not isinstance(found, SupportsIndex)):
        raise WeightsError(f"{key} of this GGUF file is {found!r:.80}, which is no token id: take another file.")
    return None if found is None or found.__index__() < 0 else found.__index__()


def _names(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: _token_id(metadata, key) for name, key in keys.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
