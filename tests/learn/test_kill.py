"""A run that is killed and started again ends with the bits of one that was not. The file is also the program."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax

from paradec import params
from paradec.data import chain
from paradec.data.synthetic import Markov
from paradec.io.checkpoint import digests
from paradec.learn import loop
from paradec.learn.loop import Run
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.step import Plan
from paradec.testing import tiny_transformer
from tests.quick import quick_environment

KILLS = 20 if "PARADEC_CASES" in os.environ else 5
STEPS = 12 * KILLS


class Ragged(Markov):
    """Rows of different lengths, so that packing has a state of its own."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {name: x[: 4 + index % 9] for name, x in row.items()}


def train(out: Path, steps: int):
    """A short run of a tiny transformer."""
    model, weights = tiny_transformer(vocab_size=16)
    data = chain.batches(Ragged(16, 13, 64), 8, pack=13, threads=2)
    plan = Plan(steps=steps, warmup=2, learning_rate=3e-3, average=0.9)
    objective = NextToken(model)
    ask = dict(key=jax.random.key(1), config={"steps": steps})
    trainable, frozen = params.partition(weights, lambda name: True)
    held = chain.HeldOut(Markov(16, 13, 8, seed=1), 8)
    evaluate = loop.Evaluator(plan, objective, frozen, held)
    run = Run(out=out, save_every=3, evaluate_every=20)
    return loop.fit(run, plan, objective, trainable, frozen, data, evaluate=evaluate, **ask)


def metrics(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def main(out: str, steps: str) -> None:
    """Train and write the digests of the final state."""
    jax.config.update("jax_default_matmul_precision", "highest")
    state = train(Path(out), int(steps))
    found = [x.tolist() for x in jax.tree.leaves(jax.device_get(digests(state)))]
    (Path(out) / "final.json").write_text(json.dumps(found))


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, str(out), str(STEPS)]
    return subprocess.Popen(command, env=quick_environment(), stdout=-1, stderr=-1, text=True)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kills_change_no_bit(tmp_path):
    """At random moments, every other one inside a save. PARADEC_CASES: twenty kills.

    Nor does a second run in the same folder, which is refused.
    """
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(straight)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    wanted, kills, saving, rng = metrics(straight), 0, 0, random.Random(0)
    while kills < KILLS:
        process = start(killed)
        log, begin = killed / "metrics.jsonl", time.monotonic()
        goal = rng.randrange(1, 9)
        seen = count(log)  # cut back when it goes on
        while process.poll() is None and time.monotonic() - begin < 120:
            now = count(log)
            seen = min(seen, now)
            if now - seen >= goal:
                break
            time.sleep(0.002)
        assert process.poll() is None, (kills, process.communicate())
        if not kills:
            process.send_signal(signal.SIGSTOP)
            second = start(killed)
            said = second.communicate(timeout=120)[1]
            assert second.returncode and "Another process trains in" in said, said
            process.send_signal(signal.SIGCONT)
        half_written = lambda: any((killed / "checkpoints").glob("*tmp*"))
        moment = time.monotonic() + (10 if kills % 2 else rng.random() * 0.1)
        while time.monotonic() < moment and process.poll() is None and not (kills % 2 and half_written()):
            time.sleep(0.0005)
        saving += half_written()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    process = start(killed)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert saving >= KILLS // 4, f"only {saving} of {KILLS} kills fell into a save"
    assert metrics(killed) == wanted
    assert (killed / "final.json").read_text() == (straight / "final.json").read_text()


if __name__ == "__main__":
    main(*sys.argv[1:])
