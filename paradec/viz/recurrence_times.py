"""Time over length of recurrences in their forms, as a figure: one panel a recurrence, one line a form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from paradec.viz.figure import save
from paradec.viz.palette import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"


class Timed(Protocol):
    """What a timing needs to be drawn. `forward` and `gradient` are milliseconds."""

    recurrence: str
    form: str
    length: int
    forward: float
    gradient: float


def recurrence_times(timings: Sequence[Timed], path: str | os.PathLike | None = None) -> Figure:
    """Microseconds a step over the length, forward solid and with gradients dashed; saved to `path` if given."""
    if not timings:
        raise ValueError("recurrence_times needs at least one timing")
    import matplotlib.pyplot as plt  # here, so that terminal and page do not pay for it

    names = list(dict.fromkeys(t.recurrence for t in timings))
    figure, panels = plt.subplots(
        1, len(names), figsize=(2.9 * len(names) + 0.6, 3.4), squeeze=False, layout="constrained"
    )  # fmt: skip
    plt.close(figure)  # the figure is the caller's, not pyplot's
    for axes, name in zip(panels[0], names, strict=True):
        mine = [t for t in timings if t.recurrence == name]
        for number, form in enumerate(dict.fromkeys(t.form for t in mine)):
            some = sorted((t for t in mine if t.form == form), key=lambda t: t.length)
            look = dict(color=METHODS[number % len(METHODS)], marker=_MARKERS[number % len(_MARKERS)], markersize=4)
            steps = [t.length for t in some]
            axes.plot(steps, [1000 * t.forward / t.length for t in some], label=form, **look)
            axes.plot(steps, [1000 * t.gradient / t.length for t in some], linestyle="--", linewidth=1, **look)
        axes.set(title=name, xlabel="length", xscale="log", yscale="log")
        axes.set_xticks(sorted({t.length for t in mine}), labels=[f"{n:,}" for n in sorted({t.length for t in mine})])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize="x-small")
    panels[0][0].set_ylabel("µs a step (dashed: with gradients)")
    if path is not None:
        save(figure, path)
    return figure
