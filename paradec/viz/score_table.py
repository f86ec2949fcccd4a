"""Methods beside each other in a terminal of any width: no heading and no number is ever cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from paradec.viz.terminal import plain

_EIGHTHS = " ▏▎▍▌▋▊▉"
_BARS = (16, 12, 8, 6, 0)
"""Widths of the longest bar, of which the widest that has room is taken."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a comparison. None is "not measured" and shows as a dash."""

    method: str
    exact: bool | None = None
    tokens_per_call: float | None = None
    calls: int | None = None
    tokens_per_second: float | None = None
    speedup: float | None = None  # wall time of the reference over that of this method, on the same prompts
    identical: tuple[int, int] | None = None  # (texts equal to the reference's, texts)


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """The comparison, to be printed by a rich console: numbers, and a bar for the speed-up over the reference.

    Where the terminal is narrow the bars get shorter and the headings take two lines, then columns move together and
    names of several parts are broken, and at last every method has lines of its own.
    """

    rows: tuple[Row, ...]
    title: str | None = None
    reference: str = "ar"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        roomy = [self._table(bar, between) for bar in _BARS for between in (" ", "\n")]
        tight = [self._table(0, "\n", after_plus, tight=True) for after_plus in ("", "\n")]
        for drawn in (*roomy, *tight):
            if console.measure(drawn, options=options.update(width=1000)).maximum <= options.max_width:
                yield drawn
                return
        yield from self._lines()

    def _table(self, bar: int, between: str, after_plus: str = "", tight: bool = False) -> Table:
        """With bars of that width, `between` two words of a heading, and `after_plus` between parts of a name."""
        heading = None if self.title is None else Text(plain(self.title), style="bold")
        room = {"padding": 0, "show_edge": False} if tight else {}
        out = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, **room)
        out.add_column("method", style="bold", no_wrap=True)
        out.add_column("exact", no_wrap=True)
        for name in ("tokens/call" if between == " " else "tokens/\ncall", "calls", "tok/s"):
            out.add_column(name, justify="right", no_wrap=True)
        out.add_column(Text(f"speedup{between}vs {plain(self.reference)}"), no_wrap=True)
        out.add_column("identical", justify="right", no_wrap=True)
        longest = max((row.speedup or 0.0 for row in self.rows), default=0.0)
        for row in self.rows:
            out.add_row(
                Text(plain(row.method).replace("+", "+" + after_plus)),  # Text: a string would be read as markup
                _exact(row),
                _number(row.tokens_per_call, ".2f"),
                _number(row.calls, ",d"),
                _number(row.tokens_per_second, ",.1f"),
                _bar(row.speedup, longest, bar),
                _identical(row),
            )
        return out

    def _lines(self) -> Iterator[Text]:
        """For a terminal in which no table has room: every method, and what was measured of it."""
        if self.title is not None:
            yield Text(plain(self.title), style="bold", overflow="fold")
        for row in self.rows:
            yield Text(plain(row.method), style="bold", overflow="fold")
            facts = (
                (row.exact, _exact(row), ""),
                (row.tokens_per_call, _number(row.tokens_per_call, ".2f"), " tokens/call"),
                (row.calls, _number(row.calls, ",d"), " calls"),
                (row.tokens_per_second, _number(row.tokens_per_second, ",.1f"), " tok/s"),
                (row.speedup, _bar(row.speedup, 0.0, 0), f" vs {plain(self.reference)}"),
                (row.identical, _identical(row), " identical"),
            )
            known = [Text.assemble(shown, unit) for value, shown, unit in facts if value is not None]
            yield Text("  ", overflow="fold").append(Text(", ").join(known))


def table(rows: Iterable[Row], title: str | None = None, reference: str = "ar") -> ScoreTable:
    """The comparison of methods with a reference, to be printed by a rich console."""
    return ScoreTable(tuple(rows), title, reference)


def _exact(row: Row) -> Text:
    return Text("–", "dim") if row.exact is None else Text("exact") if row.exact else Text("lossy", "dim")


def _number(value: float | int | None, form: str) -> Text:
    return Text("–", "dim") if value is None else Text(format(value, form))


def _bar(speedup: float | None, longest: float, width: int) -> Text:
    """The number, then a bar in eighths of a cell; all bars of a table share one scale."""
    if speedup is None:
        return Text("–", "dim")
    if not width:
        return Text(f"{speedup:.2f}×")
    whole, eighths = divmod(round(8 * width * speedup / longest) if longest else 0, 8)
    bar = "█" * whole + _EIGHTHS[eighths].strip()
    return Text(f"{speedup:5.2f}× ").append(bar, style="#0072B2" if speedup >= 1 else "#D55E00")


def _identical(row: Row) -> Text:
    """n/total. A method that is called exact and is not deserves a shout, in words that need no colour."""
    if row.identical is None:
        return Text("–", "dim")
    same, total = row.identical
    broken = bool(row.exact) and same != total
    return Text(f"! {same}/{total}", style="bold red") if broken else Text(f"{same}/{total}")
