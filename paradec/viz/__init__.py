"""Pictures of a decode: which call committed which token, in a terminal, on a page, in a figure; and of a
comparison."""

from paradec.trace import Trace
from paradec.viz.page import page
from paradec.viz.plot import decode_order
from paradec.viz.score_table import Row, table
from paradec.viz.speed_bars import speed_bars
from paradec.viz.terminal import LiveTrace, live, render

__all__ = ["LiveTrace", "Row", "Trace", "decode_order", "live", "page", "render", "speed_bars", "table"]
