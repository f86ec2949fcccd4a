"""Text as it is decoded: ids in, whole characters out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

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


class Transcript:
    """One row of a decode as text: what may be shown of it so far, and where it met a stop string.

    What was shown once stays. So the bytes of half a character wait for the others, and an end that a stop string might
    begin with waits until it does or does not.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Ids = ()):
        """With the ids of a `prompt`, the row is the text that follows it; see `Detokenizer`."""
        self._tokenizer, self._stop, self._prompt = tokenizer, tuple(stop), prompt
        self._begin()

    def _begin(self) -> None:
        self._reader = Detokenizer(self._tokenizer, prompt=self._prompt)
        self._ids, self._pieces, self._text = [], [], ""
        self.stopped: int | None = None
        """How many tokens there were when the first stop string was complete; None: there is none."""

    def read(self, ids: Sequence[int]) -> None:
        """Take in `ids`, all tokens of the row so far. Those after a stop string are passed over.

        A row whose earlier tokens have become others (an unmasking rule may take them back) is read anew.
        """
        if list(ids[: len(self._ids)]) != self._ids:
            self._begin()
        longest = max(map(len, self._stop), default=1)
        for token in ids[len(self._ids) :]:
            if self.stopped is not None:
                return
            self._ids.append(token)
            self._pieces.append(self._reader.feed(token))
            start = max(len(self._text) - longest + 1, 0)
            self._text += self._pieces[-1]
            ends = [at for at in (self._text.find(s, start) for s in self._stop) if at >= 0]
            if ends:
                self.stopped, self._text = len(self._ids), self._text[: min(ends)]

    def pieces(self, ended: bool) -> tuple[str, ...]:
        """The text that each token completed; joined they are what may be shown, all of it where the row has `ended`.

        An ended row is not read on: a character that never became whole is U+FFFD then.
        """
        if self.stopped is None and ended and self._pieces:
            rest = self._reader.flush()
            self._pieces[-1] += rest
            self._text += rest
        left = len(self._text) if ended or self.stopped is not None else len(self._text) - self._held()
        shown = []
        for piece in self._pieces:
            shown.append(piece[:left])
            left -= len(shown[-1])
        return tuple(shown)

    def _held(self) -> int:
        """How long the longest end of the text is that a stop string begins with."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._text))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._text[-n:]) for s in self._stop)), 0)
