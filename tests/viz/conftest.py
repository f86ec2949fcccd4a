"""Traces to test with: one small known one, and a hypothesis strategy of all kinds, registered for the type itself."""

import pytest
from hypothesis import strategies as st

from paradec.types import OPEN
from paradec.viz import Trace

# What breaks naive printing: markup of every kind, control sequences, empty text, characters of two cells or none.
NASTY = ["", "\n", "\n\n", "\t", "\r", "</script><script>alert(1)</script>", "<!--", "<b>", "&amp;", "'\"`", "[bold]"]
NASTY += ["[/]", "\\", "\x1b[31m", "\x07", "\x9b31m", "\u2028", "\u202e", "{{data}}", "${x}"]
NASTY += ["🎉", "日本", "\ud83d", "e\u0301"]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Any trace: prefix or canvas order, with or without open positions, calls that commit nothing, times and facts."""
    pieces = draw(st.lists(st.sampled_from(NASTY) | st.text(max_size=6), max_size=24))
    calls = draw(st.integers(1, 12))
    call = st.integers(1, calls) | (st.just(int(OPEN)) if draw(st.booleans()) else st.nothing())
    settled = draw(st.lists(call, min_size=len(pieces), max_size=len(pieces)))
    if draw(st.booleans()):
        settled = sorted(settled)
    return Trace(
        method=draw(st.sampled_from(["ar", "medusa", "<i>[red]x"])),
        prompt=draw(st.text(max_size=8)),
        pieces=tuple(pieces),
        settled=tuple(settled),
        calls=calls,
        seconds=draw(st.none() | st.floats(0, 1e6)),
        title=draw(st.sampled_from(["", "A & B", "$x_1$"])),
        exact=draw(st.none() | st.booleans()),
        model=draw(st.none() | st.just("tiny </title>")),
    )


st.register_type_strategy(Trace, traces())


@pytest.fixture
def trace() -> Trace:
    """Six tokens in three calls, in order."""
    pieces = ("The", " quick", " brown", " fox", ".", "")
    return Trace("medusa", "Go on:", pieces, (1, 1, 2, 3, 3, 3), calls=3, seconds=2.0, exact=True, model="tiny")
