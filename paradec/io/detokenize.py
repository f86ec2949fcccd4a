"""Text as it is decoded: ids in, whole characters out."""

from __future__ import annotations

import codecs

from paradec.io.tokenizer import Ids, Tokenizer


class Detokenizer:
    """Turns a stream of token ids into a stream of text that never ends inside a character.

        stream = Detokenizer(tokenizer)
        for ids in steps:
            print(stream.feed(ids), end="", flush=True)
        print(stream.flush())

    The pieces joined are `tokenizer.decode(all ids)`, however the ids were dealt out. A character of several tokens
    comes with its last one, so `feed` may return "".
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False, prompt: Ids = ()):
        """`special` shows special tokens, as in `Tokenizer.decode`.

        With the ids of a `prompt`, the stream is the text that follows it. Otherwise it is a text of its own, and
        sentencepiece drops the space before its first word.
        """
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begin()
        self.feed(prompt)

    def feed(self, ids: Ids) -> str:
        """The text that `ids` (one id or several) complete; "" while a character waits for its other bytes."""
        pieces = self._tokenizer.pieces(ids, self._special, self._at_start)
        self._at_start = self._at_start and not pieces
        text, self._to_trim = self._tokenizer.spelling.trim(b"".join(pieces), self._to_trim)
        return self._utf8.decode(text)

    def flush(self) -> str:
        """What is left at the end of the stream: U+FFFD for a character that never became whole, or "".

        The stream then begins anew.
        """
        rest = self._utf8.decode(b"", final=True)
        self._begin()
        return rest

    def _begin(self) -> None:
        self._utf8.reset()
        self._at_start, self._to_trim = True, self._tokenizer.spelling.drop
