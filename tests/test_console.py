"""How far a program has come: a bar in a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from paradec import console


def screen(monkeypatch, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    made = Console(file=file, force_terminal=terminal, width=80, height=20, highlight=False, _environ={"TERM": "xterm"})
    monkeypatch.setattr(console, "ERR", made)
    monkeypatch.setattr(console, "OUT", made)
    return file


def test_items_pass_through_in_order(monkeypatch):
    for terminal in (True, False):
        screen(monkeypatch, terminal)
        assert list(console.track(range(5), "Counting")) == [0, 1, 2, 3, 4]
        assert list(console.track([], "Counting")) == []


def test_a_terminal_has_a_bar_that_goes_when_all_is_done(monkeypatch):
    file = screen(monkeypatch, True)
    for item in console.track(range(3), "Counting"):
        console.OUT.print(f"result {item}")
    assert "Counting" in file.getvalue() and "3/3" in file.getvalue()
    assert re.findall(r"(?:^|\n|\x1b\[2K|\r)(result \d)\n", file.getvalue()) == ["result 0", "result 1", "result 2"]
    assert file.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))


def test_an_error_takes_the_place_of_the_bar(monkeypatch):
    file = screen(monkeypatch, True)
    items = console.track(range(3), "Counting")
    next(items)
    console.complain("Interrupted.")
    assert "Counting" in file.getvalue() and file.getvalue().endswith("Interrupted.\n")
    assert "\x1b[2K" in file.getvalue()[-40:], "the line was wiped"


def test_elsewhere_quick_work_is_silent_and_slow_work_says_a_line(monkeypatch):
    file = screen(monkeypatch, False)
    for _ in console.track(range(3), "Counting"):
        pass
    assert file.getvalue() == ""
    items = console.track(range(3), "Counting", every=0.05)
    next(items)
    next(items)
    deadline = time.monotonic() + 10
    while not file.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    items.close()
    said = file.getvalue()
    assert said.startswith("Counting: 1 of 3 after 0 s, about ") and " left\n" in said
    time.sleep(0.12)
    assert file.getvalue() == said, "silent when it is over"
