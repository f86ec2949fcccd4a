"""Every exact method on real prompts, alone and in ragged batches, greedy and sampled: are the tokens those of `ar`?

    python infer/exactness.py --prompts question.jsonl --limit 60 --out exactness.json

The truth of a temperature is `ar` at batch 1; `ar` in a batch is held against it too. A cell is rows equal of rows run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro

import paradec
from paradec import composition
from paradec.comparison import device, divergence, versions
from paradec.guard import guarded
from paradec.io import text_file
from paradec.prompts import read_prompts


@dataclasses.dataclass(frozen=True)
class Exactness:
    """What to run."""

    prompts: Path
    """A JSONL file; the first turn of each line is decoded."""
    limit: int = 60
    """Prompts to read."""
    model: str = "smollm2-135m"
    """A name that paradec loads."""
    dtype: str = "float32"
    """Of weights and cache."""
    methods: tuple[str, ...] = ("ar", "prompt_lookup", "jacobi", "lookahead", "draft_model")
    """Methods of the catalogue."""
    method_args: tuple[str, ...] = ("draft_model.draft=layers:10",)
    """method.key=value."""
    batches: tuple[int, ...] = (8, 1)
    """Batch sizes."""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    """0 is greedy."""
    new_tokens: int = 64
    """Tokens per prompt."""
    seed: int = 0
    """Of the noise."""
    out: Path | None = None
    """Where to write the result as JSON, after every cell."""


def main(run: Exactness) -> int:
    """Print a line per cell; the status is 1 if any promised cell differs."""
    lm = paradec.load(run.model, dtype=run.dtype)
    prompts = read_prompts(run.prompts, sys.exit, run.limit)
    encoded = [lm.encode(p) for p in prompts]
    report: dict[str, Any] = {"model": run.model, "dtype": run.dtype, "device": device(), "versions": versions()}
    report |= {"prompts": len(prompts), "new_tokens": run.new_tokens, "cells": []}
    broken = 0
    for temperature in run.temperatures:
        ask = dict(max_new_tokens=run.new_tokens, temperature=temperature, seed=run.seed)
        truth = lm.generate(encoded, method="ar", **ask)
        for name in run.methods:
            options = options_of(name, run.method_args)
            for batch in run.batches:
                begin = time.perf_counter()
                rows = lm.generate(encoded, method=name, method_args=options, batch_size=batch, **ask)
                same = [a.token_ids == b.token_ids for a, b in zip(rows, truth, strict=True)]
                cell = {
                    "method": name,
                    "options": options,
                    "temperature": temperature,
                    "batch": batch,
                    "identical": sum(same),
                    "total": len(same),
                    "tokens_per_call": sum(r.new_tokens for r in rows) / sum(r.calls for r in rows),
                    "first_divergence": divergence(lm, encoded, range(len(rows)), rows, truth),
                    "seconds": round(time.perf_counter() - begin, 1),
                }
                broken += composition.promises(name, options, temperature) and not all(same)
                report["cells"].append(cell)
                print(json.dumps(cell), flush=True)
                if run.out is not None:
                    text_file.write(run.out, json.dumps(report, indent=1))
            jax.clear_caches()  # the next method has programs of its own, and a process can map only so many
    return 1 if broken else 0


def options_of(name: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """The options meant for one method."""
    mine = (pair.split(".", 1)[1] for pair in pairs if pair.startswith(f"{name}."))
    return composition.parse(name, mine)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Exactness, description=__doc__))))
