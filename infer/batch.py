"""Answer a file of prompts on a mesh: `paradec generate --prompts FILE --out FILE` on all devices of all hosts.

    python infer/batch.py --prompts questions.jsonl --out answers.jsonl --data 4
    python infer/batch.py --prompts questions.jsonl --out answers.jsonl --model-axis 8 --rules tensor --resume

The rows of a batch are split over the mesh's data axis, the weights over its model axis. On several hosts start it once
on each (docs/pods.md); all read the prompts, and the first writes the answers.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import tyro

import paradec
from paradec import answers, composition, mesh, params
from paradec.compile_cache import cache_compilations
from paradec.console import note, say, track
from paradec.guard import guarded

RULES = {"replicated": mesh.REPLICATED, "tensor": mesh.TENSOR, "fsdp": mesh.FSDP}


@dataclasses.dataclass(frozen=True)
class Batch:
    """What to answer, and on what."""

    prompts: Path
    """A JSONL file of prompts, conversations or turns, as `paradec generate` reads it."""
    out: Path
    """Where to write a line of JSON for each."""
    resume: bool = False
    """Go on where a run was ended."""
    limit: int | None = None
    """Prompts to read; all if not given."""
    model: str = "smollm2-135m"
    """A name that paradec loads."""
    dtype: str = "float32"
    """Of weights and cache."""
    method: str = "ar"
    """A method of the catalogue, or unmasking rules joined by +."""
    method_args: tuple[str, ...] = ()
    """Its options, key=value."""
    data: int = -1
    """Devices that the rows of a batch are split over; -1: all that the model axis leaves."""
    model_axis: int = 1
    """Devices that the weights are split over."""
    rules: Literal["replicated", "tensor", "fsdp"] = "tensor"
    """What lies where; see docs/pods.md."""
    batch_size: int = 8
    """Rows decoded together, on all devices: a multiple of `data`."""
    max_new_tokens: int = 128
    """Tokens per prompt, at most."""
    temperature: float = 0.0
    """0 is greedy; a line's own sampling options count before this and `seed`."""
    seed: int = 0
    """Of the noise."""
    raw: bool = False
    """Continue prompts as they stand, without the chat template."""
    logprobs: int | None = None
    """Tell each token's log-probability, and those of so many of the likeliest in its place."""


def main(run: Batch) -> int:
    """Write the answers; the status is 1 if a line could not be decoded."""
    mesh.start()
    cache_compilations()
    bad: list[str] = []
    options = composition.parse(run.method, run.method_args)
    composition.check_options(run.method, options)
    lm = paradec.load(run.model, dtype=run.dtype)
    with mesh.use(mesh.make_mesh(run.data, run.model_axis), RULES[run.rules]) as place:
        mesh.held(run.batch_size)
        weights = jax.device_put(lm.params, params.shardings(lm.model.specs(), place.mesh, place.rules))
        lm = dataclasses.replace(lm, params=weights)
        asked = ("method", "batch_size", "max_new_tokens", "temperature", "seed", "raw", "logprobs")
        bad += answers.write(
            lm, run.prompts, run.out, resume=run.resume, limit=run.limit, method_args=options,
            track=partial(track, label=f"Answering {run.prompts}"), complain=partial(note, bad),
            **{name: getattr(run, name) for name in asked},
        )  # fmt: skip
    if jax.process_index() == 0:
        say(f"Wrote {run.out}" + (f"; {len(bad)} lines could not be decoded." if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Batch, description=__doc__))))
