"""The trace as a figure: which call committed which position, for notebooks and papers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from paradec.trace import Trace
from paradec.types import OPEN
from paradec.viz.figure import save
from paradec.viz.palette import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"


def decode_order(traces: Iterable[Trace], path: str | os.PathLike | None = None) -> Figure:
    """Call number over position, one line a method; saved to `path` (the suffix chooses the format) if given.

    A decode from left to right is a staircase: the flatter, the more tokens a call. Any other order is a cloud of
    points. Methods differ in colour, in marker and by their label, which stands at the end of each line.
    """
    traces = list(traces)
    if not traces:
        raise ValueError("decode_order needs at least one trace")
    import matplotlib.pyplot as plt  # here, so that terminal and page do not pay for it

    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    # The figure is the caller's: pyplot must neither keep it alive nor show it a second time in a notebook.
    plt.close(figure)
    for i, trace in enumerate(traces):
        _draw(axes, trace, METHODS[i % len(METHODS)], _MARKERS[i % len(_MARKERS)])
    _label(axes, traces)
    axes.set(xlabel="position in the generated text", ylabel="model call that committed it")
    axes.set_xlim(0, max(1, *(len(t.pieces) for t in traces)) + 0.5)
    axes.set_ylim(0, max(1, *(t.calls for t in traces)) * 1.04)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    if path is not None:
        save(figure, path)
    return figure


def _draw(axes: Axes, trace: Trace, colour: str, marker: str) -> None:
    """A staircase and its points, or the points alone where positions committed out of order."""
    at = [(i + 1, call) for i, call in enumerate(trace.settled) if call != OPEN]
    xs, ys = [x for x, _ in at], [y for _, y in at]
    # Points thin out as they crowd; a line needs none once they would only thicken it.
    size = max(1.5, min(5.0, 300 / max(1, len(at))))
    style = {"color": colour, "marker": marker, "markersize": size, "markeredgewidth": 0, "label": trace.method}
    if trace.ordered:
        axes.plot(xs, ys, drawstyle="steps-pre", linewidth=1.3, **style)
    else:
        axes.plot(xs, ys, linestyle="", **style)


def _label(axes: Axes, traces: list[Trace]) -> None:
    """Names at the right border, at the height of each method's last call, pushed apart where they would collide."""
    top = max(1, *(t.calls for t in traces))
    order = sorted(range(len(traces)), key=lambda i: traces[i].calls)
    heights = [traces[i].calls / top for i in order]
    gap = min(0.11, 1 / len(traces))
    for k, height in enumerate(heights):
        heights[k] = max(height, heights[k - 1] + gap) if k else max(height, 0.03)
    # What was pushed over the top moves back down, the highest first.
    for k, height in reversed(list(enumerate(heights))):
        heights[k] = min(height, heights[k + 1] - gap) if k + 1 < len(heights) else min(height, 1.0)
    for i, height in zip(order, heights, strict=True):
        trace = traces[i]
        axes.annotate(
            f"{trace.title or trace.method}\n{trace.tokens_per_call:.2f} tokens/call",
            (1.01, height / 1.04),
            xycoords="axes fraction",
            va="center",
            fontsize=8,
            color=METHODS[i % len(METHODS)],
            parse_math=False,  # a method may have a dollar in its name
        )
