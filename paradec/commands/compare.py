"""`paradec compare`: several methods on the same prompts, as a table."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import tyro

from paradec.commands import options as o
from paradec.console import OUT, track, write
from paradec.errors import MOST_REPEATS, ExactnessError, at_least
from paradec.io import whole_file


def compare(
    sample: o.Shared = o.Sample(),
    model: o.ModelName = "smollm2-135m",
    methods: Annotated[str, tyro.conf.arg(help="Names, separated by commas; empty: some that the model can do.")] = "",
    prompt: o.PromptText = None,
    prompts: o.PromptFile = None,
    limit: o.Limit = None,
    repeats: o.Repeats = 3,
    method_arg: o.MethodArgs = (),
    dtype: o.Dtype = "float32",
    json_path: o.JsonFile = None,
    html: o.HtmlFile = None,
) -> int:
    """Decode the same prompts with several methods, interleaved, and compare tokens, calls and time with ar."""
    from paradec import catalog
    from paradec.comparison import compare as run

    names = o.listed(methods)
    options = o.split_options(names, method_arg) if names else {}
    at_least("repeats", repeats, 0, MOST_REPEATS)
    whole_file.check_all({"--json": (json_path, ()), "--html": (html, ())})
    sample.request()
    bad: list[str] = []
    texts = o.gather(prompt, prompts, limit, bad)
    lm = o.load_model(model, dtype)
    if not names:
        names = list(catalog.USUAL[catalog.denoises(lm.model)])
        options = o.split_options(names, method_arg)
    sample.tell(lm)
    told = partial(track, label=f"Comparing {len({*names, catalog.reference(lm.model)})} methods")
    request = sample.request(lm, len(texts))
    report = run(lm, texts, names, repeats=repeats, method_args=options, track=told, **request)
    show(report)
    if json_path is not None:
        write(json_path, json.dumps(report.public(), indent=1))
    if html is not None:
        from paradec import viz

        traces = [rows[0].trace() for rows in report.generations.values()]
        write(html, viz.page(traces, title=f"{model}: {traces[0].prompt[:60]}"))
    broken = report.broken() if dtype == "float32" else []
    if broken:
        names_ = ", ".join(f"{e.method} ({e.identical} of {e.total} rows)" for e in broken)
        raise ExactnessError(f"Declared exact, but not plain decoding's tokens in float32: {names_}. Report this.")
    return 1 if bad else 0


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
    prompts = f"{s['prompts']} prompt{'s' * (s['prompts'] != 1)}"
    title = f"{report.model}, {s['dtype']}, batch {s['batch_size']}, {prompts}, {report.device}"
    OUT.print(viz.table(rows, title=title, reference=report.methods[0].method))
