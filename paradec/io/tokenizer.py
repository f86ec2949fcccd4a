"""Text to token ids and back, for a Hugging Face folder or a GGUF file.

The Rust library `tokenizers` cuts the text. This file adds what a decoder of language models needs around it: the raw
bytes of each token, the set of tokens that end an answer, and the chat template.

Decoding joins bytes rather than strings. The bytes of a text are the bytes of its tokens, one after another, so a text
decoded token by token (`Detokenizer`) is the text decoded at once, whatever the tokens are.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
from tokenizers import AddedToken

from paradec.errors import InputError, WeightsError
from paradec.io import text_file
from paradec.io.chat import render_chat
from paradec.io.gguf_vocab import TURN_ENDS, end_ids, tokenizer_from_metadata
from paradec.io.spelling import spelling
from paradec.io.tokenizer_folder import read_folder

Ids = SupportsIndex | Iterable[SupportsIndex]  # one id or several, an array of numpy or jax too


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
        verbatim: bool = False,
    ):
        """`eos_ids` are added to the end token in `names` and the turn ends (`TURN_ENDS`) of the vocabulary.

        `verbatim`: added tokens stand for their letters (llama.cpp); else for what the decoder makes of them.
        """
        self.core = core
        self.names = dict(names or {})
        self.chat_template = chat_template
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.eos_ids = frozenset(eos_ids) | self._turn_ends(added)
        self.spelling = spelling(core.decoder)
        self._verbatim = {i: token.content.encode() for i, token in added.items()} if verbatim else {}

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a Hugging Face model folder.

        Reads tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json, added_tokens.json,
        chat_template.jinja, chat_template.json, generation_config.json and config.json. Raises `WeightsError` when
        tokenizer.json is missing or one of them is damaged.
        """
        return cls(*read_folder(Path(folder)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the metadata of a GGUF file describes (`read_metadata`).

        Byte-level BPE ("gpt2") and sentencepiece ("llama") vocabularies are known. Raises `WeightsError` for
        another kind, for an unknown way of cutting words, and for metadata without a vocabulary.
        """
        core, names = tokenizer_from_metadata(metadata)
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise WeightsError(
                f"The chat template of this GGUF file is a {type(template).__name__}; it must be a text."
            )
        return cls(core, names, end_ids(metadata), template, verbatim=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into a model's folder, as `from_folder` and transformers read it.

        Added tokens of a GGUF file that hold "▁" are read back with a space in its place.
        """
        folder = Path(folder)
        text_file.write(folder / "tokenizer.json", self.core.to_str(pretty=True))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        _write_json(folder / "tokenizer_config.json", self.names | kind)
        _write_json(folder / "generation_config.json", {"eos_token_id": sorted(self.eos_ids)} if self.eos_ids else {})
        if self.chat_template is not None:
            text_file.write(folder / "chat_template.jinja", self.chat_template)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id. A model's table can be longer: its last rows then mean nothing."""
        return 1 + max(self.core.get_vocab(with_added_tokens=True).values(), default=-1)

    def digest(self) -> str:
        """A hash of the vocabulary, of how it is used, and of the chat template: what tells two tokenizers apart."""
        said = f"{self.core.to_str()}\0{self.chat_template or ''}"
        return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:16]

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
        and for one with a part that the vocabulary lacks and has no token for.
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
            raise InputError(self._why_not(text)) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # its word for a bug of its own
                raise
            raise InputError(
                f"The settings of this model's tokenizer contradict each other, and break the library that cuts text"
                f" ({' '.join(str(error).split())[:200]}). Download its tokenizer.json again."
            ) from error

    def _why_not(self, text: str) -> str:
        if not isinstance(self.core.model, tokenizers.models.WordLevel):
            return (
                "The model's vocabulary has no token for a part of this text, nor one for what it lacks: leave it out."
            )
        strange = [word for word in text.split() if self.core.token_to_id(word) is None]
        words = sorted(self.core.get_vocab(), key=self.core.token_to_id)
        return (
            f"The model knows whole words only, and {', '.join(map(repr, strange[:3]))} is none of its {len(words)}:"
            f" {' '.join(words[:60])}"
        )

    def decode(self, ids: Ids, special: bool = False) -> str:
        """The text of `ids`; special tokens are left out unless `special`.

        Bytes that are no UTF-8 become U+FFFD, and ids past the vocabulary (unused rows of the model's table) nothing.
        """
        text, _ = self.spelling.trim(b"".join(self.pieces(ids, special, first=True)), self.spelling.drop)
        return text.decode("utf-8", "replace")

    def token(self, token_id: int) -> bytes:
        """The bytes this token stands for: part of a character, many characters, or b"" past the vocabulary.

        Raises `InputError` for a negative id.
        """
        return self._bytes(token_id, self.spelling.later) or b""

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
        """The bytes of `ids` within a text, without those of special tokens unless `special`."""
        return b"".join(self.pieces(ids, special))

    def pieces(self, ids: Ids, special: bool, first: bool = False) -> list[bytes]:
        """The bytes of each of `ids` that is shown: no special ones unless `special`, and none past the vocabulary.

        `first`: a text begins with them. What sentencepiece puts before a text is there until `spelling.trim`.
        """
        if (as_list := getattr(ids, "tolist", None)) is not None:  # an array leaves its device in one copy
            ids = as_list()
        several = map(operator.index, ids if isinstance(ids, Iterable) else (ids,))
        found: list[bytes] = []
        for i in several:
            if not special and i in self.special_ids:
                continue
            text = self._bytes(i, self.spelling.first if first and not found else self.spelling.later)
            if text is not None:
                found.append(text)
        return found

    def _bytes(self, token_id: int, rule: Callable[[str], bytes]) -> bytes | None:
        if token_id < 0:
            raise InputError(f"Token ids start at 0, so {token_id} is none: mask out padding before decoding.")
        if token_id in self._verbatim:
            return self._verbatim[token_id]
        text = self.core.id_to_token(token_id)
        return None if text is None else rule(text)

    def _turn_ends(self, added: Mapping[int, AddedToken]) -> frozenset[int]:
        texts = {token.content for token in added.values()}
        ends = texts & TURN_ENDS
        if "<|return|>" in texts:  # the harmony format, where <|end|> only closes one message of an answer
            ends -= {"<|end|>"}
        ids = (self.core.token_to_id(text) for text in (*ends, self.names.get("eos_token", "")))
        return frozenset(i for i in ids if i is not None)


def of_characters(alphabet: Sequence[str]) -> Tokenizer:
    """Every character is a token, in this order. It has no end of text and no chat template."""
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(core)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text_file.write(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


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
