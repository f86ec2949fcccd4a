"""Train a masked or block-diffusion language model.

    python train/masked.py lists
    python train/masked.py padded
    python train/masked.py sums
    python train/masked.py shakespeare --data.files input.txt
    python train/masked.py block_shakespeare --data.files input.txt

The same command goes on where a killed run stopped. The model is left as a Hugging Face folder in `run.out`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from paradec.guard import Asked, guarded

if __name__ == "__main__":
    ASKED = Asked(terminated=os.EX_TEMPFAIL)  # signals are answered also while modules load, which takes seconds

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ and train/ are no packages of the wheel

from configs.masked import PRESETS, Data, Masked
from paradec import config as configs
from paradec import mesh, params
from paradec.console import say
from paradec.data import chain, text
from paradec.data.tasks import RAGGED, TASKS
from paradec.errors import InputError
from paradec.io import text_file
from paradec.io.hf import save_hf
from paradec.io.tokenizer import of_characters, save_words
from paradec.learn import loop
from paradec.learn.objectives import masked
from paradec.learn.report import Work
from paradec.learn.step import TrainState
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope
from train.lm import RULES


class Corpus(NamedTuple):
    """Rows to learn from and rows held out; `pack` is their length where they are ragged, 0 where all are full."""

    train: chain.Source
    held: chain.Source
    vocab_size: int  # the mask is its last token
    length: int
    pack: int
    words: Sequence[str] = ()  # how tokens are written, where each is a word
    alphabet: str = ""  # or a character


def main(config: Masked) -> TrainState:
    """Train, and leave the model as a Hugging Face folder in `run.out`."""
    corpus, sides = read(config.data), config.devices
    if config.block and corpus.pack:
        raise InputError("Lists are ragged, block diffusion wants full rows; use --block 0 or --data.kind text.")
    if config.block and corpus.length % config.block:
        raise InputError(f"Rows of {corpus.length} tokens do not split into blocks of {config.block}; set data.length.")
    with mesh.use(mesh.make_mesh(sides.data, sides.model), RULES[sides.rules]) as place:
        model = shape(config, corpus)
        key = jax.random.key(config.seed)
        weights = params.init(model.specs(), key, params.shardings(model.specs(), place.mesh, place.rules))
        trainable, frozen = params.partition(weights, lambda name: True)
        objective = masked.Masked(model, config.noise)
        kept = configs.kept(config)
        held = chain.HeldOut(corpus.held, config.batch, length=corpus.pack)
        state = loop.fit(
            config.run, config.plan, objective, trainable, frozen,
            chain.batches(corpus.train, config.batch, seed=config.seed, pack=corpus.pack),
            key=jax.random.key(config.seed + 1), config=kept,
            evaluate=loop.Evaluator(config.plan, objective, frozen, held),
            work=Work(tokens=config.batch * corpus.length),
        )  # fmt: skip
        final = mesh.fetched(params.merge(state.learned, frozen))
    if jax.process_index() == 0:
        folder = config.run.out / "model"
        save_hf(folder, model, final)
        if corpus.words:
            save_words(folder, corpus.words)
        elif corpus.alphabet:
            of_characters(corpus.alphabet).save(folder)
        facts = {"config": kept, "command": " ".join(["python", *sys.argv])}
        text_file.write(folder / "training.json", json.dumps(facts, indent=1) + "\n")
        say(f"Wrote {folder}")
    return state


def read(data: Data) -> Corpus:
    """The data of a configuration, split. Raises `InputError` for files that are missing, damaged or too short."""
    if data.kind in TASKS:
        some = {"operations": data.operations} if data.operations else {}
        train, held = (
            TASKS[data.kind](data.items, rows=rows, seed=seed, **some) for rows, seed in ((1_000_000, 0), (2048, 1))
        )
        pack = train.length if data.kind in RAGGED else 0
        return Corpus(train, held, train.vocab_size, train.length, pack, train.words)
    if not data.files:
        raise InputError("Name the text to learn from: --data.files FILE.")
    whole = text.read(data.files)
    tokenizer = text.Characters(whole)
    train, held = text.windows(*text.split(whole, data.held_out), tokenizer.encode, data.length)
    return Corpus(train, held, tokenizer.vocab_size + 1, data.length, 0, alphabet=tokenizer.alphabet)


def shape(config: Masked, corpus: Corpus) -> BlockDiffusion:
    """The structure of a new model; with queries and keys normed, it is one of the hub's families (A2D, SDAR)."""
    s = config.shape
    base = Transformer(
        vocab_size=corpus.vocab_size, width=s.width, num_layers=s.layers, num_heads=s.heads, num_kv_heads=s.kv_heads,
        head_dim=s.head_dim, mlp_width=s.mlp, tied=s.tied, max_length=max(corpus.length, 64), rope=Rope(theta=s.theta),
        qk_norm=True,
    )  # fmt: skip
    return BlockDiffusion(base, mask_id=corpus.vocab_size - 1, block=config.block)


if __name__ == "__main__":
    mesh.start()
    sys.exit(guarded(lambda: main(configs.from_command_line(PRESETS)) and 0, ASKED))
