"""A trained diffusion model on list operations: its accuracy against tokens per call, beside what theory says.

    python train/masked.py lists
    python infer/lists.py --model out/lists/model --out out/lists.json --png docs/lists.png

Answers are sampled at temperature 1 in random order, k positions a call, because that is what the closed forms are of;
other rules are swept through their setting on the same prompts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from paradec.cli import OUT, cache_compilations, guarded, write
from paradec.data.lists import OPERATIONS, Lists
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.unmasking.compose import compose
from paradec.evals.parallelbench import theory
from paradec.evals.parallelbench.exact import SWEEPS, Point
from paradec.io.hf import load_hf
from paradec.models.block_diffusion import BlockDiffusion
from paradec.types import OPEN, Prompt
from paradec.viz.trade_off import trade_off


@dataclasses.dataclass(frozen=True)
class Run:
    """What to measure."""

    model: Path
    """A folder that train/masked.py wrote."""
    out: Path
    png: Path | None = None
    items: int = 6
    rows: int = 1000
    """Prompts of each operation."""
    operations: tuple[str, ...] = OPERATIONS
    rules: tuple[str, ...] = ("random",)
    drawn: tuple[str, ...] = ("copy", "sort", "replace_random", "shuffle", "insert_random", "remove_random")
    """Operations in the figure."""


def main(run: Run) -> int:
    """Print a line a point; the status is 0."""
    model, weights = load_hf(run.model)
    points = []
    for operation in run.operations:
        source = Lists(run.items, rows=run.rows, seed=2, operations=[operation])
        for rule in run.rules:
            names, settings = SWEEPS[rule]
            for options in settings:
                if options.get("per_call", 1) <= source.answer_length(operation):
                    points.append(measure(model, weights, source, operation, rule, names, options))
                    p = points[-1]
                    known = "" if p.theory is None else f"theory {p.theory:.4f}"
                    paid = f"{p.tokens_per_call:.2f} tokens a call, accuracy {p.accuracy:.4f} ± {p.error:.4f}"
                    OUT.print(f"{operation:15} {rule:10} {p.setting:12} {paid}  {known}", markup=False, soft_wrap=True)
    write(run.out, json.dumps([dataclasses.asdict(p) for p in points], indent=1))
    if run.png is not None:
        trade_off([p for p in points if p.operation in run.drawn], run.png)
    return 0


def measure(
    model: BlockDiffusion, weights, source: Lists, operation: str, rule: str, names: str, options: dict
) -> Point:
    """Answer every row of the source with one rule at one setting."""
    rows = [source[index]["token"] for index in range(len(source))]
    slots, new = -(-source.length // 16) * 16, source.answer_length(operation)
    token = np.zeros((len(rows), slots), np.int32)
    for row, ids in enumerate(rows):
        token[row, : source.prompt] = ids[: source.prompt]
    prompt = Prompt(token=jnp.asarray(token), length=jnp.full(len(rows), source.prompt))
    method, params = compose(model, names, options, words=source.symbols), {"target": jax.device_put(weights)}
    keys, how = row_keys(0, range(len(rows))), sampling(len(rows), temperature=1.0)
    state = loop.start(method, params, prompt, prompt.length + new, keys, how, slots=slots, chunk=16)
    state = loop.run(method, params, state, OPEN)
    text = np.asarray(state.tokens)[:, source.prompt : source.prompt + new]
    p = float(np.mean([source.right(ids, answer) for ids, answer in zip(rows, text, strict=True)]))
    plain, wanted = operation.removesuffix("_random"), None
    if rule == "random" and plain in ("shuffle", "replace"):
        wanted = theory.accuracy(plain, source.items, options["per_call"])
    setting = ", ".join(f"{k}={v}" for k, v in options.items() if k != "score")
    calls = int(state.calls.sum())
    return Point(operation, rule, setting, p, math.sqrt(p * (1 - p) / len(rows)), len(rows) * new / calls, wanted)


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Run, description=__doc__))))
