"""`paradec bench`: run a benchmark and say what it measures and what it leaves out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from paradec.errors import InputError, UnknownName


def bench(
    benchmark: tyro.conf.Positional[str] = "parallelbench",
    model: Annotated[str, tyro.conf.arg(help="`exact`: the true posterior of list operations; or a model.")] = "exact",
    items: int = 6,
    operations: str = "copy,replace,shuffle,insert,remove",
    rules: str = "random,threshold,factor,entropy,eb",
    decodes: int = 2000,
    temperature: float = 1.0,
    tasks: str = "copy,reverse,sort,shuffle,replace_random",
    methods: str = "ar",
    limit: int = 20,
    batch_size: int = 8,
    png: Path | None = None,
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Accuracy against tokens per call: `exact` sweeps unmasking rules over list operations (--operations, --rules),
    a model answers the written tasks (--tasks, --methods)."""
    if benchmark != "parallelbench":
        raise UnknownName("benchmark", benchmark, ["parallelbench"])
    if decodes < 1 or limit < 1:
        raise InputError(f"decodes and limit must be at least 1; {decodes} and {limit} were given.")
    split = lambda names: [name.strip() for name in names.split(",") if name.strip()]
    if model == "exact":
        points = exact(split(operations), split(rules), items, decodes, temperature, png)
    else:
        points = written(model, split(tasks), split(methods), limit, batch_size, png)
    if json_path is not None:
        from paradec.cli import write

        write(json_path, json.dumps([dataclasses.asdict(p) for p in points], indent=1))
    return 0


def exact(
    operations: list[str], rules: list[str], items: int, decodes: int, temperature: float, png: Path | None
) -> list:
    """Sweep the rules on exact denoisers, printing each point as it is measured."""
    from paradec.cli import OUT, cache_compilations
    from paradec.evals.parallelbench.exact import Point, sweep

    cache_compilations()
    OUT.print(f"{'operation':10} {'rule':10} {'setting':14} tokens/call  accuracy          theory", style="bold")

    def told(p: Point) -> None:
        known = "" if p.theory is None else f"{p.theory:.4f}"
        paid = f"{p.tokens_per_call:11.2f}  {p.accuracy:.4f} ± {p.error:.4f}   {known}"
        OUT.print(f"{p.operation:10} {p.rule:10} {p.setting:14} {paid}", markup=False)

    points = sweep(operations, rules, items=items, decodes=decodes, temperature=temperature, told=told)
    draw(points, png)
    return points


def written(model: str, tasks: list[str], methods: list[str], limit: int, batch_size: int, png: Path | None) -> list:
    """Let a model answer the written tasks with every method."""
    from paradec.cli import OUT, load_model
    from paradec.evals.parallelbench.tasks import LEFT_OUT
    from paradec.evals.parallelbench.written import answer

    lm, points = load_model(model, "float32"), []
    OUT.print(f"{'task':24} {'method':18} tokens/call  accuracy  strict  Kendall", style="bold")
    for task in tasks:
        for method in methods:
            p = answer(lm, task, method, limit=limit, batch_size=batch_size)
            paid = f"{p.tokens_per_call:11.2f}  {p.accuracy:8.3f}  {p.strict:6.3f}  {p.kendall:7.3f}"
            OUT.print(f"{p.operation:24} {p.rule:18} {paid}", markup=False)
            points.append(p)
    for name, reason in LEFT_OUT.items():
        OUT.print(f"left out: {name}: {reason}", style="dim", markup=False)
    draw(points, png)
    return points


def draw(points: list, png: Path | None) -> None:
    """Save the figure, if one was asked for."""
    if png is not None:
        from paradec.cli import say
        from paradec.viz.trade_off import trade_off

        trade_off(points, png)
        say(f"Wrote {png}")
