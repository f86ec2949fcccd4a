"""Plain text as training rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paradec.errors import InputError

Row = dict[str, np.ndarray]


class Characters:
    """A tokenizer whose tokens are the characters of one text, in the order of their code points."""

    def __init__(self, text: str):
        self.alphabet = "".join(sorted(set(text)))
        self._id = {character: i for i, character in enumerate(self.alphabet)}

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """Token ids. Raises `InputError` for a character that the first text did not have."""
        try:
            return [self._id[character] for character in text]
        except KeyError as error:
            raise InputError(f"The character {error.args[0]!r} is not in the alphabet of this model.") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in ids)


def read(paths: Sequence[Path]) -> str:
    """The text of some UTF-8 files, one after the other. Raises `InputError` for one that is missing or not text."""
    parts = []
    for path in paths:
        try:
            parts.append(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"There is no file {path}; give the path of a text file.") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}.") from error
    return "".join(parts)


class Windows:
    """A long row of tokens, cut into windows of `length`: a source for `chain.batches`.

    Windows share one token with their neighbours, so that every token but the very first is predicted once. With
    `jitter`, `moved` shifts a window by up to `length - 1` tokens: each epoch then cuts the text elsewhere.
    """

    def __init__(self, tokens: np.ndarray, length: int, jitter: bool = False):
        if length < 2:
            raise InputError(f"A window of {length} tokens predicts nothing; take at least 2.")
        if len(tokens) < length:
            raise InputError(f"The text has {len(tokens)} tokens, less than one window of {length}.")
        self.tokens, self.length, self.jitter = np.asarray(tokens, np.int32), length, jitter

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // (self.length - 1)

    def __getitem__(self, index: int) -> Row:
        return self._at(index * (self.length - 1))

    def moved(self, index: int, rng: np.random.Generator) -> Row:
        """Window `index`, shifted where `jitter` is on."""
        shift = int(rng.integers(self.length - 1)) if self.jitter else 0
        return self._at(min(index * (self.length - 1) + shift, len(self.tokens) - self.length))

    def _at(self, first: int) -> Row:
        token = self.tokens[first : first + self.length]
        return {"token": token, "learn": np.ones(self.length, bool)}
