"""A comparison as a figure: how fast each method was beside plain decoding, and how many tokens a call gave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from paradec.viz.figure import save
from paradec.viz.terminal import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REFERENCE, _FASTER, _SLOWER, _CALLS, _QUIET, _WRONG = "#8C8C8C", "#0072B2", "#D55E00", "#56B4E9", "#555555", "#B00020"
_ROOM = 1.25
"""Length of a panel over that of its longest bar: the number stands behind the bar."""


class MethodRow(Protocol):
    """What a bar needs to be drawn; see `comparison.Entry`."""

    method: str
    exact: bool
    tokens_per_call: float
    speedup: float | None
    speedups: tuple[float, ...]
    identical: int
    total: int


class Compared(Protocol):
    """What the figure needs of a comparison; the first method is the reference."""

    model: str
    device: str
    settings: dict[str, Any]
    methods: tuple[Any, ...]
    partial: bool
    extent: str


def speed_bars(report: Compared, path: str | os.PathLike[str] | None = None) -> Figure:
    """Speed-up and tokens per call, a bar a method; saved to `path` (the suffix chooses the format) if given.

    The thin line on a bar goes from the slowest to the fastest timed round. Without timed rounds there are tokens per
    call alone. A method that promises plain decoding's tokens and wrote others says so, in red, under its name.
    """
    import matplotlib.pyplot as plt  # here, so that terminal and page do not pay for it

    methods = report.methods
    timed = all(m.speedup is not None for m in methods)
    lines = max(_broken_up(m.method).count("\n") + 1 for m in methods)
    size = (7.6 if timed else 5.2), 1.15 + (0.46 + 0.15 * max(0, lines - 2)) * len(methods)
    figure, panels = plt.subplots(1, 1 + timed, figsize=size, sharey=True, squeeze=False, layout="constrained")
    plt.close(figure)  # the figure is the caller's, not pyplot's
    if timed:
        _speeds(panels[0][0], methods)
    _bars(panels[0][-1], [m.tokens_per_call for m in methods], [_REFERENCE, *[_CALLS] * (len(methods) - 1)], "{:.2f}")
    panels[0][-1].set_xlabel("tokens per call")
    for axes in panels[0]:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    _names(panels[0][0], methods)
    figure.supxlabel(caption(report), fontsize=8, color=_QUIET, parse_math=False)
    if path is not None:
        save(figure, path)
    return figure


def caption(report: Compared) -> str:
    """What the numbers were measured with, in one or two lines."""
    s, model = report.settings, plain(report.model)
    rounds = "" if not s["repeats"] or report.partial else f", {s['repeats']} round{'s' * (s['repeats'] != 1)}"
    spread = " (thin lines: slowest to fastest)" if s["repeats"] > 1 else ""
    name = model if len(model) <= 40 else f"…{model[-39:]}"
    sampled = "greedy" if s["temperature"] == 0 else f"temperature {s['temperature']:g}"
    first = f"{name}, {s['dtype']}, {sampled}, batch {s['batch_size']}, up to {s['max_new_tokens']} new tokens"
    return f"{first}\n{report.extent}{rounds}{spread}, on {report.device}"


def _speeds(axes: Axes, methods: Sequence[MethodRow]) -> None:
    """The panel of speed-ups, with the spread over rounds and a line where plain decoding is."""
    hues = [_REFERENCE, *(_FASTER if m.speedup >= 1 else _SLOWER for m in methods[1:])]
    tops = [max((m.speedup, *m.speedups)) for m in methods]
    _bars(axes, [m.speedup for m in methods], hues, "{:.2f}×", tops)
    for row, m in enumerate(methods):
        if len(m.speedups) > 1 and row:
            axes.plot([min(m.speedups), max(m.speedups)], [row, row], color="black", linewidth=1.1)
    axes.axvline(1, color="black", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)
    axes.set_xlabel(f"speed-up over {plain(methods[0].method)}", parse_math=False)


def _bars(axes: Axes, values: list[float], hues: list[str], form: str, tops: list[float] | None = None) -> None:
    """Bars from 0, the first on top, and each with its number behind what it reaches (`tops`)."""
    tops = tops or values
    axes.barh(range(len(values)), values, height=0.62, color=hues)
    for row, (value, top) in enumerate(zip(values, tops, strict=True)):
        behind = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # of the line at 1
        axes.annotate(form.format(value), (top, row), **behind, bbox=clear)
    axes.set_xlim(0, max(max(tops), 1) * _ROOM)
    axes.set_ylim(len(values) - 0.5, -0.5)


def _names(axes: Axes, methods: Sequence[MethodRow]) -> None:
    """Every method's name, and under it what it promises or has broken."""
    axes.set_yticks(range(len(methods)), [""] * len(methods))
    left = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "ha": "right",
        "annotation_clip": False,
    }
    for row, m in enumerate(methods):
        others = m.total - m.identical
        broken = f"other tokens in {others} of {m.total} row{'s' * (m.total != 1)}"
        told = "exact" if not others else broken if m.exact else f"lossy: {broken}"
        hue = _WRONG if m.exact and others else _QUIET
        if not m.exact and not others:
            told = "lossy, here the same tokens"
        told = "plain decoding" if not row else told
        name = _broken_up(plain(m.method))
        middle = -5.5 * name.count("\n")
        axes.annotate(name, (0, row), (-6, middle + 1), va="bottom", fontsize=9, parse_math=False, **left)
        axes.annotate(told, (0, row), (-6, middle - 1), va="top", fontsize=7.5, color=hue, parse_math=False, **left)


def _broken_up(name: str, longest: int = 28) -> str:
    """A name of several parts on lines of moderate length."""
    lines = [""]
    for part in name.replace("+", "+\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > longest:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
