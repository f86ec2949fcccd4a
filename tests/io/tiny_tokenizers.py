"""Folders with small tokenizers, in the forms found on the hub: `write(folder, *FLAVOURS[name]())`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from paradec.io.gguf_vocab import BYTE_OF_LETTER

Files = tuple[Tokenizer, dict[str, Any]]  # tokenizer.json, and the other files by name
FLAVOURS: dict[str, Callable[[], Files]] = {}

FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
TURNS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "unk", "pad", "mask")}
ODD = [  # every kind of added token, and letters that mean something else inside a vocabulary
    AddedToken("▁x", normalized=False),
    AddedToken("a▁b", normalized=True),
    AddedToken("<l>", lstrip=True),
    AddedToken("<r>", rstrip=True, normalized=False),
    AddedToken("<w>", single_word=True),
    AddedToken("<sp>", special=True, lstrip=True, rstrip=True),
    AddedToken("Ġé", normalized=False),
    AddedToken("the er", normalized=True),
    AddedToken("é", normalized=False),
]
PIECES = "▁ ▁t he ▁the t h e ▁a er ll ▁▁ ä 語 s n o < > | _ 1 2 ' l i m d r a".split()


def write(folder: Path, core: Tokenizer, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def token(text: str, **flags: Any) -> dict[str, Any]:
    """A token as tokenizer_config.json lists it."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": text} | plain | flags


def flavour(name: str) -> Callable[[Callable[[], Files]], Callable[[], Files]]:
    return lambda make: FLAVOURS.setdefault(name, make)


def byte_level(added: bool = True) -> Tokenizer:
    letters = sorted(BYTE_OF_LETTER, key=BYTE_OF_LETTER.__getitem__)
    merges = [tuple(pair.split()) for pair in ("Ġ t", "h e", "Ġt he", "Ã ¤", "1 2", "l l", "' ll", "Ġ a", "e r", "Ġ Ġ")]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*letters, *(a + b for a, b in merges)])}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    if added:
        core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return core


def pairs(strip: bool = True) -> Tokenizer:
    """Sentencepiece that merges pairs and falls back to bytes (Llama, Gemma); nothing cuts or adds spaces yet."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    merges = [tuple(pair.split()) for pair in ("▁ t", "h e", "▁t he", "▁ a", "e r", "l l", "▁ ▁")]
    vocab = {t: i for i, t in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return core


def prefixed(strip: bool = True) -> Tokenizer:
    """`pairs` as tokenizer.json of Llama 2 has it: a space before each piece of text between special tokens."""
    core = pairs(strip)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return core


def unigram(scheme: str) -> Tokenizer:
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(p, -1.0 - i / 10) for i, p in enumerate(PIECES)]
    core = Tokenizer(models.Unigram(vocab, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return core


def wordpiece(cleanup: bool = True) -> Tokenizer:
    whole = [*BERT.values(), *"the a h t . , ! ? ' s n 1 ä it don m 's n't".split(), *"bcdefg"]
    words = dict.fromkeys([*whole, "##er", "##e", "##h", "##t", "##2", *(f"##{letter}" for letter in "abcdilnorsu")])
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=cleanup)
    core.add_special_tokens(list(BERT.values()))
    ends = [(text, core.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return core


def with_tokens(core: Tokenizer, tokens: list[AddedToken]) -> Tokenizer:
    core.add_tokens(tokens)
    return core


@flavour("bytes")
def _() -> Files:
    return byte_level(), {"tokenizer_config": FAST | TURNS | {"clean_up_tokenization_spaces": True}}


@flavour("bytes, no other file")
def _() -> Files:
    return byte_level(), {}


@flavour("bytes, odd added tokens")
def _() -> Files:
    return with_tokens(byte_level(), ODD), {"tokenizer_config": FAST | TURNS}


@flavour("bytes, flags say more than tokenizer.json")
def _() -> Files:
    return byte_level(), {"tokenizer_config": FAST | TURNS | {"add_bos_token": True, "add_eos_token": True}}


@flavour("bytes, flags say less than tokenizer.json")
def _() -> Files:
    core = byte_level()
    begin = ("<|im_start|>", core.token_to_id("<|im_start|>"))
    frame = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
    return core, {"tokenizer_config": FAST | TURNS | {"add_bos_token": False}}


@flavour("bytes, a space before the text")
def _() -> Files:
    core = byte_level()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return core, {"tokenizer_config": FAST | TURNS | {"add_prefix_space": True}}


@flavour("bytes, words that are tokens, cut as Llama 3")
def _() -> Files:
    core = byte_level()
    core.model.ignore_merges = True
    cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.normalizer = normalizers.NFC()
    return core, {"tokenizer_config": FAST | TURNS}


@flavour("bytes, tokens that only tokenizer_config.json has")
def _() -> Files:
    core = byte_level(added=False)
    core.post_processor = None
    listed = {"268": token("<tool>", special=False, normalized=True), "5": token("&"), "266": token("<|im_end|>")}
    more = {"added_tokens_decoder": listed, "additional_special_tokens": ["<extra>", "the"], "cls_token": "<c>"}
    more |= {"pad_token": {"__type": "AddedToken"} | token("<pad>", lstrip=True), "sep_token": "<sep>"}
    return core, {"tokenizer_config": FAST | TURNS | more, "special_tokens_map": {"mask_token": "<unseen>"}}


@flavour("bytes, special by name alone")
def _() -> Files:
    core = with_tokens(byte_level(added=False), [AddedToken("<|im_end|>"), AddedToken("<think>")])
    return core, {"tokenizer_config": FAST | TURNS | {"extra_special_tokens": ["<think>", "<new>"], "image_token": "&"}}


@flavour("bytes, the older files")
def _() -> Files:
    named = TURNS | {"pad_token": token("<p>", rstrip=True), "additional_special_tokens": ["<e>"]}
    added = {"<p>": 270, "<late>": 267, "<|im_start|>": 268, "<|im_end|>": 269}
    files = {"tokenizer_config": FAST | {"eos_token": "<late>"}, "special_tokens_map": named, "added_tokens": added}
    return byte_level(added=False), files


@flavour("pairs, a space before each piece")
def _() -> Files:
    return prefixed(), {"tokenizer_config": FAST | ENDS}


@flavour("pairs, odd added tokens")
def _() -> Files:
    return with_tokens(prefixed(), ODD), {"tokenizer_config": FAST | ENDS}


@flavour("pairs, a space before the text")
def _() -> Files:
    core = with_tokens(pairs(), ODD)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return core, {"tokenizer_config": FAST | ENDS | {"legacy": False}}


@flavour("pairs, no space (Gemma)")
def _() -> Files:
    core = with_tokens(pairs(strip=False), ODD)
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return core, {"tokenizer_config": FAST | ENDS}


def _llama(more: dict[str, Any], family: str = "llama") -> Callable[[], Files]:
    config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": True} | ENDS | more
    return lambda: (
        with_tokens(prefixed(), ODD[:5]),
        {"tokenizer_config": config, "config": {"model_type": family}},
    )


for _name, _more in {
    "": {},
    ", legacy": {"legacy": True},
    ", legacy, no space": {"legacy": True, "add_prefix_space": False},
    ", no space": {"legacy": False, "add_prefix_space": False},
    ", space": {"legacy": False, "add_prefix_space": True},
}.items():
    FLAVOURS[f"Llama{_name}"] = _llama(_more)
FLAVOURS["Llama's class for Mistral"] = _llama({"legacy": False}, "mistral")


@flavour("unigram")
def _() -> Files:
    return with_tokens(unigram("always"), ODD[:6]), {"tokenizer_config": FAST | ENDS}


@flavour("unigram, no space")
def _() -> Files:
    return unigram("never"), {"tokenizer_config": FAST | ENDS}


@flavour("unigram, a space before the text")
def _() -> Files:
    core = unigram("first")
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return core, {"tokenizer_config": FAST | ENDS}


@flavour("wordpiece")
def _() -> Files:
    return wordpiece(), {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": True} | BERT}


@flavour("wordpiece, odd added tokens, spaces kept")
def _() -> Files:
    odd = [AddedToken("<r>", rstrip=True), AddedToken("##q"), AddedToken("Keep", normalized=False)]
    return with_tokens(wordpiece(cleanup=False), odd), {"tokenizer_config": FAST | BERT}


@flavour("words")
def _() -> Files:
    core = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate("<unk> the a er ä <|m|>".split())}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<unk>", "<|m|>"])
    return core, {"tokenizer_config": FAST | {"unk_token": "<unk>", "mask_token": "<|m|>"}}
