"""`paradec bench`: run a benchmark and say what it measures and what it leaves out."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from paradec.commands import options as o
from paradec.console import OUT, say, track, write
from paradec.errors import InputError, UnknownName
from paradec.io import whole_file

arg = tyro.conf.arg
MOST = 1_000_000
"""Decodes, samples and rows: with more, a benchmark would not end."""


def bench(
    benchmark: Annotated[
        tyro.conf.Positional[str], arg(help="parallelbench: rules of unmasking. ops: recurrences in their forms.")
    ] = "parallelbench",
    model: Annotated[
        str, arg(help="`exact`: true posteriors of list operations; or a model, as in generate.")
    ] = "exact",
    items: Annotated[int, arg(help="With exact: items of a list.")] = 6,
    operations: Annotated[str, arg(help="With exact: operations on lists.")] = "copy,replace,shuffle,insert,remove",
    rules: Annotated[str, arg(help="With exact: unmasking rules, each swept.")] = "random,threshold,factor,entropy,eb",
    decodes: Annotated[int, arg(help="With exact: decodes of each setting.")] = 2000,
    temperature: Annotated[float, arg(help="With exact: of the draws; the closed forms are of 1.")] = 1.0,
    tasks: Annotated[str, arg(help="With a model: the written tasks.")] = "copy,reverse,sort,shuffle,replace_random",
    methods: Annotated[str, arg(help="With a model: methods, separated by commas.")] = "ar",
    limit: Annotated[int, arg(help="With a model: samples of each task.")] = 20,
    batch_size: Annotated[int, arg(help="With a model: rows decoded together.")] = 8,
    recurrences: Annotated[str, arg(help="With ops: what is timed.")] = "diagonal,block,para_gru,gla",
    lengths: Annotated[str, arg(help="With ops: steps of a sequence.")] = "512,2048,8192",
    width: Annotated[int, arg(help="With ops: numbers of a state.")] = 256,
    rounds: Annotated[int, arg(help="With ops: timings of which the median is told.")] = 5,
    png: o.Figure = None,
    json_path: o.JsonFile = None,
) -> int:
    """Accuracy over tokens per call of rules or answers; times of recurrences."""
    if benchmark not in ("parallelbench", "ops"):
        raise UnknownName("benchmark", benchmark, ["parallelbench", "ops"])
    counts = {"decodes": decodes, "limit": limit, "batch_size": batch_size, "width": width, "rounds": rounds}
    for name, value in counts.items():
        if not 1 <= value <= MOST:
            raise InputError(f"{name} must be at least 1 and at most {MOST}; {value} was given.")
    whole_file.check_all({"--png": (png, o.FIGURES), "--json": (json_path, ())})
    if benchmark == "ops":
        return _ops(several(recurrences, "recurrence"), several(lengths, "length"), width, rounds, png, json_path)
    if model == "exact":
        points = exact(several(operations, "operation"), several(rules, "rule"), items, decodes, temperature)
    else:
        points = written(model, several(tasks, "task"), several(methods, "method"), limit, batch_size)
    if png is not None:
        from paradec.viz.trade_off import trade_off

        trade_off(points, png)
        say(f"Wrote {png}")
    if json_path is not None:
        write(json_path, json.dumps([dataclasses.asdict(p) for p in points], indent=1))
    return 0


def _ops(
    names: list[str], lengths: list[str], width: int, rounds: int, png: Path | None, json_path: Path | None
) -> int:
    """Time recurrences, one row at a time, printing each form as it is known."""
    from paradec.comparison import device, versions
    from paradec.evals.recurrences import measure

    if wrong := next((x for x in lengths if not x.isdigit() or not 1 <= int(x) <= MOST), None):
        raise InputError(f"A length is a whole number from 1 to {MOST}; {wrong!r} was given.")
    timings = []
    OUT.print(f"{'recurrence':10} {'form':22} {'length':>7} {'forward ms':>11} {'gradient ms':>12} {'floor MiB':>10}",
              style="bold", soft_wrap=True)  # fmt: skip
    for t in measure(names, [int(x) for x in lengths], width, 1, rounds):
        timings.append(t)
        OUT.print(f"{t.recurrence:10} {t.form:22} {t.length:7} {t.forward:11.2f} {t.gradient:12.2f} "
                  f"{t.floor / 2**20:10.1f}", soft_wrap=True, highlight=False)  # fmt: skip
    say(f"{device()}, float32, width {width}, one row; medians of {rounds} interleaved rounds.")
    if png is not None:
        from paradec.viz.recurrence_times import recurrence_times

        recurrence_times(timings, png)
        say(f"Wrote {png}")
    if json_path is not None:
        facts = {"device": device(), "versions": versions(), "rounds": rounds}
        write(json_path, json.dumps(facts | {"timings": [dataclasses.asdict(t) for t in timings]}, indent=1))
    return 0


def several(names: str, kind: str) -> list[str]:
    """The names that an option lists: at least one."""
    found = o.listed(names)
    if not found:
        raise InputError(f"Name at least one {kind}: --{kind}s NAME,NAME.")
    return found


def exact(operations: list[str], rules: list[str], items: int, decodes: int, temperature: float) -> list:
    """Sweep the rules on exact denoisers, printing each point as it is measured."""
    from paradec.compile_cache import cache_compilations
    from paradec.evals.parallelbench.exact import Point, sweep

    cache_compilations()
    rows = [f"{'operation':10} {'rule':10} {'setting':14} tokens/call  accuracy          theory"]

    def told(p: Point) -> None:
        if rows:
            OUT.print(rows.pop(), style="bold", soft_wrap=True)
        known = "" if p.theory is None else f"{p.theory:.4f}"
        paid = f"{p.tokens_per_call:11.2f}  {p.accuracy:.4f} ± {p.error:.4f}   {known}"
        OUT.print(f"{p.operation:10} {p.rule:10} {p.setting:14} {paid}", markup=False, soft_wrap=True)

    ask = {"items": items, "decodes": decodes, "temperature": temperature}
    return sweep(operations, rules, **ask, told=told, track=partial(track, label="Sweeping"))


def written(model: str, tasks: list[str], methods: list[str], limit: int, batch_size: int) -> list:
    """Let a model answer the written tasks with every method."""
    from paradec.evals.parallelbench.tasks import LEFT_OUT, find
    from paradec.evals.parallelbench.written import answer

    for task in tasks:
        find(task)
    o.split_options(methods, [])
    lm, points = o.load_model(model, "float32"), []
    OUT.print(f"{'task':24} {'method':18} tokens/call  accuracy  strict  Kendall", style="bold", soft_wrap=True)
    jobs = [(task, method) for task in tasks for method in methods]
    for task, method in track(jobs, "Answering"):
        p = answer(lm, task, method, limit=limit, batch_size=batch_size)
        paid = f"{p.tokens_per_call:11.2f}  {p.accuracy:8.3f}  {p.strict:6.3f}  {p.kendall:7.3f}"
        OUT.print(f"{p.operation:24} {p.rule:18} {paid}", markup=False, soft_wrap=True)
        points.append(p)
    for name, reason in LEFT_OUT.items():
        OUT.print(f"left out: {name}: {reason}", style="dim", markup=False)
    return points
