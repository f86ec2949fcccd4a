"""What a program says: results on stdout, everything else on stderr, and how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paradec.io import text_file

T = TypeVar("T")
OUT, ERR = Console(highlight=False), Console(stderr=True, highlight=False)
_drawn: list[Progress] = []
"""The latest bar: an error leaves the loop that it stands for, and the bar does not hear of it."""


def say(sentence: str) -> None:
    """On stderr, so that stdout holds results alone."""
    ERR.print(sentence, markup=False, style="dim", soft_wrap=True)


def note(bad: list[str], sentence: str) -> None:
    """Say what is wrong, and remember that something was."""
    bad.append(sentence)
    ERR.print(sentence, style="yellow", markup=False, soft_wrap=True)


def write(path: Path, text: str) -> None:
    """Write a whole file or none, and say so."""
    text_file.write(path, text)
    say(f"Wrote {path}")


def track(items: Sequence[T], label: str, every: float = 30.0) -> Iterator[T]:
    """Passes the items through and shows on stderr how many are done, and how long the others may take.

    A bar in a terminal; elsewhere a line every so many seconds, and none for what is done sooner.
    """
    return _bar(items, label) if ERR.is_terminal and not ERR.is_dumb_terminal else _lines(items, label, every)


def _bar(items: Sequence[T], label: str) -> Iterator[T]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Results that are printed meanwhile go above the bar: in one terminal it has to be drawn by what prints them.
    place = OUT if OUT.is_terminal else ERR
    how = {"transient": True, "redirect_stdout": OUT.is_terminal, "refresh_per_second": 2}  # timings run beside it
    with Progress(*columns, console=place, **how) as progress:
        _drawn[:] = [progress]
        yield from progress.track(items, description=label)


def wipe() -> None:
    """Take away a bar that is drawn, for what is printed when the loop that it stood for has ended early."""
    for progress in _drawn:
        progress.stop()


def complain(sentence: str, style: str = "") -> None:
    """The last sentence of a program that ends early, in the place of a bar if one is drawn."""
    wipe()
    ERR.print(sentence, style=style or None, markup=False, soft_wrap=True)


def _lines(items: Sequence[T], label: str, every: float) -> Iterator[T]:
    begin, over = time.monotonic(), threading.Event()
    done = 0

    def tell() -> None:
        while not over.wait(every):
            spent = time.monotonic() - begin
            left = f", about {_duration(spent / done * (len(items) - done))} left" if done else ""
            say(f"{label}: {done} of {len(items)} after {_duration(spent)}{left}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        for item in items:
            yield item
            done += 1
    finally:
        over.set()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
