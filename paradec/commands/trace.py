"""`paradec trace`: the order in which a text was committed."""

from __future__ import annotations

from typing import Annotated

import tyro

from paradec.commands import options as o
from paradec.console import OUT, say, write
from paradec.io import whole_file


def trace(
    prompt: Annotated[str, tyro.conf.arg(metavar="TEXT", help=o.SAID)],
    sample: o.Shared = o.SamplingOptions(),
    model: o.ModelName = "smollm2-135m",
    methods: Annotated[
        str, tyro.conf.arg(help=o.METHODS, help_behavior_hint="(default: two that the model can do)")
    ] = "",
    method_arg: o.MethodArgs = (),
    dtype: o.Dtype = "float32",
    html: o.HtmlFile = None,
    png: o.Figure = None,
) -> int:
    """Draw which call committed which token: in the terminal, as a page or a figure."""
    from paradec import engines, viz

    names = o.listed(methods)
    options = o.split_options(names, method_arg) if names else {}
    whole_file.check_all({"--html": (html, ()), "--png": (png, o.FIGURES)})
    sample.request()
    prompt = o.check_prompt(prompt)
    lm = o.load_model(model, dtype)
    if not names:
        names = list(engines.usual(lm.model)[:2])
        options = o.split_options(names, method_arg)
    sample.tell(lm)
    traces = []
    for name in names:
        result = lm.generate([prompt], method_args=options.get(name), **sample.request(lm, 1, method=name))[0]
        traces.append(result.trace())
        viz.render(traces[-1], OUT)
    if html is not None:
        write(html, viz.page(traces, title=f"{model}: {prompt[:60]}"))
    if png is not None:
        viz.decode_order(traces, png)
        say(f"Wrote {png}")
    return 0
