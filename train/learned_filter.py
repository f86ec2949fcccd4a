"""Train Learn2PD's filter for a masked diffusion model on the model's own calls, and export it.

    python train/masked.py padded
    python train/learned_filter.py padded
    python train/learned_filter.py llada --calls.files gsm8k/train.jsonl

Each stage goes on where a killed run stopped: prompts are decoded one position a call, and again along a rule that may
know the outcome; what each call showed is recorded; the filter learns which proposals were final, and is measured on
the calls of prompts that were held out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from paradec.guard import Asked, guarded

if __name__ == "__main__":
    ASKED = Asked(terminated=os.EX_TEMPFAIL)  # signals are answered also while modules load, which takes seconds

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ lies beside train/

from configs.learned_filter import PRESETS, LearnedFilter
from paradec import config as configs
from paradec import load, mesh, params
from paradec.answers import unrolled
from paradec.compile_cache import cache_compilations
from paradec.console import say
from paradec.data import chain
from paradec.data.tasks import TASKS
from paradec.errors import InputError
from paradec.io.confidence_filter import TrainedFilter, save_filter
from paradec.io.medusa import fingerprint
from paradec.learn import loop
from paradec.learn.objectives.learned_filter import PUBLISHED, FilterLoss, Verdicts, filter_batch, verdicts
from paradec.lm import LanguageModel
from paradec.models.heads import ConfidenceFilter, FilterWeights
from paradec.prompts import Line, read_lines, total_turns
from paradec.record import canvas_calls
from paradec.record.traces import parted

SEED = 3  # of the tasks' rows: 0 and 1 are those that train/masked.py reads, 2 those of infer/


def main(config: LearnedFilter) -> Path:
    """Run all stages and return the path of the filter."""
    with mesh.use(mesh.make_mesh(data=-1), mesh.REPLICATED):
        chain.check_batch(config.batch)
    lines = asked(config)
    parted(total_turns(lines), config.calls.held_out)  # before hours of recording
    lm = load(config.model, dtype=config.dtype)
    train, held = recorded(lm, config, lines).split(config.calls.held_out)
    filter = ConfidenceFilter(config.calls.block, config.filter.width)
    with mesh.use(mesh.make_mesh(data=-1), mesh.REPLICATED):
        weights = mesh.fetched(fitted(config, filter, train, held))
    said = verdicts(filter, weights, filter_batch(held.columns))
    return export(config, lm, TrainedFilter(filter, weights), said, len(train))


def recorded(lm: LanguageModel, config: LearnedFilter, lines: Sequence[Line]) -> canvas_calls.FilterRows:
    """The calls of all prompts along all rules."""
    calls, folders = config.calls, []
    prompts = unrolled(lm, lines, {"max_new_tokens": calls.new_tokens, "batch_size": calls.batch})
    for along in calls.along:
        folder = config.run.out / "calls" / along
        told = lambda done, of, along=along: say(f"recording along {along}: {done} of {of} shards")
        ask = {"max_new_tokens": calls.new_tokens, "batch_size": calls.batch, "told": told}
        folders.append(canvas_calls.record(lm, prompts, folder, block=calls.block, along=along, **ask))
    return canvas_calls.FilterRows.read(folders)


def asked(config: LearnedFilter) -> list[Line]:
    """What is asked: text, or a task's token ids."""
    calls = config.calls
    if calls.task in TASKS:
        source = TASKS[calls.task](calls.items, rows=calls.prompts, seed=SEED)
        return [Line(row, source[row]["token"][: source.prompt].tolist()) for row in range(calls.prompts)]
    if not calls.files:
        raise InputError("Name the prompts to decode: --calls.files FILE.jsonl.")
    return [line for path in calls.files for line in read_lines(path, say, calls.prompts)]


def fitted(
    config: LearnedFilter, filter: ConfidenceFilter, train: canvas_calls.FilterRows, held: canvas_calls.FilterRows
) -> FilterWeights:
    """The filter after its training."""
    objective, key = FilterLoss(filter, config.filter.wrong), jax.random.key(config.seed)
    batches = canvas_calls.Drawn(train, config.batch, config.seed, make=filter_batch)
    look = loop.Evaluator(config.plan, objective, None, chain.HeldOut(held, config.batch, filter_batch))
    new = params.init(filter.specs(), key)
    state = loop.fit(
        config.run, config.plan, objective, new, None, batches, key=key, config=configs.kept(config), evaluate=look
    )
    return state.learned


def export(config: LearnedFilter, lm: LanguageModel, trained: TrainedFilter, said: Verdicts, calls: int) -> Path:
    """Write the filter, where it comes from and how good it is."""
    round_ = lambda values: {name: round(value, 4) for name, value in values.items()}
    metrics = {
        "calls": calls,
        "held_out_positions": len(said.final),
        "final": round(float(said.final.mean()), 4),
        "filter": {str(tau): round_(said.at(tau)) for tau in (0.5, 0.9, PUBLISHED, 0.99)},
        "threshold": {str(tau): round_(said.of_confidence(tau)) for tau in (0.5, 0.9, 0.95, 0.99)},
        "best_accuracy": {"filter": round(said.accuracy(), 4), "threshold": round(said.accuracy(True), 4)},
    }
    facts = {
        "base": config.model, "base_digest": fingerprint(lm.model, lm.params),
        "command": " ".join(["python", *sys.argv]),
        "config": configs.kept(config), "metrics": metrics,
    }  # fmt: skip
    path = config.run.out / "filter.safetensors"
    if jax.process_index() == 0:
        save_filter(path, TrainedFilter(trained.filter, trained.weights, facts))
    found = metrics["filter"][str(PUBLISHED)]
    say(f"{path}: at {PUBLISHED}, precision {found['precision']:.4f} and recall {found['recall']:.4f}")
    best = metrics["best_accuracy"]
    say(f"verdicts right at the best threshold: {best['filter']:.4f}, of the confidence alone {best['threshold']:.4f}")
    return path


if __name__ == "__main__":
    mesh.start()
    cache_compilations()
    sys.exit(guarded(lambda: main(configs.from_command_line(PRESETS)) and 0, ASKED))
