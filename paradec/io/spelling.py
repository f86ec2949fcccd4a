"""How the tokens of a vocabulary spell a text in bytes: what a decoder of the library `tokenizers` does, by the token.

That decoder joins strings, so half a character is lost. Here each token has bytes of its own, and the bytes of a text
are those of its tokens: all that depends on a token's place is whether it is the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import Decoder

from paradec.errors import WeightsError
from paradec.io.gguf_vocab import BYTE_OF_LETTER

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a WordPiece decoder writes closer together, in this order.
_CLOSER = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't"}
_CLOSER |= {" 's": "'s", " 've": "'ve", " 're": "'re"}


@dataclass(frozen=True)
class Spelling:
    """`first(token)` are the bytes of a token that begins a text, `later(token)` of one that goes on.

    From the text as a whole, `drop` copies of `space` are dropped where it begins with them (`trim`).
    """

    first: Callable[[str], bytes]
    later: Callable[[str], bytes]
    space: bytes = b" "
    drop: int = 0

    def trim(self, text: bytes, left: int) -> tuple[bytes, int]:
        """The beginning of a text without up to `left` spaces, and how many may still be dropped after it."""
        while left and text.startswith(self.space):
            text, left = text[len(self.space) :], left - 1
        return text, 0 if text else left


def spelling(decoder: Decoder | None) -> Spelling:
    """The rule of a decoder; None joins whole words with spaces. Raises `WeightsError` for a kind not known here."""
    state = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = state.get("decoders", [state] if state else [])
    if not steps:
        return Spelling(lambda token: token.encode(), lambda token: (" " + token).encode())
    first: list[Callable[[str], str]] = []
    later: list[Callable[[str], str]] = []
    to_bytes, fused, drop = str.encode, False, ("", 0)
    for step in steps:
        match step["type"]:
            case "ByteLevel":
                to_bytes = _from_letters
            case "ByteFallback":
                to_bytes = _from_byte_tokens
            case "Fuse":
                fused = True
            case "Strip" if fused:
                drop = step["content"], step["start"]
            case _:
                begins, goes_on = _rewriting(step)
                first.append(begins)
                later.append(goes_on)
    return Spelling(_chain(first, to_bytes), _chain(later, to_bytes), drop[0].encode(), drop[1])


def _chain(rewritings: list[Callable[[str], str]], to_bytes: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def spell(token: str) -> bytes:
        for rewrite in rewritings:
            token = rewrite(token)
        return to_bytes(token)

    return spell


def _rewriting(step: Mapping[str, Any]) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """What one step of a decoder makes of a text's first token and of a later one."""
    match step:
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            replaced = lambda token: token.replace(old, new)
            return replaced, replaced
        case {"type": "Strip", "content": space, "start": start}:
            stripped = lambda token: re.sub(f"^{re.escape(space)}{{0,{start}}}", "", token)
            return stripped, stripped
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            spaced = lambda token: token.replace(mark, " ")
            return spaced if scheme == "never" else lambda token: token.replace(mark, ""), spaced
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            closer = _closer if cleanup else lambda token: token
            glued = lambda token: token.replace(prefix, "", 1) if token.startswith(prefix) else " " + token
            return closer, lambda token: closer(glued(token))
    raise WeightsError(
        f"The decoder of this tokenizer ({step['type']}) is not known here: byte-level BPE, sentencepiece and WordPiece"
        " are."
    )


def _closer(token: str) -> str:
    for loose, tight in _CLOSER.items():
        token = token.replace(loose, tight)
    return token


def _from_letters(token: str) -> bytes:
    """Byte-level BPE writes each byte as one printable letter. A token with any other letter is plain text."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return token.encode()


def _from_byte_tokens(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.encode()
