"""Train a model to track the state of a machine, and ask it about words four times as long.

    python train/tracking.py parity
    python train/tracking.py s5
    python train/tracking.py s5_transformer

The same command goes on where a killed run stopped. What comes out is `tracking.json` in `run.out`: accuracy at every
position and at the last one, of words as long as those trained on and of longer ones.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from paradec.guard import Asked, guarded

if __name__ == "__main__":
    ASKED = Asked(terminated=os.EX_TEMPFAIL)  # signals are answered also while modules load, which takes seconds

import jax
from jaxtyping import PyTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ lies beside train/

from configs.tracking import PRESETS, StateTracking
from paradec import config as configs
from paradec import mesh, params
from paradec.console import say
from paradec.data import chain
from paradec.data.tracking import Tracking
from paradec.io import text_file
from paradec.learn import loop
from paradec.learn.objectives.labels import Labels, label_batch

ASK = 512
"""Words that are asked, of each length."""


def main(config: StateTracking) -> dict[str, Any]:
    """Train, ask, and write down what came out."""
    rows = config.words.source(config.rows, config.seed)
    model = config.shape.recurrent(rows.vocab_size)
    objective, key = Labels(model), jax.random.key(config.seed)
    trainable, frozen = params.partition(params.init(model.specs(), key), lambda name: True)
    with mesh.use(mesh.make_mesh(data=-1), mesh.REPLICATED):
        held = chain.HeldOut(config.words.source(ASK, config.seed + 2), config.batch, label_batch)
        state = loop.fit(
            config.run, config.plan, objective, trainable, frozen,
            chain.batches(rows, config.batch, seed=config.seed, make=label_batch),
            key=key, config=configs.kept(config), evaluate=loop.Evaluator(config.plan, objective, frozen, held),
        )  # fmt: skip
        short, long = (
            asked(config, objective, frozen, state, source) for source in (config.words.source(ASK, 3), longer(rows))
        )
    found = {"task": config.words.task, "parameters": params.count(params.abstract(model.specs()))}
    found |= {"pattern": list(config.shape.pattern), "trained": {"length": rows.length} | short}
    found |= {"longer": {"length": rows.test_length} | long}
    if jax.process_index() == 0:
        text_file.write(
            config.run.out / "tracking.json", json.dumps(found | {"config": configs.kept(config)}, indent=1)
        )
        say(f"{config.words.task}, {found['parameters']:,} parameters: {short['final']:.1%} of last states are right "
            f"after {rows.length} symbols, {long['final']:.1%} after {rows.test_length}")  # fmt: skip
    return found


def longer(rows: Tracking) -> Tracking:
    """Words of the test length, of another seed."""
    return Tracking(rows.task, rows.test_length, rows.test_length, rows.modulus, ASK, rows.seed + 4)


def asked(
    config: StateTracking, objective: Labels, frozen: PyTree, state: PyTree, source: Tracking
) -> dict[str, float]:
    """`accuracy` over all positions and `final`, that of the last."""
    found = loop.Evaluator(config.plan, objective, frozen, chain.HeldOut(source, config.batch, label_batch))(state)
    return {name: found[name] for name in ("accuracy", "final")}


if __name__ == "__main__":
    mesh.start()
    sys.exit(guarded(lambda: main(configs.from_command_line(PRESETS)) and 0, ASKED))
