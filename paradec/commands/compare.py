"""`paradec compare`: several methods on the same prompts, as a table, a figure, a page and numbers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from paradec.commands import options as o
from paradec.console import OUT, say, track, wipe, write
from paradec.errors import MOST_REPEATS, ExactnessError, InputError, at_least
from paradec.io import whole_file

Texts = Annotated[bool, tyro.conf.arg(help="With --json: every method's texts and token ids too.")]


def compare(
    sample: o.Shared = o.SamplingOptions(),
    model: o.ModelName = "smollm2-135m",
    methods: Annotated[
        str, tyro.conf.arg(help=o.METHODS, help_behavior_hint="(default: some that the model can do)")
    ] = "",
    prompt: o.PromptText = None,
    prompts: o.PromptFile = None,
    limit: o.Limit = None,
    repeats: o.Repeats = 3,
    method_arg: o.MethodArgs = (),
    method_file: o.MethodFiles = (),
    dtype: o.Dtype = "float32",
    json_path: o.JsonFile = None,
    texts: Texts = False,
    html: o.HtmlFile = None,
    png: o.Figure = None,
) -> int:
    """Decode prompts with several methods in turn; compare tokens, calls and time."""
    from paradec import engines
    from paradec.answers import unrolled
    from paradec.comparison import compare as run

    names = [*o.listed(methods), *o.added(method_file)]
    options = o.split_options(names, method_arg) if names else {}
    at_least("repeats", repeats, 0, MOST_REPEATS)
    whole_file.check_all({"--json": (json_path, ()), "--html": (html, ()), "--png": (png, o.FIGURES)})
    if texts and json_path is None:
        raise InputError("--texts puts the texts into the JSON; say where that goes: --json FILE.")
    sample.request()
    bad: list[str] = []
    lines = o.gather(prompt, prompts, limit, bad)
    lm = o.load_model(model, dtype)
    if not names:
        names = list(engines.usual(lm.model))
        options = o.split_options(names, method_arg)
    sample.tell(lm)
    told = partial(track, label=f"Comparing {len({*names, engines.plain(lm.model)})} methods")
    given = unrolled(lm, lines, sample.request(lm, len(lines)))
    request = sample.request(lm, len(given))
    publish = publisher(json_path, texts, html, png)
    with on_interrupt(publish):
        report = run(lm, given, names, repeats=repeats, method_args=options, track=told, **request)
    publish(report)
    broken = report.broken() if dtype == "float32" else []
    if broken:
        names_ = ", ".join(f"{e.method} ({e.identical} of {e.total} rows)" for e in broken)
        raise ExactnessError(f"Declared exact, but not plain decoding's tokens in float32: {names_}. Report this.")
    return 1 if bad else 0


@contextlib.contextmanager
def on_interrupt(publish: Callable[[Any], None]) -> Iterator[None]:
    """Where Ctrl-C ends a comparison, what was measured of it is published first; then it ends as anywhere."""
    from paradec.comparison import Interrupted

    try:
        yield
    except Interrupted as told:
        wipe()
        publish(told.comparison)
        raise KeyboardInterrupt from None


def publisher(
    json_path: Path | None = None, texts: bool = False, html: Path | None = None, png: Path | None = None
) -> Callable[[Any], None]:
    """What prints a comparison and writes its files. What it needs is imported now: an interrupt leaves no time to."""
    from paradec import viz

    if png is not None:
        import matplotlib.pyplot  # noqa: F401

    def publish(report: Any) -> None:
        show(report)
        if json_path is not None:
            write(json_path, json.dumps(report.public(texts), indent=1))
        if html is not None:
            traces = [rows[0].trace() for rows in report.generations.values()]
            write(html, viz.page(traces, title=f"{report.model}: {traces[0].prompt[:60]}"))
        if png is not None:
            report.figure(png)
            say(f"Wrote {png}")

    return publish


def show(report: Any) -> None:
    """Print a comparison as a table."""
    from paradec import viz

    rows = [
        viz.Row(
            method=e.method,
            exact=e.exact,
            tokens_per_call=e.tokens_per_call,
            calls=e.calls,
            tokens_per_second=e.tokens_per_second,
            speedup=e.speedup,
            identical=(e.identical, e.total),
        )
        for e in report.methods
    ]
    s = report.settings
    title = f"{report.model}, {s['dtype']}, batch {s['batch_size']}, {report.extent}, {report.device}"
    OUT.print(viz.table(rows, title=title, reference=report.methods[0].method))
