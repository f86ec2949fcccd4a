"""Train or fine-tune a causal language model on next tokens.

    python train/lm.py tiny
    python train/lm.py shakespeare --data.files input.txt
    python train/lm.py smollm2 --data.files chats.jsonl --plan.steps 500

The same command goes on where a killed run stopped. On several hosts, start it once on each: docs/pods.md.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from paradec.guard import Asked, guarded

if __name__ == "__main__":
    ASKED = Asked(terminated=os.EX_TEMPFAIL)  # signals are answered also while modules load, which takes seconds

import jax
from jaxtyping import PyTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ lies beside train/

from configs.lm import PRESETS, Data, Lm
from paradec import config as configs
from paradec import load, mesh, params
from paradec.console import say
from paradec.data import chain, chats, text
from paradec.data.synthetic import Markov
from paradec.errors import InputError
from paradec.io import text_file
from paradec.io.hf import save_hf
from paradec.io.tokenizer import Tokenizer, of_characters
from paradec.learn import flops, loop
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.report import Work
from paradec.learn.step import TrainState, accumulate
from paradec.models import lora
from paradec.models.recurrent import RecurrentLM
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope
from paradec.pretrained import read_tokenizer

RULES = {"replicated": mesh.REPLICATED, "tensor": mesh.TENSOR, "fsdp": mesh.FSDP}


class Corpus(NamedTuple):
    """Rows to learn from and rows held out; `pack` is 0 where all rows are full."""

    train: chain.Source
    held: chain.Source
    vocab_size: int
    pack: int
    facts: dict[str, Any]
    tokenizer: Tokenizer | None = None

    @property
    def digest(self) -> dict[str, str]:
        """What tells this tokenizer from another of the same name."""
        return {"tokenizer_digest": self.tokenizer.digest()} if self.tokenizer else {}


def main(config: Lm) -> TrainState:
    """Train, and leave the model as a Hugging Face folder in `run.out`."""
    corpus = read(config.data)
    sides = config.devices
    with mesh.use(mesh.make_mesh(sides.data, sides.model), RULES[sides.rules]) as place:
        model, weights = start(config, corpus, place)
        trainable, frozen = params.partition(weights, lora.trained if config.lora else lambda name: True)
        objective = NextToken(model, remat=config.remat)
        kept = configs.kept(config) | corpus.digest
        held = chain.HeldOut(corpus.held, config.batch, length=corpus.pack)
        rows = chain.batches(corpus.train, config.batch, seed=config.seed, pack=corpus.pack)
        state = loop.fit(
            config.run, config.plan, objective, trainable, frozen, rows,
            key=jax.random.key(config.seed + 1), config=kept,
            evaluate=loop.Evaluator(config.plan, objective, frozen, held),
            work=work(config, model, trainable, frozen, next(iter(rows))),
        )  # fmt: skip
        final = mesh.fetched(lora.merged(params.merge(state.learned, frozen)))
    export(config, model, final, corpus, held, kept)
    return state


def read(data: Data) -> Corpus:
    """The data of a configuration, split. Raises `InputError` for files that are missing, damaged or too short."""
    if data.kind == "markov":
        train, held = (Markov(64, data.length, rows, seed=0) for rows in (4096, 64))
        held.seed += 1  # other rows of the same chain
        return Corpus(train, held, 64, 0, {"entropy": held.entropy})
    if not data.files:
        raise InputError(f"Name the {data.kind} to learn from: --data.files FILE.")
    if data.kind == "chats":
        tokenizer = read_tokenizer(data.tokens)
        found = [conversation for path in data.files for conversation in chats.read(path)]
        halves = chats.Chats.of(found, tokenizer, data.length, say).split(data.held_out)
        return Corpus(*halves, tokenizer.vocab_size, data.length, {}, tokenizer)
    whole = text.read(data.files)
    tokenizer = text.Characters(whole) if data.tokens == "characters" else read_tokenizer(data.tokens)
    parts = text.split(whole, data.held_out)
    train, held = text.windows(*parts, tokenizer.encode, data.length)
    facts = {"alphabet": tokenizer.alphabet} if isinstance(tokenizer, text.Characters) else {}
    characters = {"characters_per_token": len(parts[1]) / len(held.tokens)}
    kept = of_characters(facts["alphabet"]) if facts else tokenizer
    return Corpus(train, held, tokenizer.vocab_size, 0, facts | characters, kept)


def start(config: Lm, corpus: Corpus, place: mesh.Placement) -> tuple[Transformer | RecurrentLM, PyTree]:
    """The model and its first weights, laid out on the mesh."""
    key = jax.random.key(config.seed)
    if config.base:
        lm = load(config.base)
        model = lm.model
        if not isinstance(model, Transformer | RecurrentLM):
            raise InputError(f"{config.base} continues no text, so it has no next token to learn; see train/masked.py.")
        if corpus.vocab_size > model.vocab_size:
            raise InputError(
                f"The tokenizer of {config.data.tokens} has {corpus.vocab_size} tokens and {config.base} only "
                f"{model.vocab_size}; use --data.tokens {config.base}."
            )
        if model.max_length is not None and config.data.length - 1 > model.max_length:
            raise InputError(
                f"{config.base} reads at most {model.max_length} tokens, and rows of {config.data.length} were asked "
                f"for; use --data.length {model.max_length + 1} or less."
            )
        weights = jax.device_put(lm.params, params.shardings(model.specs(), place.mesh, place.rules))
    else:
        model = shape(config, corpus.vocab_size)
        weights = params.init(model.specs(), key, params.shardings(model.specs(), place.mesh, place.rules))
    if config.lora:
        weights = lora.adapt(
            weights, model.specs(), key, config.lora, pick=lambda name: name.startswith(("blocks/", "layers/"))
        )
    return model, weights


def shape(config: Lm, vocab_size: int) -> Transformer | RecurrentLM:
    """The structure of a new model."""
    s = config.shape
    if s.pattern:
        return s.recurrent(vocab_size)
    return Transformer(
        vocab_size=vocab_size, width=s.width, num_layers=s.layers, num_heads=s.heads, num_kv_heads=s.kv_heads,
        head_dim=s.head_dim, mlp_width=s.mlp, tied=s.tied, max_length=config.data.length - 1, rope=Rope(theta=s.theta),
    )  # fmt: skip


def work(config: Lm, model: Transformer | RecurrentLM, trainable: PyTree, frozen: PyTree, batch: PyTree) -> Work:
    """Tokens and operations of one step over all devices; what remat repeats is not counted."""
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype), batch)
    once = lambda t, f, b: accumulate(config.plan, NextToken(model), t, f, b, jax.random.key(0))
    tokens = config.batch * (rows.token.shape[1] - 1)
    return Work(tokens=tokens, flops=flops.count(once, trainable, frozen, rows))


def export(
    config: Lm, model: Transformer | RecurrentLM, weights: PyTree, corpus: Corpus, held: chain.HeldOut, kept: dict
) -> None:
    """Write the model as a Hugging Face folder, with training.json beside it, and say how good it is."""
    lines = [json.loads(line) for line in (config.run.out / "metrics.jsonl").read_text().splitlines()]
    last = [line["evaluation"] for line in lines if "evaluation" in line][-1]
    nats = last["loss"]
    said = f"held-out loss {nats:.4f} nats a token"
    if "characters_per_token" in corpus.facts:
        last["bits_per_character"] = nats / math.log(2) / corpus.facts["characters_per_token"]
        said += f", {last['bits_per_character']:.4f} bits per character"
    if "entropy" in corpus.facts:
        said += f"; no model can go below {corpus.facts['entropy']:.4f}"
    if jax.process_index() == 0:
        folder = config.run.out / "model"
        save_hf(folder, model, weights)
        if corpus.tokenizer is not None:
            corpus.tokenizer.save(folder)
        facts = {"config": kept, "command": " ".join(["python", *sys.argv]), "metrics": last} | corpus.facts
        text_file.write(folder / "training.json", json.dumps(facts, indent=1) + "\n")
        say(f"{folder}: {said}")


if __name__ == "__main__":
    mesh.start()
    sys.exit(guarded(lambda: main(configs.from_command_line(PRESETS)) and 0, ASKED))
