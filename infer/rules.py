"""Every unmasking rule on a trained diffusion model, swept through its settings and compared at matched accuracy.

    python train/masked.py sums
    python infer/rules.py --task sums --model out/sums/model --out out/sums.json

A row of the table is the setting of a rule with the fewest calls that still answers as well as static decoding (one
position a call, the most confident first) to within `--within`. Greedy, in one batch; every row counts its own calls.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import tyro

from paradec.compile_cache import cache_compilations
from paradec.composition import compose
from paradec.console import ERR, OUT, write
from paradec.data.tasks import TASKS
from paradec.evals.answers import Answers, Questions, Trial, ask, matched
from paradec.evals.sweeps import SWEEPS, named, settings
from paradec.guard import guarded
from paradec.io.confidence_filter import load_filter
from paradec.io.hf import load_hf


@dataclasses.dataclass(frozen=True)
class Run:
    """What to measure."""

    task: Literal["lists", "sums", "padded"]
    """What the model was trained on."""
    model: Path
    """A folder that train/masked.py wrote."""
    out: Path
    """Where to write every trial as JSON."""
    rows: int = 500
    """Questions."""
    block: int = 0
    """Block length; 0: the whole answer is one block."""
    rules: tuple[str, ...] = tuple(SWEEPS)
    """Rules that are swept."""
    filter: Path | None = None
    """What train/learned_filter.py left for this model."""
    within: float = 0.01
    """How far below static decoding's accuracy a setting may be."""


def main(run: Run) -> int:
    """Print the table as markdown; the status is 0."""
    model, weights = load_hf(run.model)
    source = TASKS[run.task](rows=run.rows, seed=2)
    eos = (source.eos,) if run.task == "padded" else ()
    ask_with = lambda method: ask(method, weights, source, eos=eos)
    engine = {"block": run.block or None, "vocab_limit": model.mask_id}
    static = ask_with(compose(model, "quota", **engine))
    trials = [Trial.of(run.task, "static", "", static, static)]
    for rule, names, options, more in [*swept(run, source), *fitted(run, source, static, eos)]:
        answers = ask_with(compose(model, names, options, **engine | dict(more)))
        trials.append(Trial.of(run.task, rule, named(options), answers, static))
        said = f"{trials[-1].calls:.2f} calls, {trials[-1].accuracy:.3f}"
        ERR.print(rule, named(options), said, markup=False, soft_wrap=True)
    write(run.out, json.dumps([dataclasses.asdict(t) for t in trials], indent=1))
    show(trials, static.accuracy - run.within)
    return 0


Case = tuple[str, str, Mapping[str, Any], Mapping[str, Any]]


def swept(run: Run, source: Questions) -> Iterator[Case]:
    """A case for every rule and setting: name, parts, options, engine."""
    shortest = min(int(source[i]["learn"].sum()) for i in range(len(source)))
    for rule in run.rules:
        names, every = settings(rule, shortest)
        yield from ((rule, names, options, {}) for options in every)


def fitted(run: Run, source: Questions, static: Answers, eos: tuple[int, ...]) -> Iterator[Case]:
    """Rules that need to know something of the task, or of the text to come."""
    yield "oracle", "oracle", {"reference": jnp.asarray(static.canvas.clip(0))}, {}
    for cache in ("none", "dual", "prefix"):
        for tau in (0.995, 0.98, 0.95, 0.9):
            yield f"threshold, blocks of 8, cache {cache}", "threshold", {"tau": tau}, {"cache": cache, "block": 8}
    if run.filter is not None:
        trained = load_filter(run.filter)
        own = {"weights": trained.weights, "filter": trained.filter}
        for tau in (0.9999, 0.999, 0.995, 0.99, 0.98, 0.96, 0.9, 0.8, 0.7, 0.6, 0.5):
            yield "learned_filter", "learned_filter", own | {"tau": tau}, {"block": trained.filter.length}
    for tau in (0.98, 0.95, 0.9, 0.6) if eos else ():
        ends = {"block": None, "eos": eos}
        yield "ada_block, stops", "threshold+ada_block", {"delimiter": eos, "threshold.tau": tau}, ends
        yield "threshold, stops", "threshold", {"tau": tau}, {"eos": eos}
        for sure in (0.0, 0.9, 0.99):
            bars = {"threshold.tau": tau, "end_of_text.tau": sure}
            yield "threshold, end of text", "threshold+end_of_text", bars, {"eos": eos}
            first = bars | {"end_of_text.leftmost": True}
            yield "threshold, first end of text", "threshold+end_of_text", first, {"eos": eos}


def show(trials: Sequence[Trial], floor: float) -> None:
    """The table; of a rule without a setting that is good enough, the most exact one, and that it is not."""
    heads = ("rule", "setting", "calls", "positions", "refreshes", "exact match", "as static", "tokens/call")
    for line in (heads, ["---"] * len(heads)):
        OUT.print(f"| {' | '.join(line)} |", markup=False, soft_wrap=True)
    for rule, best in matched(trials, floor).items():
        t = best or max((t for t in trials if t.rule == rule), key=lambda t: (t.accuracy, -t.calls))
        costs = f"{t.calls:.2f} | {t.queries:.0f} | {t.refreshes:.2f}"
        good = f"{100 * t.accuracy:.1f} % | {100 * t.agreement:.1f} % | {t.tokens_per_call:.2f}"
        setting = t.setting if best else f"none as good; best {t.setting}"
        OUT.print(f"| {rule} | {setting} | {costs} | {good} |", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Run, description=__doc__))))
