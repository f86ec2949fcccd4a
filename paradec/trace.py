"""The trace of one decode: its text, token by token, and the model call that committed each token.

`committed_at` of a `DecodeState`, cut to the generated part of one row, next to the text of every token. It knows no
model and no order: one token a call (plain decoding), several neighbours a call (speculation) and any positions in any
order (diffusion) are the same record, and so is a decode that is still under way.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import operator
from collections import Counter
from collections.abc import Iterator

from paradec.types import OPEN

_OPEN = int(OPEN)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a decode wrote and when. Validated, immutable, and equal by value.

    `settled[i]` is the number (from 1) of the row's own model call that committed token i, or `OPEN` while undecided.
    The pieces, concatenated, are the text; a piece may be empty (part of a multi-byte character, end of text).
    """

    method: str
    prompt: str
    pieces: tuple[str, ...]
    settled: tuple[int, ...]
    calls: int
    seconds: float | None = None
    title: str = ""
    exact: bool | None = None  # None: nobody says
    model: str | None = None

    def __post_init__(self) -> None:
        # Arrays and lists are welcome; what is kept is plain Python, so that equality and JSON are too.
        object.__setattr__(self, "pieces", tuple(self.pieces))
        try:
            object.__setattr__(self, "settled", tuple(map(operator.index, self.settled)))
            object.__setattr__(self, "calls", operator.index(self.calls))
        except TypeError:
            raise ValueError("settled and calls must be integers: numbers of model calls") from None
        if self.seconds is not None:
            object.__setattr__(self, "seconds", float(self.seconds))
        self._validate()

    def _validate(self) -> None:
        if not self.method:
            raise ValueError("a trace needs the name of its method")
        for i, piece in enumerate(self.pieces):
            if not isinstance(piece, str):
                raise ValueError(f"pieces[{i}] is {piece!r}: pieces are the text of each token, not its id")
        if len(self.pieces) != len(self.settled):
            raise ValueError(f"{len(self.pieces)} pieces but {len(self.settled)} call numbers: one of each per token")
        if self.calls < 0:
            raise ValueError(f"calls is {self.calls}: a decode cannot make fewer than 0 calls")
        for i, call in enumerate(self.settled):
            if call != _OPEN and not 1 <= call <= self.calls:
                hint = "; leave out the prompt" if call == 0 else ""
                raise ValueError(f"settled[{i}] is call {call}, outside 1..{self.calls}{hint}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds is {self.seconds}: a finite time of at least 0, or None")

    @property
    def text(self) -> str:
        """The text: all committed pieces, in order of position."""
        return "".join(p for p, c in zip(self.pieces, self.settled, strict=True) if c != _OPEN)

    @property
    def tokens(self) -> int:
        """How many tokens are committed."""
        return sum(c != _OPEN for c in self.settled)

    @property
    def tokens_per_call(self) -> float:
        """Committed tokens over model calls: 1 for plain decoding, 0 before the first call."""
        return self.tokens / self.calls if self.calls else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Committed tokens over wall time, or None when no time was taken."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def per_call(self) -> tuple[int, ...]:
        """Tokens committed by call 1, 2, …, `calls`; 0 for a call that committed none."""
        count = Counter(self.settled)
        return tuple(count[call] for call in range(1, self.calls + 1))

    @property
    def ordered(self) -> bool:
        """Whether positions were committed from left to right, as in every autoregressive method."""
        return all(a <= b for a, b in itertools.pairwise(self.settled))

    def groups(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Maximal runs of neighbouring tokens of one call, left to right, as (call, pieces)."""
        for call, run in itertools.groupby(zip(self.settled, self.pieces, strict=True), key=operator.itemgetter(0)):
            yield call, tuple(piece for _, piece in run)

    def at(self, call: int) -> Trace:
        """The trace as it stood after `call` calls: what came later is open again, and the time is not known."""
        settled = tuple(c if c <= call else _OPEN for c in self.settled)
        return dataclasses.replace(self, settled=settled, calls=max(0, min(call, self.calls)), seconds=None)

    def to_dict(self) -> dict:
        """The trace as plain JSON values; an open position is None."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settled = [None if c == _OPEN else c for c in self.settled]
        return plain | {"pieces": list(self.pieces), "settled": settled}

    @classmethod
    def from_dict(cls, plain: dict) -> Trace:
        """The inverse of `to_dict`. Unknown and missing fields are errors that name themselves."""
        fields = dataclasses.fields(cls)
        unknown = sorted(set(plain) - {f.name for f in fields})
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in plain]
        if unknown or missing:
            raise ValueError(f"not a trace: unknown fields {unknown}, missing fields {missing}")
        settled = tuple(_OPEN if c is None else c for c in plain["settled"])
        return cls(**{**plain, "settled": settled})

    def to_json(self) -> str:
        """One line of ASCII JSON (a trace may hold half a surrogate pair, which UTF-8 cannot)."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Trace:
        """The inverse of `to_json`."""
        plain = json.loads(line)
        if not isinstance(plain, dict):
            raise ValueError(f"not a trace: a JSON object is needed, not {type(plain).__name__}")
        return cls.from_dict(plain)
