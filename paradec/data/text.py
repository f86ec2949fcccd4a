"""Plain text as training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from paradec.config import several
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


def read(files: Sequence[str | Path] | str | Path) -> str:
    """The text of one or some UTF-8 files, one after the other, without the byte-order marks that some begin with.

    Raises `InputError` for one that is missing or not text.
    """
    parts = []
    for path in map(Path, several(files)):
        try:
            parts.append(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise InputError(f"There is no file {path}; give the path of a text file.") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first.") from None
        except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
            raise InputError(f"{path} cannot be read: {error}.") from error
    return "".join(parts)


class Windows:
    """A long row of tokens, cut into windows of `length`: a source for `chain.batches`.

    Windows share one token with their neighbours, so that every token but the very first is predicted once. The last
    window ends where the text does; what it repeats of the one before is shown and not learned. With `jitter`, `moved`
    shifts a window by up to `length - 2` tokens: each epoch then cuts the text elsewhere.
    """

    def __init__(self, tokens: np.ndarray, length: int, jitter: bool = False, what: str = "The text"):
        """`what` names the tokens where they are too few."""
        if length < 2:
            raise InputError(f"A window of {length} tokens predicts nothing; take at least 2.")
        if len(tokens) < length:
            raise InputError(f"{what} has {len(tokens)} tokens, less than one window of {length}.")
        self.tokens, self.length, self.jitter = np.asarray(tokens, np.int32), length, jitter

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // (self.length - 1))

    def __getitem__(self, index: int) -> Row:
        return self._at(index)

    def moved(self, index: int, rng: np.random.Generator) -> Row:
        """Window `index`, shifted where `jitter` is on."""
        return self._at(index, int(rng.integers(self.length - 1)) if self.jitter else 0)

    def _at(self, index: int, shift: int = 0) -> Row:
        due = index * (self.length - 1)
        first = min(due + shift, len(self.tokens) - self.length)
        known = due + 1 - first  # tokens that the window before has learned, where this one begins within it
        token = self.tokens[first : first + self.length]
        return {"token": token, "learn": np.arange(self.length) >= (known if first < due else 0)}


def split(whole: str, share: float) -> tuple[str, str]:
    """A text but for its last `share`, and that."""
    cut = round(len(whole) * (1 - share))
    return whole[:cut], whole[cut:]


def windows(learned: str, held: str, encode: Callable[[str], Sequence[int]], length: int) -> tuple[Windows, Windows]:
    """A text to learn from and one held out, as rows. Raises `InputError` where one of them has no row."""
    train, measured = (np.asarray(encode(part), np.int32) for part in (learned, held))
    return (
        Windows(train, length, jitter=True, what="The text to learn from"),
        Windows(measured, length, what="The held-out text"),
    )
