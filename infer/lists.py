"""A trained diffusion model on list operations: its accuracy against tokens per call, beside what theory says.

    python train/masked.py lists
    python infer/lists.py --model out/lists/model --out out/lists.json --png docs/lists.png

Answers are sampled at temperature 1 in random order, k positions a call, because that is what the closed forms are of;
other rules are swept through their settings on the same prompts. "static" is one position a call, the most confident
first, and greedy.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from paradec.compile_cache import cache_compilations
from paradec.composition import compose
from paradec.console import OUT, write
from paradec.data.lists import OPERATIONS, Lists
from paradec.evals.answers import Trial, ask
from paradec.evals.parallelbench import theory
from paradec.evals.sweeps import named, settings
from paradec.guard import guarded
from paradec.io.hf import load_hf
from paradec.viz.trade_off import trade_off


@dataclasses.dataclass(frozen=True)
class Run:
    """What to measure."""

    model: Path
    """A folder that train/masked.py wrote."""
    out: Path
    """Where to write every trial as JSON."""
    png: Path | None = None
    """Where to draw accuracy over tokens per call."""
    items: int = 6
    """Items of a list."""
    rows: int = 1000
    """Prompts of each operation."""
    operations: tuple[str, ...] = OPERATIONS
    """Operations to be measured."""
    rules: tuple[str, ...] = ("random",)
    """Rules that are swept."""
    drawn: tuple[str, ...] = ("copy", "sort", "replace_random", "shuffle", "insert_random", "remove_random")
    """Operations in the figure."""


def main(run: Run) -> int:
    """Print a line a trial; the status is 0."""
    model, weights = load_hf(run.model)
    trials = []
    for operation in run.operations:
        source = Lists(run.items, rows=run.rows, seed=2, operations=[operation])
        method = lambda names, options, limit=source.symbols: compose(model, names, options, vocab_limit=limit)
        static = ask(method("quota", {}), weights, source)
        trials.append(Trial.of(operation, "static", "greedy", static, static))
        show(trials[-1])
        for rule in run.rules:
            names, every = settings(rule, source.answer_length(operation))
            for options in every:
                answers = ask(method(names, options), weights, source, temperature=1.0)
                t = Trial.of(operation, rule, named(options), answers, static)
                trials.append(dataclasses.replace(t, theory=known(operation, run.items, rule, options)))
                show(trials[-1])
    write(run.out, json.dumps([dataclasses.asdict(t) for t in trials], indent=1))
    if run.png is not None:
        trade_off([t for t in trials if t.operation in run.drawn and t.rule != "static"], run.png)
    return 0


def known(operation: str, items: int, rule: str, options: dict) -> float | None:
    """The closed form of a random order, where the operation has one."""
    plain = operation.removesuffix("_random")
    if rule == "random" and plain in ("shuffle", "replace"):
        return theory.accuracy(plain, items, options["per_call"])
    return None


def show(t: Trial) -> None:
    """One line."""
    theirs = "" if t.theory is None else f"theory {t.theory:.4f}"
    paid = f"{t.tokens_per_call:.2f} tokens a call, accuracy {t.accuracy:.4f} ± {t.error:.4f}"
    OUT.print(f"{t.operation:15} {t.rule:10} {t.setting:16} {paid}  {theirs}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Run, description=__doc__))))
