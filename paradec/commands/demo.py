"""`paradec demo`: a real model writes the same text in several ways, drawn as it is decoded, then compared."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Annotated

import tyro
from rich.rule import Rule

from paradec import viz
from paradec.commands import options as o
from paradec.commands.compare import on_interrupt, publisher
from paradec.console import ERR, OUT, say, track
from paradec.errors import MOST_REPEATS, at_least
from paradec.io import whole_file

PROMPT = (
    "Repeat this list:\n"
    "1. Wash the red apples in the kitchen sink.\n2. Wash the green apples in the kitchen sink.\n"
    "3. Cut the red apples into thin slices.\n4. Cut the green apples into thin slices.\n"
    "5. Put the slices on the white plate."
)
METHODS = ("ar", "prompt_lookup", "jacobi", "lookahead", "medusa")
OPTIONS = {"medusa": {"num_draft": 7}}


def demo(
    model: o.ModelName = "smollm2-135m",
    max_new_tokens: Annotated[int, tyro.conf.arg(help="Tokens of the text at most.")] = 96,
    prompt: Annotated[
        str,
        tyro.conf.arg(
            metavar="TEXT",
            help="What the user says; - reads it from stdin.",
            help_behavior_hint="(default: a list to repeat)",
        ),
    ] = PROMPT,
    repeats: o.Repeats = 3,
    png: o.Figure = None,
) -> int:
    """Draw a model's text as each method decodes it, then time them in turn."""
    from paradec.comparison import compare
    from paradec.components import shipped

    o.SamplingOptions(max_new_tokens=max_new_tokens).request()
    prompt = o.check_prompt(prompt)
    at_least("repeats", repeats, 0, MOST_REPEATS)
    whole_file.check_all({"--png": (png, o.FIGURES)})

    begin = time.perf_counter()
    lm = o.load_model(model, "float32")
    methods = [name for name in METHODS if name != "medusa" or shipped(lm)]
    OUT.print(Rule(f"paradec: {model}, one text, {len(methods)} ways"))
    loaded = time.perf_counter() - begin
    OUT.print(f"Prompt: {prompt}\n", style="dim", markup=False)
    first = None
    for method in methods:
        with ERR.status(f"Compiling {method}") if ERR.is_terminal else contextlib.nullcontext():
            next(lm.stream(prompt, method=method, method_args=OPTIONS.get(method), max_new_tokens=max_new_tokens))
        first = first or time.perf_counter() - begin
        steps = lm.stream(prompt, method=method, method_args=OPTIONS.get(method), max_new_tokens=max_new_tokens)
        viz.render(viz.live((step.trace() for step in steps), OUT), OUT)
        OUT.print()
    say("Timing: every method decodes the text again, in turn…")
    options = {name: own for name, own in OPTIONS.items() if name in methods}
    ask = {"method_args": options, "max_new_tokens": max_new_tokens, "track": partial(track, label="Timing")}
    publish = publisher(png=png)
    with on_interrupt(publish):
        report = compare(lm, [prompt], methods, repeats=repeats, **ask)
    publish(report)
    other = [entry.method for entry in report.methods if entry.identical < entry.total]
    same = f"{', '.join(other)} wrote other tokens than ar" if other else "every method wrote the same tokens"
    OUT.print(
        f"Weights were ready after {loaded:.1f} s, the first token came after {first:.1f} s (compilation included). "
        f"Tokens of one call share a colour; {same}.",
        style="dim",
    )
    return 0
