"""The trace as one self-contained HTML page: no network, no library, nothing to install to look at it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from importlib import resources

from paradec.trace import Trace
from paradec.types import OPEN
from paradec.viz.palette import CALLS, places


def page(traces: Iterable[Trace], title: str = "Decode order") -> str:
    """A page that compares traces side by side: a slider over model calls, the text, and when each token committed.

    The page is pure ASCII, so it reads the same whatever encoding it is saved in. `#step=3` in its address opens it
    after call 3; `&pace=call|own|time` and `&colour=call|order` choose how columns keep step and what colours mean.
    """
    traces = list(traces)
    if not traces:
        raise ValueError("page needs at least one trace")
    fill = {
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "palette": " ".join(f"--call-{i}: {colour};" for i, colour in enumerate(CALLS)),
        "data": _embed([_column(trace) for trace in traces]),
    }
    template = resources.files("paradec.viz").joinpath("page.html").read_text("ascii")
    # One pass: what a model wrote may hold a marker of its own.
    return re.sub(r"\{\{(\w+)\}\}", lambda marker: fill[marker[1]], template)


def _column(trace: Trace) -> dict:
    """What the page's script reads of a trace, the place of each token's call in the palette included."""
    place = places(trace)
    hues = [None if call == OPEN else place[call] for call in trace.settled]
    return trace.to_dict() | {"hues": hues, "perCall": list(trace.per_call)}


def _embed(value: object) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
