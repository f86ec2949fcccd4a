"""What the canvas engine adds to its model calls, and what its caches save and lose.

    python infer/canvas.py --out canvas.json
    python infer/canvas.py --sections caches --model out/masked-shakespeare/model \
        --block-model out/block-shakespeare/model

`overhead`: time per call of the loop over that of the same jitted model calls by hand, in interleaved turns; of every
pair of turns the ratio is taken, and the median of the pairs is reported with their range, by the clock and by the
seconds of processor that the process took, which other programs on the machine disturb less; "least" is the ratio of
the shortest turns, by processor. `caches`: for every policy
the calls by kind, the positions computed, how much of the uncached text it returns, and how far its logits are off on
the uncached decode's own canvases.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, PyTree
from rich.table import Table

from paradec import params
from paradec.comparison import device, versions
from paradec.compile_cache import cache_compilations
from paradec.composition import compose
from paradec.console import OUT, write
from paradec.data import text
from paradec.decode import loop
from paradec.decode.canvas import Canvas
from paradec.decode.sampling import row_keys, sampling
from paradec.errors import InputError
from paradec.evals.drift import drift
from paradec.guard import guarded
from paradec.io.hf import load_hf
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.shapes import shape
from paradec.models.transformer import Transformer
from paradec.testing import tiny_transformer
from paradec.types import OPEN, DecodeState, Place, Prompt, Rows

CASES = tuple(zip(("quota", *("threshold",) * 4), ("none", "none", "whole", "dual", "block"), strict=True))
"""Rule and cache; "whole" is no cache, and one block that is the whole canvas, so that all its logits are read."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What to measure."""

    sections: tuple[str, ...] = ("overhead", "caches")
    """What to measure, of overhead and caches."""
    shape: str = "smollm2-135m"
    """Overhead: a shape of paradec.models.shapes, with random weights in float32."""
    block: int = 32
    """Overhead: positions of a block; the canvas is a prompt of one block and a block to fill."""
    turns: int = 4
    """Overhead: calls that are timed together, all in one block, so that the first of them opens it."""
    repeats: int = 5
    """Overhead: interleaved turns after one warm-up each."""
    batches: tuple[int, ...] = (1, 8)
    """Overhead: rows of a batch."""
    model: Path | None = None
    """Caches: a folder of train/masked.py that sees the whole canvas; without one, three random layers."""
    block_model: Path | None = None
    """Caches: one that is block-causal; without one, three random layers in blocks of 8."""
    tau: float = 0.5
    """Caches: the confidence at which a position is committed."""
    length: int = 64
    """Caches: positions of a row, of which 8 to 16 are the prompt."""
    rows: int = 16
    """Caches: prompts."""
    out: Path | None = None
    """Where to write everything as JSON."""


def main(run: Run) -> int:
    """Print a table for each section; the status is 0."""
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(run).items()}
    report: dict[str, Any] = {"run": fields, "device": device(), "versions": versions()}
    for name in run.sections:
        if name not in ("overhead", "caches"):
            raise InputError(f"Sections are overhead and caches; {name!r} was given.")
        report[name] = (overhead if name == "overhead" else caches)(run)
        if run.out is not None:
            write(run.out, json.dumps(report, indent=1))
    return 0


# The loop against the bare call.

Times = Float[np.ndarray, "2"]
"""Seconds by the clock, and of processor."""


def overhead(run: Run) -> list[dict[str, Any]]:
    """A row for each case and batch."""
    base, rows = shape(run.shape), []
    weights = params.init(base.specs(), jax.random.key(0))
    table = Table(
        "rule", "cache", "batch", "clock", "range", "processor", "range", "least", "ms a call", "bare", box=None
    )
    for batch in run.batches:
        for rule, cache in CASES:
            row = {"rule": rule, "cache": cache, "batch": batch} | against(run, base, weights, rule, cache, batch)
            rows.append(row)
            cells = [f"{x:.2f}" for clock in ("wall", "processor") for x in row[clock]]
            pairs = (cells[0], f"{cells[1]} to {cells[2]}", cells[3], f"{cells[4]} to {cells[5]}")
            times = (f"{row[k] * 1e3 / run.turns:.0f}" for k in ("seconds", "bare_seconds"))
            table.add_row(rule, cache, str(batch), *pairs, f"{row['least'][1]:.2f}", *times)
            print(row, file=sys.stderr, flush=True)
    OUT.print(table)
    return rows


def against(run: Run, base: Transformer, weights: PyTree, rule: str, cache: str, batch: int) -> dict[str, Any]:
    """`turns` calls of the loop against the same calls by hand."""
    model = BlockDiffusion(base, mask_id=base.vocab_size - 1, block=run.block if cache == "block" else 0)
    keeps = cache in ("dual", "block")
    method = compose(model, rule, block=None if cache == "whole" else run.block, cache=cache if keeps else "none")
    tree, begin = {"target": weights}, lambda: started(method, weights, run, batch)
    last = loop.run(method, tree, begin(), run.turns)
    if (np.asarray(last.calls) != run.turns).any() or (np.asarray(last.stats.refreshes) != keeps).any():
        raise InputError(f"{run.turns} calls do not stay inside one block of {run.block}; ask for fewer turns.")

    def ours() -> Times:
        state = jax.block_until_ready(begin())
        start = now()
        jax.block_until_ready(loop.run(method, tree, state, run.turns).tokens)
        return now() - start

    theirs = bare(model, weights, run, cache, batch)
    ours(), theirs()
    pairs = np.stack([(ours(), theirs()) for _ in range(run.repeats)])  # turns, who, clock
    ratios = np.sort(pairs[:, 0] / pairs[:, 1], axis=0)
    spread = np.stack([np.median(ratios, axis=0), ratios[0], ratios[-1]]).T.tolist()
    least, seconds = np.min(pairs, axis=0), np.median(pairs[..., 0], axis=0).tolist()
    found = dict(zip(("wall", "processor", "seconds", "bare_seconds"), (*spread, *seconds), strict=True))
    return found | {"least": (least[0] / least[1]).tolist(), "pairs": pairs.tolist()}


def now() -> Times:
    """Both clocks."""
    return np.asarray([time.perf_counter(), time.process_time()])


def started(method: Canvas, weights: PyTree, run: Run, batch: int) -> DecodeState:
    """The state after a prompt of one block."""
    slots, how = 2 * run.block, sampling(batch)
    token = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None], (batch, slots))
    prompt = Prompt(token=token, length=jnp.full(batch, run.block))
    args = prompt, jnp.full(batch, slots), row_keys(0, range(batch)), how
    return loop.start(method, {"target": weights}, *args, slots=slots, chunk=run.block)


def bare(model: BlockDiffusion, weights: PyTree, run: Run, cache: str, batch: int) -> Callable[[], Times]:
    """The model calls of `turns` steps in the second block of the canvas, and the argmax of what they read, timed.

    Without a cache every call is of the whole canvas. With one the first is, and is stored; the others are of the
    block. All read the block's logits, or, where the block is the whole canvas, all.
    """
    whole, zero, keeps = 2 * run.block, jnp.zeros(batch, jnp.int32), cache in ("dual", "block")
    narrow, asked = run.block if keeps else whole, whole if cache == "whole" else run.block

    def rows(at: int, size: int) -> Rows:
        position = jnp.broadcast_to(at + jnp.arange(size, dtype=jnp.int32)[None], (batch, size))
        token = jnp.where(position < run.block, position, model.mask_id)
        sees = jnp.full_like(position, whole)
        if model.block:
            sees = (position // model.block + 1) * model.block
        read = whole - asked - at + jnp.arange(asked, dtype=jnp.int32)[None]
        place = Place(position=position, sees=sees, fresh=jnp.ones_like(position, bool))
        return Rows.canvas(token, place, jnp.broadcast_to(read, (batch, asked)))

    @jax.jit
    def first(weights: PyTree, kept: Any) -> Any:
        out, delta = model.extend(weights, kept, rows(0, whole))
        length = zero + (run.block if model.block else whole)
        return jnp.argmax(out.logits, -1), model.store(kept, delta, zero, length, length)

    @jax.jit
    def later(weights: PyTree, kept: Any) -> Any:
        return jnp.argmax(model.extend(weights, kept, rows(whole - narrow, narrow))[0].logits, -1)

    def timed() -> Times:
        kept = jax.block_until_ready(model.init_cache(batch, whole if keeps else 0))
        start = now()
        if keeps:
            kept = jax.block_until_ready(first(weights, kept))[1]
        for _ in range(run.turns - int(keeps)):
            jax.block_until_ready(later(weights, kept))
        return now() - start

    return timed


# What caches save and lose.


def caches(run: Run) -> list[dict[str, Any]]:
    """A row for each policy, beside the same decode without it."""
    rows = []
    costs = Table("cache", "block", "opening calls", "others", "uncached", "positions", "alone", "in 8", box=None)
    truth = Table("cache", "text as uncached", "compared", "max |Δ|", "opening", "mean", "same best", box=None)
    for folder, causal in ((run.model, False), (run.block_model, True)):
        model, weights, texts = subject(run, folder, causal)
        for cache, block in (("block", 8), ("sub_block", 4)) if causal else (("dual", 8), ("prefix", 8)):
            row = {"cache": cache, "model": str(folder), "block": block}
            row |= compared(run, model, weights, texts, cache, block)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
            calls = (row["refreshes"], row["calls"] - row["refreshes"], row["uncached_calls"])
            spent = (f"{row[k]:.0f}" for k in ("uncached_queries", "queries_alone"))
            within = f"{row['queries']:.0f} ({row['ratio']:.2f})"
            costs.add_row(cache, str(block), *(f"{x:.1f}" for x in calls), *spent, within)
            off = (f"{row[k]:.1e}" for k in ("largest", "opening", "mean"))
            compared_at, same = str(row["positions"]), f"{row['same']:.4f}"
            truth.add_row(cache, f"{row['tokens_same']:.3f}", compared_at, *off, same)
    OUT.print(f"Means of {run.rows} rows. Positions computed a row: uncached, alone, in batches of 8 (over alone)")
    OUT.print(costs)
    OUT.print("Share of tokens as uncached; cached logits on the uncached decode's canvases, at open positions")
    OUT.print(truth)
    return rows


def compared(run: Run, model: BlockDiffusion, weights: PyTree, texts: Prompt, cache: str, block: int) -> dict[str, Any]:
    """One policy against none. `queries` are the positions computed for a row until it is done, waiting included."""
    make = lambda cache: compose(model, "threshold", {"tau": run.tau}, block=block, cache=cache)
    true, found, alone = (
        decoded(run, make(name), weights, texts, size) for name, size in (("none", 8), (cache, 8), (cache, 1))
    )
    if not (found["tokens"] == alone["tokens"]).all():
        raise InputError(f"cache {cache}: a row in a batch has another text than the row alone; this is a bug.")
    new = np.arange(run.length)[None] >= np.asarray(texts.length)[:, None]
    same = (true["tokens"] == found["tokens"])[new]
    off = [
        drift(make(cache), {"target": weights}, begun(run, make(cache), weights, some)) for some in batches(texts, 8)
    ]
    positions = sum(d.positions for d in off)
    mean = lambda name: sum(getattr(d, name) * d.positions for d in off) / positions
    means = {
        "calls": found["calls"], "refreshes": found["refreshes"], "uncached_calls": true["calls"],
        "uncached_queries": true["queries"], "queries": found["queries"], "queries_alone": alone["queries"],
        "tokens_same": same, "rows_same": (true["tokens"] == found["tokens"]).all(-1),
    }  # fmt: skip
    return {name: float(x.mean()) for name, x in means.items()} | {
        "ratio": float(found["queries"].sum() / alone["queries"].sum()), "positions": positions,
        "largest": max(d.largest for d in off), "opening": max(d.opening for d in off), "mean": mean("mean"),
        "same": mean("same"),
    }  # fmt: skip


def decoded(run: Run, method: Canvas, weights: PyTree, texts: Prompt, size: int) -> dict[str, np.ndarray]:
    """Every text to the end, `size` at a time: tokens, and costs of each row."""
    found = []
    for some in batches(texts, size):
        state = loop.run(method, {"target": weights}, begun(run, method, weights, some), OPEN)
        stats = state.stats
        found.append((state.tokens, state.calls, stats.refreshes, stats.queries))
    columns = (np.concatenate([np.asarray(x) for x in column]) for column in zip(*found, strict=True))
    return dict(zip(("tokens", "calls", "refreshes", "queries"), columns, strict=True))


def batches(texts: Prompt, size: int) -> list[Prompt]:
    """The texts, `size` at a time."""
    every = range(0, len(texts.length), size)
    return [jax.tree.map(lambda x, at=at: x[at : at + size], texts) for at in every]


def begun(run: Run, method: Canvas, weights: PyTree, texts: Prompt) -> DecodeState:
    """The state of a batch after its prompts, to be decoded greedily."""
    rows = len(texts.length)
    args = jnp.full(rows, run.length), row_keys(0, range(rows)), sampling(rows)
    return loop.start(method, {"target": weights}, texts, *args, slots=run.length, chunk=16)


def subject(run: Run, folder: Path | None, causal: bool) -> tuple[BlockDiffusion, PyTree, Prompt]:
    """A model, its weights, and ragged prompts: pieces of the text it was not trained on, or random tokens."""
    rng, rows = np.random.default_rng(0), run.rows
    length = jnp.asarray(rng.integers(8, 17, size=rows), jnp.int32)
    if folder is None:
        base, weights = tiny_transformer(0, num_layers=3)
        weights = weights.replace(norm=weights.norm * 3.0)  # or nothing is ever sure
        token = rng.integers(base.vocab_size - 1, size=(rows, run.length))
        model = BlockDiffusion(base, mask_id=base.vocab_size - 1, block=8 if causal else 0)
        return model, weights, Prompt(token=jnp.asarray(token, jnp.int32), length=length)
    model, weights = load_hf(folder)
    if not isinstance(model, BlockDiffusion) or bool(model.block) != causal:
        kinds = "--model takes a diffusion model that sees everything, and --block-model one that works in blocks"
        raise InputError(f"{kinds}; {folder} is another.")
    data = json.loads((folder / "training.json").read_text())["config"]["data"]
    if data["kind"] != "text":
        raise InputError(f"{folder} was not trained on text, whose last part would be the prompts; take one that was.")
    whole = text.read([Path(file) for file in data["files"]])
    held = text.Characters(whole).encode(whole[round(len(whole) * (1 - data["held_out"])) :])
    at = rng.integers(len(held) - run.length, size=rows)
    token = np.stack([held[i : i + run.length] for i in at])
    return model, jax.tree.map(jnp.asarray, weights), Prompt(token=jnp.asarray(token, jnp.int32), length=length)


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Run, description=__doc__))))
