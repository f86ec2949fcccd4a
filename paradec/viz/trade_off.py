"""Quality against speed as a figure: one panel an operation, one line a rule, and what theory says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from paradec.viz.figure import save
from paradec.viz.palette import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX"


class Measured(Protocol):
    """What a point needs to be drawn."""

    operation: str
    rule: str
    accuracy: float
    error: float
    tokens_per_call: float
    theory: float | None


def trade_off(points: Sequence[Measured], path: str | os.PathLike | None = None) -> Figure:
    """Accuracy over tokens per call, a panel an operation; saved to `path` (the suffix chooses the format) if given.

    Bars are one standard deviation. Crosses are closed forms.
    """
    if not points:
        raise ValueError("trade_off needs at least one point")
    import matplotlib.pyplot as plt  # here, so that terminal and page do not pay for it

    operations, rules = (list(dict.fromkeys(getattr(p, name) for p in points)) for name in ("operation", "rule"))
    figure, panels = plt.subplots(
        1, len(operations), figsize=(2.3 * len(operations) + 0.9, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    plt.close(figure)  # the figure is the caller's, not pyplot's
    for axes, operation in zip(panels[0], operations, strict=True):
        for number, rule in enumerate(rules):
            some = [p for p in points if (p.operation, p.rule) == (operation, rule)]
            _draw(
                axes,
                sorted(some, key=lambda p: p.tokens_per_call),
                METHODS[number % len(METHODS)],
                _MARKERS[number % len(_MARKERS)],
            )
        axes.set(title=operation, xlabel="tokens per call", ylim=(-0.04, 1.04))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[0][0].set_ylabel("accuracy")
    handles, labels = panels[0][0].get_legend_handles_labels()
    for axes in panels[0][1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles, labels = [*handles, handle], [*labels, label]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize="small")
    if path is not None:
        save(figure, path)
    return figure


def _draw(axes: Axes, points: Sequence[Measured], colour: str, marker: str) -> None:
    x, y = [p.tokens_per_call for p in points], [p.accuracy for p in points]
    if points:
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.1, "label": points[0].rule}
        axes.errorbar(x, y, [p.error for p in points], **style)
    known = [p for p in points if p.theory is not None]
    if known:
        axes.plot(
            [p.tokens_per_call for p in known], [p.theory for p in known], linestyle="", marker="x", markersize=8,
            color="#D55E00", label="theory (random order)",
        )  # fmt: skip
