"""The trace in a terminal: tokens of one call share a background, or a pair of brackets where there is no colour."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from paradec.trace import Trace
from paradec.types import OPEN
from paradec.viz.palette import CALLS, ink, places

# A model may write an escape sequence. A terminal must never obey it: control characters become their pictures.
_PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {0x7F: 0x2421}
# More control characters, what turns the direction of writing, and half surrogate pairs, which no stream can encode.
for _span in (range(0x80, 0xA0), range(0x202A, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000)):
    _PICTURES |= dict.fromkeys(_span, 0xFFFD)


def render(trace: Trace, console: Console | None = None, width: int | None = None) -> None:
    """Print one trace: a line of facts, then the text with each token coloured by the call that committed it.

    Without colours (NO_COLOR, a pipe, a dumb terminal) neighbouring tokens of one call stand in brackets instead.
    """
    console = console or Console()
    soft = width is None and not _interactive(console)  # a pipe has no width: leave the lines as the model wrote them
    console.print(header(trace), width=width, soft_wrap=soft)
    console.print(text(trace, colour=_coloured(console)), width=width, soft_wrap=soft)


def header(trace: Trace) -> Text:
    """The facts of a trace in one line: method, exactness, tokens, calls, tokens per call, seconds."""
    line = Text(plain(trace.title or trace.method), style="bold")
    facts = [f"{trace.tokens} token{'s' * (trace.tokens != 1)}", f"{trace.calls} call{'s' * (trace.calls != 1)}"]
    facts.append(f"{trace.tokens_per_call:.2f} tokens/call")
    if trace.seconds is not None:
        facts.append(f"{trace.seconds:.2f} s")
    if trace.tokens_per_second is not None:
        facts.append(f"{trace.tokens_per_second:.0f} tok/s")
    if trace.exact is not None:
        facts.insert(0, "exact" if trace.exact else "lossy")
    if trace.title and trace.title != trace.method:
        facts.insert(0, plain(trace.method))
    if trace.model:
        facts.append(plain(trace.model))
    return line.append("".join(f" · {fact}" for fact in facts), style="not bold dim")


def text(trace: Trace, colour: bool = True) -> Text:
    """The text of a trace, one background (or pair of brackets) per run of tokens of one call.

    A line break shows as ⏎ and breaks the line, a run without text as ∅, an open position as ·.
    """
    place = places(trace)
    out = Text()
    for call, pieces in trace.groups():
        if call == OPEN:
            out.append("·" * len(pieces), style="dim")
            continue
        style = f"{ink(place[call])} on {CALLS[place[call]]}" if colour else ""
        out.append("" if colour else "[")
        body = plain("".join(pieces))
        for i, part in enumerate(body.split("\n") if body else ()):
            if i:
                out.append("⏎", style=f"{style} dim").append("\n")
            out.append(part, style=style)
        if not body:
            out.append("∅", style=f"{style} dim")
        out.append("" if colour else "]")
    out.expand_tabs(4)  # here: the console would forget a tab size of our own
    return out


class LiveTrace:
    """A text that is drawn while it is decoded.

    ```
    with LiveTrace("medusa") as screen:
        for pieces, settled in stream:
            screen.update(pieces, settled)
    render(screen.trace)
    ```

    The drawing is wiped at the end, so that `render` may follow; on anything but a terminal nothing is drawn at all.
    `facts` are further fields of the `Trace` (title, exact, model).
    """

    def __init__(self, method: str, prompt: str = "", console: Console | None = None, **facts: Any) -> None:
        self._console = console or Console()
        self._start = time.perf_counter()
        self._live: Live | None = None
        self.trace = Trace(method, prompt, (), (), calls=0, **facts)

    def __enter__(self) -> LiveTrace:
        self._start = time.perf_counter()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Drawn by a thread, twelve times a second: a fast decode does not wait for a slow terminal.
            frame = {"get_renderable": lambda: _Frame(self.trace), "refresh_per_second": 12, "transient": True}
            self._live = Live(console=self._console, vertical_overflow="crop", **frame)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def update(self, pieces: Iterable[str], settled: Iterable[int], calls: int | None = None) -> None:
        """Show the whole text so far. `calls` counts calls that committed nothing, too; default is the latest seen."""
        pieces, settled = tuple(pieces), tuple(settled)
        if calls is None:
            calls = max((int(c) for c in settled if c != OPEN), default=0)
        seconds = time.perf_counter() - self._start
        self.trace = dataclasses.replace(self.trace, pieces=pieces, settled=settled, calls=calls, seconds=seconds)

    def show(self, trace: Trace) -> None:
        """Show a trace that somebody else keeps, as it is."""
        self.trace = trace


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One picture of a live trace: the facts and as many of the last lines as the terminal is high."""

    trace: Trace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = header(self.trace)
        facts.no_wrap, facts.overflow = True, "ellipsis"  # one line, so that the rest is known to fit
        yield facts
        body = text(self.trace, colour=_coloured(console))
        lines = console.render_lines(body, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 3) :]:
            yield from line
            yield Segment.line()


def live(traces: Iterable[Trace], console: Console | None = None) -> Trace | None:
    """Draw a stream of ever longer traces as they come, and return the last one (None if there was none).

    `live(trace.at(call) for call in range(trace.calls + 1))` replays a finished decode, as fast as the stream goes.
    """
    traces = iter(traces)
    last = next(traces, None)
    if last is None:
        return None
    with LiveTrace(last.method, console=console) as screen:
        screen.show(last)
        for last in traces:
            screen.show(last)
    return last


def _interactive(console: Console) -> bool:
    return console.is_terminal or console.is_jupyter


def _coloured(console: Console) -> bool:
    return _interactive(console) and console.color_system is not None and not console.no_color


def plain(piece: str) -> str:
    """A text without anything that a terminal would obey."""
    return piece.translate(_PICTURES)
