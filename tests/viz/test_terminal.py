"""The terminal shows the text, the whole text and nothing that a terminal would obey."""

import io
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paradec.types import OPEN
from paradec.viz import LiveTrace, Row, Trace, live, render, table
from paradec.viz.palette import CALLS
from paradec.viz.terminal import header, text


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Whoever runs the tests may have set these; rich obeys all of them."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")


def screen(**options) -> Console:
    return Console(file=io.StringIO(), **{"force_terminal": True, "width": 80, "height": 24} | options)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_brackets(trace):
    console = screen(force_terminal=False)
    render(trace, console)
    facts, body = shown(console).splitlines()
    assert facts == "medusa · exact · 6 tokens · 3 calls · 2.00 tokens/call · 2.00 s · 3 tok/s · tiny"
    assert body == "[The quick][ brown][ fox.]"


def test_a_pipe_keeps_long_lines():
    console = screen(force_terminal=False)
    render(Trace("ar", "", ("word ",) * 50, (1,) * 50, calls=1), console)
    assert f"[{'word ' * 50}]" in shown(console)


def test_no_color_gets_brackets(trace, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = screen()
    render(trace, console)
    assert "[The quick][ brown][ fox.]" in shown(console)
    assert "48;" not in shown(console)


def test_a_terminal_gets_one_background_per_call(trace):
    body = text(trace)
    assert body.plain == trace.text
    backgrounds = [body.get_style_at_offset(Console(), i).bgcolor for i in range(len(body))]
    bounds = (("The quick", 0), (" brown", 1), (" fox.", 2))
    assert [b and b.name for b in backgrounds] == [CALLS[place].lower() for part, place in bounds for _ in part]
    console = screen()
    render(trace, console)
    assert shown(console).count("48;2;") == 3


def test_signs_for_what_has_no_ink():
    trace = Trace("x", "", ("a\n", "\tb", "", "", "c"), (1, 2, 3, 3, int(OPEN)), calls=3)
    assert text(trace, colour=False).plain == "[a⏎\n][  b][∅]·", "a tab stops every four columns"
    assert text(trace).plain == "a⏎\n    b∅·"


def test_header_leaves_out_what_nobody_knows():
    assert header(Trace("ar", "", ("a",), (1,), calls=1)).plain == "ar · 1 token · 1 call · 1.00 tokens/call"
    assert header(Trace("ar", "", (), (), calls=0, title="Plain")).plain.startswith("Plain · ar · 0 tokens")


@settings(deadline=None)  # the machine may be busy
@given(trace=st.from_type(Trace), terminal=st.booleans())
def test_nothing_reaches_the_terminal_as_a_command(trace: Trace, terminal: bool):
    console = screen(force_terminal=terminal)
    render(trace, console)
    rest = re.sub(r"\x1b\[[0-9;]*m", "" if terminal else "!", shown(console))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", rest)


@settings(deadline=None)  # the machine may be busy
@given(...)
def test_every_committed_character_is_there(trace: Trace):
    for colour in (True, False):
        plain = text(trace, colour=colour).plain
        for character in trace.text:
            assert character in plain or not character.isprintable()


def test_live_draws_and_wipes(trace):
    console = screen()
    with LiveTrace("medusa", console=console, exact=True) as drawing:
        drawing.update(trace.pieces[:2], trace.settled[:2])
        drawing.update(trace.pieces, trace.settled)
    assert "fox" in shown(console), "the last picture is drawn however short the decode was"
    assert shown(console).endswith(("\x1b[2K", "\x1b[?25h")), "the drawing is wiped and the cursor is back"
    assert (drawing.trace.calls, drawing.trace.exact, drawing.trace.tokens) == (3, True, 6)
    assert drawing.trace.seconds is not None and 0 < drawing.trace.seconds < 60


def test_live_shows_the_end_of_a_text_that_is_too_high():
    console = screen(height=10)
    with LiveTrace("ar", console=console) as drawing:
        drawing.update([f"line{i}\n" for i in range(50)], range(1, 51))
    assert "line49" in shown(console) and "line30" not in shown(console)


def test_live_is_silent_without_a_terminal(trace):
    console = screen(force_terminal=False)
    assert live((trace.at(call) for call in range(4)), console) == trace.at(3)
    assert live([], console) is None
    assert shown(console) == ""


def test_live_costs_a_fast_decode_little():
    console = screen()
    start = time.perf_counter()
    with LiveTrace("ar", console=console) as drawing:
        for n in range(1, 300):
            drawing.update(["x"] * n, range(1, n + 1))
    assert time.perf_counter() - start < 3


def test_the_table_holds_the_numbers():
    rows = [
        Row("ar", True, 1.0, 1428, 31.2, 1.0, (8, 8)),
        Row("medusa", True, 2.89, 148, 74.9, 2.0, (7, 8)),
        Row("[bold]x", False, 3.96, 108, 90.0, 0.5, (2, 8)),
        Row("unknown"),
    ]
    console = screen(width=100, force_terminal=False)
    console.print(table(rows, title="Eight prompts"))
    lines = shown(console).splitlines()
    assert "Eight prompts" in lines[0]
    ar, medusa, lossy, unknown = lines[-4:] if lines[-1].strip() else lines[-5:-1]
    assert re.split(r"\s{2,}", ar.strip()) == ["ar", "exact", "1.00", "1,428", "31.2", "1.00× ████████", "8/8"]
    assert medusa.count("█") == 16 and lossy.count("█") == 4, "bars share one scale"
    assert "! 7/8" in medusa, "called exact, but is not"
    assert "[bold]x" in lossy and "!" not in lossy
    assert unknown.split() == ["unknown", *"––––––"]


def test_only_a_broken_promise_is_red():
    console = screen(width=100, force_terminal=True)
    console.print(table([Row("ar", True, identical=(8, 8)), Row("medusa", True, identical=(7, 8))]))
    fine, broken = (line for line in console.file.getvalue().splitlines() if "/8" in line)
    assert "\x1b[1;31m" in broken and "\x1b[1;31m" not in fine


def test_an_empty_table():
    console = screen()
    console.print(table([]))
    assert "method" in shown(console)
