"""Decode steps on a CPU from a stack of layers, and from weights laid out for them, in one interleaved run.

    python infer/layout.py --out layout.json            # quiet
    python infer/layout.py --busy --out busy.json       # beside a process that reads memory all the time

Each row is one method at one batch size: milliseconds a call of both, the ratio of every pair of turns (stack over laid
out), whether the tokens are the same, and what compiling the loop of steps took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import paradec
from paradec.comparison import device, versions
from paradec.decode import loop
from paradec.decoder import step_weights
from paradec.guard import guarded
from paradec.io import text_file
from paradec.lm import LanguageModel, Request
from paradec.prompts import read_prompts

HERE = Path(__file__).parent
ARGS: dict[str, dict[str, Any]] = {"jacobi": {"window": 7}, "medusa": {"num_draft": 7}}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What to time."""

    model: str = "smollm2-135m"
    """A name that paradec loads."""
    methods: tuple[str, ...] = ("ar", "jacobi", "prompt_lookup", "medusa")
    """jacobi computes 8 positions a call here."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes."""
    new_tokens: int = 48
    """Tokens per prompt."""
    repeats: int = 7
    """Interleaved turns."""
    busy: bool = False
    """Beside a process that reads memory."""
    out: Path | None = None
    """Where to write everything as JSON."""


def read_memory() -> None:
    """Sum 256 MB, for ever."""
    block = np.ones(64 << 20, np.float32)
    while True:
        block.sum()


@contextlib.contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """A process that keeps the memory busy, where one is wanted."""
    process = multiprocessing.get_context("spawn").Process(target=read_memory, daemon=True)
    if wanted:
        process.start()
        time.sleep(2)
    yield
    if wanted:
        process.kill()


def contest(lm: LanguageModel, name: str, batch: int, plan: Layout) -> dict[str, Any]:
    """One method at one batch size, from both forms."""
    ask = Request(method=name, batch_size=batch, max_new_tokens=plan.new_tokens, ignore_eos=True)
    decoder = lm.decoder(ask, ARGS.get(name))
    prompts = [lm.encode(p) for p in read_prompts(HERE / "prompts" / "copy.jsonl", sys.exit)[:batch]]
    forms = {"stack": decoder.params, "laid_out": step_weights(decoder.method, decoder.params, decoder.layouts)}
    begin = lambda: jax.block_until_ready(lm.begin(decoder, prompts, ask, range(batch)))
    programs, compile_s = {}, {}
    for form, weights in forms.items():
        since = time.perf_counter()
        programs[form] = loop.run.lower(decoder.method, weights, begin(), np.int32(1)).compile()
        compile_s[form] = time.perf_counter() - since
    ms: dict[str, list[float]] = {form: [] for form in forms}
    texts = {}
    for turn in range(plan.repeats + 1):
        for form, weights in forms.items():
            state, since = begin(), time.perf_counter()
            end = loop.snapshot(programs[form](decoder.method, weights, state, np.int32(loop.OPEN)))
            if turn:
                ms[form].append((time.perf_counter() - since) * 1e3 / int(end.calls.max()))
            texts[form] = end.tokens
    pairs = sorted(a / b for a, b in zip(ms["stack"], ms["laid_out"], strict=True))
    return {
        "method": name, "batch": batch, "same_tokens": bool(np.array_equal(texts["stack"], texts["laid_out"])),
        "ratio": statistics.median(pairs), "lowest": pairs[0], "highest": pairs[-1],
        "ms": {form: statistics.median(times) for form, times in ms.items()}, "compile_s": compile_s,
    }  # fmt: skip


def main(plan: Layout) -> None:
    lm = paradec.load(plan.model)
    rows = []
    with neighbour(plan.busy):
        for batch in plan.batches:
            for name in plan.methods:
                rows.append(contest(lm, name, batch, plan))
                print(json.dumps(rows[-1]), flush=True)
    if plan.out:
        report = {"device": device(), "versions": versions(), "plan": dataclasses.asdict(plan), "rows": rows}
        text_file.write(plan.out, json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Layout, description=__doc__)) or 0))
