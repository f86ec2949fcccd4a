"""Medusa heads on prompts they were not trained on: equal to `ar`, tokens per call, and what the formula says.

    python infer/heads.py --prompts gsm8k/test.jsonl --limit 200 --num-draft 15 --out out/heads-gsm8k

`ar` is recorded first. On that text the heads' accuracy is measured, from which the formula (1 + the sum over the
tree's nodes of the products of accuracies) predicts what the tree commits in a call. The recording is kept in `out`,
and a second start goes on with it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import paradec
from paradec.comparison import device
from paradec.compile_cache import cache_compilations
from paradec.data import chain
from paradec.errors import InputError
from paradec.guard import guarded
from paradec.io import text_file
from paradec.learn.objectives.medusa import accuracy, head_batch
from paradec.models.heads import ShortList
from paradec.models.ranked_tree import expected
from paradec.prompts import read_prompts
from paradec.record import traces


@dataclasses.dataclass(frozen=True)
class Heads:
    """What to run."""

    prompts: Path
    """A JSONL file; the first turn of each line is decoded."""
    out: Path
    """Folder of the recording and of heads.json, the result."""
    limit: int = 200
    """Prompts to read."""
    model: str = "smollm2-135m"
    """A name that paradec loads."""
    heads: str = ""
    """A safetensors file; empty: the heads that paradec ships for the model."""
    num_draft: tuple[int, ...] = (15,)
    """Nodes of the tree, root not counted."""
    batch: int = 8
    """Rows decoded together."""
    new_tokens: int = 64
    """Tokens of an answer at most."""
    length: int = 1024
    """Tokens of a text, prompt included, on which accuracy is measured; longer ones keep their end."""


def main(run: Heads) -> int:
    """Print one line per tree size; the status is 1 if a text differs from `ar`'s."""
    lm = paradec.load(run.model)
    prompts = read_prompts(run.prompts, sys.exit, run.limit)
    options = {"heads": run.heads} if run.heads else {}
    part = lm.part("heads", run.heads or None)
    if part is None:
        raise InputError(f"paradec ships no heads for {run.model}; name a file with --heads.")
    ask = {"max_new_tokens": run.new_tokens, "batch_size": run.batch}
    traces.record(lm, prompts, run.out, **ask)
    truth = [tuple(record["new"]) for record in traces.read(run.out)]
    (heads, tree), own = part
    right = measure(lm, run, heads, own)
    report = {"model": run.model, "device": device(), "prompts": len(prompts), **ask, "trees": []}
    report["accuracy"] = np.round(right, 4).tolist()
    for nodes in run.num_draft:
        rows = lm.generate(prompts, method="medusa", method_args=options | {"num_draft": nodes}, **ask)
        line = {
            "nodes": nodes,
            "identical": sum(row.token_ids == ids for row, ids in zip(rows, truth, strict=True)),
            "total": len(rows),
            "tokens_per_call": round(sum(r.new_tokens for r in rows) / sum(r.calls for r in rows), 4),
            "formula": round(expected(right, tree[:nodes]), 4),
        }
        print(json.dumps(line), flush=True)
        report["trees"].append(line)
        text_file.write(run.out / "heads.json", json.dumps(report, indent=1))
    return 0 if all(line["identical"] == line["total"] for line in report["trees"]) else 1


def measure(lm: paradec.LanguageModel, run: Heads, heads, own) -> np.ndarray:
    """How often guess r of head k is right on the recorded text: "Q R"."""
    rows = traces.hidden_states(lm, run.out, length=run.length, ahead=heads.num_heads, batch=4)
    short = own.short or ShortList(token=jnp.arange(lm.model.vocab_size), table=lm.model.unembed(lm.params))
    batches = map(jax.device_put, chain.HeldOut(rows, 8, head_batch))
    return accuracy(heads, own.weights, short, batches, 10)


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Heads, description=__doc__))))
