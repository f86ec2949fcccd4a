"""The colours of a trace: which call gets which, so that nobody has to guess where one call ends.

Light and dark tones alternate. Neighbouring calls therefore differ in lightness before they differ in hue, which
survives every kind of colour blindness, a grey printout and a terminal with 16 colours (the tests measure it).
"""

from __future__ import annotations

import itertools
from collections import defaultdict

from paradec.trace import Trace
from paradec.types import OPEN

CALLS = ("#FFD966", "#B5471B", "#F7B896", "#8A4B94", "#9BD3F7", "#00785C", "#B4E2B0", "#0072B2")
"""Backgrounds of the tokens of one call: light tones at even places, dark ones at odd places."""

METHODS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours for lines on white, without the yellow that white swallows."""


def ink(place: int) -> str:
    """The text colour that reads on `CALLS[place]`, whatever the terminal's own colours are."""
    return "#ffffff" if place % 2 else "#000000"


def places(trace: Trace) -> dict[int, int]:
    """For each call that committed something, its place in `CALLS`.

    Places cycle with the call number. Where tokens commit in any order, far-apart calls can also meet in the text, so
    each call takes the first place of the cycle that clashes least with the calls it follows or touches.
    """
    met = defaultdict(set)
    for (a, _), (b, _) in itertools.pairwise(trace.groups()):
        met[a].add(b)
        met[b].add(a)
    taken: dict[int, int] = {}
    for call in sorted(set(trace.settled) - {int(OPEN)}):
        around = [taken[c] for c in met[call] | {call - 1} if c in taken]
        cycle = [(call - 1 + k) % len(CALLS) for k in range(len(CALLS))]
        free = [place for place in cycle if place != taken.get(call - 1)]
        taken[call] = min(free, key=lambda place: sum(_clash(place, other) for other in around))
    return taken


def _clash(a: int, b: int) -> int:
    """How alike two places are: the same colour is far worse than two colours of the same tone."""
    return 100 if a == b else (a - b) % 2 == 0
