"""Text to token ids and back, for a Hugging Face folder or a GGUF file.

The Rust library `tokenizers` cuts the text. This file adds what a decoder of language models needs around it: the raw
bytes of each token, the set of tokens that end an answer, and the chat template.

Decoding joins bytes rather than strings. The bytes of a text are the bytes of its tokens, one after another, so a text
decoded token by token (`Detokenizer`) is the text decoded at once, whatever the tokens are.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
from tokenizers import AddedToken

from paradec.errors import InputError, WeightsError
from paradec.io import regular_file, text_file
from paradec.io.chat import render_chat
from paradec.io.generation_config import read_ends
from paradec.io.gguf_vocab import BYTE_OF_LETTER, frame, tokenizer_from_metadata

# Tokens that end an answer in the chat formats in use. A base model keeps them too, and never needs to say them.
TURN_ENDS = frozenset(
    "<|im_end|> <end_of_turn> <turn|> <|eot_id|> <|eom_id|> <|end|> <|endoftext|> <|end_of_text|> <|return|> <|call|>"
    " <|end_of_turn|> <｜end▁of▁sentence｜>".split()
)
# Model types that learned from texts which all begin with a token that GPT-2's tokenizer puts before none.
_BEGUN = {"mdlm": "<|endoftext|>", "bd3lm": "<|endoftext|>"}
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "sep_token", "cls_token")
Ids = SupportsIndex | Iterable[SupportsIndex]  # one id or several, an array of numpy or jax too
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Encodes text, decodes ids, and knows the special tokens and the chat template of one model.

    Build one with `Tokenizer.from_folder` or `Tokenizer.from_gguf`. `core` is the `tokenizers.Tokenizer` that does the
    cutting; `names` maps "bos_token", "eos_token", ... to their texts, as chat templates expect them.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        names: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ):
        """`eos_ids` are added to the end token in `names` and the turn ends (`TURN_ENDS`) of the vocabulary."""
        self.core = core
        self.names = dict(names or {})
        self.chat_template = chat_template
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.eos_ids = frozenset(eos_ids) | self._turn_ends(added)
        self._added = {i: token.content.encode() for i, token in added.items()}
        decoder = None if core.decoder is None else json.loads(core.decoder.__getstate__())
        self._to_bytes, self._drops_first_space = _byte_rule(decoder)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a Hugging Face model folder.

        Reads tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json,
        chat_template.jinja, generation_config.json and config.json. Raises `WeightsError` when tokenizer.json is
        missing or one of them is damaged.
        """
        return _from_folder(cls, Path(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the metadata of a GGUF file describes (`read_metadata`).

        Byte-level BPE ("gpt2") and sentencepiece ("llama") vocabularies are known. Raises `WeightsError` for
        another kind, for an unknown way of cutting words, and for metadata without a vocabulary.
        """
        core, names = tokenizer_from_metadata(metadata)
        ends = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
        return cls(core, names, (i for i in ends if i is not None), metadata.get("tokenizer.chat_template"))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id. A model's table can be longer: its last rows then mean nothing."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, or None where the model has none.

        Whether it belongs in front of a prompt is another question; `encode` knows the answer.
        """
        return self.core.token_to_id(self.names["bos_token"]) if "bos_token" in self.names else None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of `text`; `special` puts the beginning-of-text token in front where the model was trained with it.

        Special tokens written out in the text become those tokens. The text that `chat` returns holds all the
        special tokens it needs: encode it with `special=False`. Raises `InputError` for a text that has no UTF-8 form,
        and for a word that a vocabulary of whole words lacks.
        """
        return self._encoding(text, special).ids

    def encode_with_offsets(self, text: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode(text, special)`, and for each the characters `text[start:end]` that it stands for.

        Spans follow one another and leave no character out, spaces between words included, but for characters that
        the vocabulary lacks. They overlap only where a character is several tokens, which then all have its span, and
        where sentencepiece adds a space, which has the span of the character after it. A token that `special` adds
        has the span (0, 0).
        """
        encoding = self._encoding(text, special)
        return encoding.ids, encoding.offsets

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding:
        try:
            return self.core.encode(text, add_special_tokens=special)
        except TypeError as error:
            raise InputError(
                "The text holds half a character (a lone surrogate): read it again with the right encoding."
            ) from error
        except Exception as error:  # the Rust library raises bare Exception
            strange = [word for word in text.split() if self.core.token_to_id(word) is None]
            words = sorted(self.core.get_vocab(), key=self.core.token_to_id)
            raise InputError(
                f"The model knows whole words only, and {', '.join(map(repr, strange[:3]))} is none of its "
                f"{len(words)}: {' '.join(words[:60])}"
            ) from error

    def decode(self, ids: Ids, special: bool = False) -> str:
        """The text of `ids`; special tokens are left out unless `special`.

        Bytes that are no UTF-8 become U+FFFD, and ids past the vocabulary (unused rows of the model's table) nothing.
        """
        return self.without_first_space(self.shown(ids, special)).decode("utf-8", "replace")

    def token(self, token_id: int) -> bytes:
        """The bytes this token stands for: part of a character, many characters, or b"" past the vocabulary.

        Raises `InputError` for a negative id.
        """
        if token_id < 0:
            raise InputError(f"Token ids start at 0, so {token_id} is none: mask out padding before decoding.")
        if token_id in self._added:
            return self._added[token_id]
        text = self.core.id_to_token(token_id)
        return b"" if text is None else self._to_bytes(text)

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt text of a conversation: `[{"role": "user", "content": "Hi"}]`, by the model's own template.

        `add_generation_prompt` opens the assistant's turn; `variables` (`tools`, `enable_thinking`, ...) reach the
        template as JSON has them. Encode the result with `special=False`. Raises `InputError` when the model has no
        template, when there is no message, and when the template refuses the messages, fails or asks for too much
        (`render_chat`).
        """
        if self.chat_template is None:
            raise InputError(
                "This model has no chat template: it is a base model. Give it plain text to continue: raw=True in"
                " Python, --raw on the command line."
            )
        values = {**self.names, **variables, "add_generation_prompt": add_generation_prompt}
        return render_chat(self.chat_template, messages, values)

    def shown(self, ids: Ids, special: bool) -> bytes:
        """The bytes of `ids` in a text, without those of special tokens unless `special`."""
        if (as_list := getattr(ids, "tolist", None)) is not None:  # an array leaves its device in one copy
            ids = as_list()
        several = map(operator.index, ids if isinstance(ids, Iterable) else (ids,))
        return b"".join(self.token(i) for i in several if special or i not in self.special_ids)

    def without_first_space(self, text: bytes) -> bytes:
        """The beginning of a text without the space that sentencepiece puts there for its first word."""
        return text[1:] if self._drops_first_space and text.startswith(b" ") else text

    def _turn_ends(self, added: Mapping[int, AddedToken]) -> frozenset[int]:
        texts = {token.content for token in added.values()}
        ends = texts & TURN_ENDS
        if "<|return|>" in texts:  # the harmony format, where <|end|> only closes one message of an answer
            ends -= {"<|end|>"}
        ids = (self.core.token_to_id(text) for text in (*ends, self.names.get("eos_token", "")))
        return frozenset(i for i in ids if i is not None)


def save_words(folder: Path, words: Sequence[str]) -> None:
    """Write the tokenizer of a vocabulary of whole words, which spaces separate, as `Tokenizer.from_folder` reads it.

    Words in angle brackets are special: "<|mask|>" and the ends of `TURN_ENDS` are what they are elsewhere. A chat is
    what was said in it.
    """
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([word for word in words if word.startswith("<|")])
    text_file.write(folder / "tokenizer.json", core.to_str(pretty=True))
    text_file.write(folder / "chat_template.jinja", "{% for message in messages %}{{ message.content }} {% endfor %}")


def _byte_rule(decoder: Mapping[str, Any] | None) -> tuple[Callable[[str], bytes], bool]:
    """How a `tokenizers` decoder spells a token in bytes, and whether it drops the first space of a text."""
    steps = {} if decoder is None else {step["type"]: step for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in steps:
        return _from_letters, False
    if "WordPiece" in steps:
        prefix = steps["WordPiece"]["prefix"]
        return lambda text: (text[len(prefix) :] if text.startswith(prefix) else " " + text).encode(), True
    if "Metaspace" in steps:
        space = steps["Metaspace"]["replacement"]
        return lambda text: text.replace(space, " ").encode(), steps["Metaspace"]["prepend_scheme"] != "never"
    if "Replace" in steps:
        return _from_sentencepiece, steps.get("Strip", {}).get("start", 0) > 0
    if not steps:  # whole words
        return lambda text: (" " + text).encode(), True
    raise WeightsError(
        f"The decoder of this tokenizer ({', '.join(steps)}) is not known here: byte-level BPE, sentencepiece and"
        " WordPiece are."
    )


def _from_letters(text: str) -> bytes:
    """Byte-level BPE writes each byte as one printable letter. A token with any other letter is plain text."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in text)
    except KeyError:
        return text.encode()


def _from_sentencepiece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()


def _from_folder(cls: type[Tokenizer], folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise WeightsError(
            f"{folder} has no tokenizer.json. Save the tokenizer there in its fast form:"
            " AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise WeightsError(f"{path} is damaged, download it again: {error}") from error
    core.no_truncation()
    core.no_padding()
    _keep_spaces(core)
    config = _read_json(folder / "tokenizer_config.json")
    model = _read_json(folder / "config.json")
    begin = _BEGUN.get(str(model.get("model_type")), "")
    if core.token_to_id(begin) is not None:
        config |= {"bos_token": begin, "add_bos_token": True}
    names = _special_names({**_read_json(folder / "special_tokens_map.json"), **config})
    _add_tokens(core, config, names)
    _set_ends(core, config, names)
    longest = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return cls(core, names, read_ends(folder, longest), _chat_template(folder, config))


def _keep_spaces(core: tokenizers.Tokenizer) -> None:
    """Let the spans of tokens hold their spaces, as a mask over characters needs it; some files cut them off."""
    post = core.post_processor
    state = {} if post is None else json.loads(post.__getstate__())
    for step in [post[i] for i in range(len(state["processors"]))] if "processors" in state else [post]:
        if hasattr(step, "trim_offsets"):
            step.trim_offsets = False
    core.post_processor = post


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} when there is no such file."""
    try:
        return regular_file.read_json(path)
    except FileNotFoundError:
        return {}


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the named special tokens, which are written as a string or as an object with the key "content"."""
    found = {name: config[name] for name in _NAMED if config.get(name)}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}


def _add_tokens(core: tokenizers.Tokenizer, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json declares: without them they would be cut into pieces."""
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    declared = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    wanted = {token["content"]: AddedToken(**token) for _, token in declared}
    wanted |= {text: AddedToken(text, special=True, normalized=False) for text in names.values() if text not in wanted}
    core.add_tokens([token for text, token in wanted.items() if text not in known])


def _set_ends(core: tokenizers.Tokenizer, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Obey `add_bos_token` and `add_eos_token` where tokenizer_config.json sets them; else tokenizer.json decides."""
    if "add_bos_token" in config or "add_eos_token" in config:
        first, last = (names.get(f"{end}_token") if config.get(f"add_{end}_token") else None for end in ("bos", "eos"))
        core.post_processor = frame(core, first, last)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
