"""Train Medusa heads for a language model on its own text, grow a tree from their accuracy, and export both.

    python train/medusa.py smollm2
    python train/medusa.py smollm2 --text.prompts gsm8k/train.jsonl --run.out out/heads
    python train/medusa.py two_stage

Each stage goes on where a killed run stopped: the model's greedy answers are recorded, their hidden states computed
once, the heads trained (Medusa-1), then, if asked, heads and base together (Medusa-2), and the heads' accuracy measured
on texts that were held out.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from paradec.guard import Asked, guarded

if __name__ == "__main__":
    ASKED = Asked(terminated=os.EX_TEMPFAIL)  # signals are answered also while modules load, which takes seconds

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # configs/ lies beside train/

from configs.medusa import PRESETS, Medusa
from paradec import config as configs
from paradec import load, mesh, params
from paradec.answers import unrolled
from paradec.compile_cache import cache_compilations
from paradec.console import say
from paradec.data import chain
from paradec.data.instructions import instructions, retold
from paradec.errors import InputError
from paradec.io.hf import save_hf
from paradec.io.medusa import Trained, fingerprint, save_medusa
from paradec.learn import loop
from paradec.learn.objectives.medusa import HeadBatch, Medusa1, Medusa2, accuracy, head_batch
from paradec.learn.report import Work
from paradec.lm import LanguageModel
from paradec.models import lora
from paradec.models.heads import HeadWeights, MedusaHeads, ShortList
from paradec.models.ranked_tree import best_first, expected
from paradec.prompts import Line, question, read_lines, total_turns
from paradec.record import traces
from paradec.request import Given

SIZES = (3, 7, 15, 31, 63)


def main(config: Medusa) -> Path:
    """Run all stages and return the path of the heads."""
    lm = load(config.model, dtype=config.dtype)
    check(config, lm)
    train, held = recorded(lm, config).split(config.text.held_out)
    short = short_list(lm, train, held, config.heads.short_list)
    heads = MedusaHeads(num_heads=config.heads.count, width=lm.model.width, num_layers=config.heads.layers)
    with mesh.use(mesh.make_mesh(data=-1), mesh.REPLICATED):
        weights = first_stage(config, heads, short, train, held)
        if config.joint.steps:
            lm, weights = second_stage(config, lm, heads, weights, short)
            short = short.replace(table=lm.model.unembed(lm.params)[short.token])
            read = seen_by(lm, texts(config)[1], config.joint.rows, config.joint.length)
        else:
            read = map(mesh.whole, chain.HeldOut(held, config.batch, head_batch))
        right = accuracy(heads, weights, short, read, config.heads.ranks)
    return export(config, lm, Trained(heads, mesh.fetched(weights), np.asarray(short.token)), right, len(train))


def check(config: Medusa, lm: LanguageModel) -> None:
    """Raise `InputError` for what could only fail after hours of recording and training."""
    text, joint = config.text, config.joint
    texts = total_turns(written(config)) + text.imagined + text.retold
    train, _ = traces.parted(texts, text.held_out)
    if config.plan.steps and len(train) < config.batch:
        raise InputError(f"{len(train)} texts are to be trained on, less than one batch of {config.batch}.")
    if config.heads.ranks > (words := config.heads.short_list or lm.model.vocab_size):
        raise InputError(f"A head cannot make {config.heads.ranks} guesses out of {words} tokens; lower heads.ranks.")
    with mesh.use(mesh.make_mesh(data=-1), mesh.REPLICATED):
        chain.check_batch(config.batch)
        if joint.steps:
            chain.check_batch(joint.rows)


def written(config: Medusa) -> list[Line]:
    """What people wrote: the built-in instructions and the lines of files."""
    read = [read_lines(path, say, config.text.prompts_each) for path in config.text.prompts]
    return [*(Line(0, prompt) for prompt in instructions(config.text.instructions)), *itertools.chain(*read)]


def recorded(lm: LanguageModel, config: Medusa) -> traces.HiddenRows:
    """Hidden states of the model's own answers."""
    text, paths = config.text, []
    for folder, prompts, length in asked(lm, config):
        traces.record(lm, prompts, folder, max_new_tokens=text.new_tokens, batch_size=text.batch, told=told)
        paths += traces.hidden_states(lm, folder, length=length, ahead=config.heads.count).paths
    return traces.HiddenRows(paths)


def asked(lm: LanguageModel, config: Medusa) -> Iterator[tuple[Path, Sequence[Given], int]]:
    """What the model is asked: a folder for its answers, the prompts, and how many tokens of each text are kept."""
    text, kept = config.text, folders(config)
    prompts = unrolled(lm, written(config), {"max_new_tokens": text.new_tokens, "batch_size": text.batch})
    yield kept["text"], prompts, text.length
    if text.imagined:
        users = config.run.out / "users"
        ask = {"max_new_tokens": text.new_tokens, "batch_size": text.batch, "told": told}
        yield kept["imagined"], traces.imagined(lm, text.imagined, users, **ask), text.length
    if text.retold:
        answers = [lm.tokenizer.decode(record["new"]) for record in traces.read(kept["text"])]
        yield kept["retold"], retold([*map(question, prompts)], answers, text.retold, config.seed), 2 * text.length


def folders(config: Medusa) -> dict[str, Path]:
    """The recordings that this configuration asks for, in the order in which their rows are counted."""
    wanted = {"text": True, "imagined": config.text.imagined > 0, "retold": config.text.retold > 0}
    return {name: config.run.out / name for name, is_wanted in wanted.items() if is_wanted}


def told(done: int, of: int) -> None:
    say(f"recording: {done} of {of} shards")


def short_list(lm: LanguageModel, train: traces.HiddenRows, held: traces.HiddenRows, size: int) -> ShortList:
    """The `size` tokens that the model writes most, in ascending order, with their rows of its vocabulary head."""
    count = train.counts(lm.model.vocab_size)
    token = np.sort(np.argsort(-count, kind="stable")[: size or len(count)]).astype(np.int32)
    seen = held.counts(lm.model.vocab_size)
    if not count.any() or not seen.any():
        raise InputError("The model wrote nothing to train heads on, or nothing to measure them with; ask it more.")
    say(f"{len(token)} tokens to draft from cover {seen[token].sum() / max(seen.sum(), 1):.2%} of the held-out text")
    return ShortList(token=jnp.asarray(token), table=lm.model.unembed(lm.params)[token])


def first_stage(
    config: Medusa, heads: MedusaHeads, short: ShortList, train: traces.HiddenRows, held: traces.HiddenRows
) -> HeadWeights:
    """Medusa-1: heads on recorded hidden states."""
    objective, key = Medusa1(heads, config.heads.decay), jax.random.key(config.seed)
    new = params.init(heads.specs(), key)
    if not config.plan.steps:
        return new
    batches = chain.batches(train, config.batch, seed=config.seed, make=head_batch)
    look = loop.Evaluator(config.plan, objective, short, chain.HeldOut(held, config.batch, head_batch))
    work = Work(tokens=config.batch * train[0]["token"].shape[0])
    kept = configs.kept(config, "text", "heads", "plan", "batch", "seed", "model", "dtype")
    return loop.fit(
        config.run, config.plan, objective, new, short, batches, key=key, config=kept, evaluate=look, work=work
    ).learned


def second_stage(
    config: Medusa, lm: LanguageModel, heads: MedusaHeads, weights: HeadWeights, short: ShortList
) -> tuple[LanguageModel, HeadWeights]:
    """Medusa-2: heads and adapters on recorded text. Returns the model with the adapters merged, and the heads.

    The final norm learns too; so the heads' fingerprint of their base tells the adapted model from the one it was.
    """
    joint, key = config.joint, jax.random.key(config.seed + 2)
    inside = lambda name: name.startswith("blocks/")
    base = lora.adapt(lm.params, lm.model.specs(), key, joint.rank, joint.alpha, inside)
    trainable, frozen = params.partition(base, lambda name: lora.trained(name) or name == "norm")
    plan = dataclasses.replace(
        config.plan, steps=joint.steps, warmup=min(40, joint.steps), learning_rate=joint.learning_rate,
        faster=(("heads", 4.0),),
    )  # fmt: skip
    objective = Medusa2(
        lm.model, heads, config.heads.decay, joint.weight, joint.rise, joint.steps, distil=joint.distil
    )  # fmt: skip
    rows = chain.batches(texts(config)[0], joint.rows, seed=config.seed, pack=joint.length)
    run = dataclasses.replace(config.run, out=config.run.out / "joint")
    kept = configs.kept(config, "text", "heads", "joint", "plan", "seed", "model", "dtype")
    state = loop.fit(
        run, plan, objective, {"base": trainable, "heads": weights},
        {"base": frozen, "heads": jax.tree.map(lambda x: None, weights), "short": short.token}, rows,
        key=key, config=kept, work=Work(tokens=joint.rows * joint.length),
    )  # fmt: skip
    whole = lora.merged(params.merge(state.learned["base"], frozen))
    return dataclasses.replace(lm, params=mesh.fetched(whole), decoders={}, components={}), state.learned["heads"]


def texts(config: Medusa) -> tuple[traces.Texts, traces.Texts]:
    """The recorded texts, split as their hidden states are."""
    read = [traces.Texts.read(folder, config.joint.length).texts for folder in folders(config).values()]
    return traces.Texts([text for texts in read for text in texts]).split(config.text.held_out)


def seen_by(lm: LanguageModel, held: traces.Texts, rows: int, length: int) -> Iterable[HeadBatch]:
    """Texts of at most `length` tokens with the hidden states that a model has on them."""
    run, weights = jax.jit(lambda weights, token: lm.model.forward(weights, token).hidden), jax.device_put(lm.params)
    for text in map(mesh.whole, chain.HeldOut(held, rows, length=length)):
        yield HeadBatch(hidden=run(weights, text.token), token=text.token, learn=text.learn)


def export(config: Medusa, lm: LanguageModel, trained: Trained, right: np.ndarray, texts: int) -> Path:
    """Write heads, tree and where they come from; after a second stage the adapted model too."""
    tree = best_first(right, config.heads.nodes)
    sizes = {n: round(expected(right, tree[:n]), 3) for n in SIZES if n <= len(tree)}
    facts = {
        "base": config.model,
        "base_digest": fingerprint(lm.model, lm.params),
        "command": " ".join(["python", *sys.argv]),
        "config": configs.kept(config),
        "accuracy": np.round(right, 4).tolist(),
        "metrics": {"texts": texts, "tokens_per_call_expected": sizes},
    }
    path = config.run.out / "heads.safetensors"
    if jax.process_index() == 0:
        half = params.cast(trained.weights, jnp.bfloat16)
        save_medusa(path, dataclasses.replace(trained, weights=half, tree=tree, facts=facts))
        if config.joint.steps:
            save_hf(config.run.out / "model", lm.model, lm.params)
            lm.tokenizer.save(config.run.out / "model")
    say(f"{path}: top-1 accuracy of the heads " + ", ".join(f"{a:.3f}" for a in right[:, 0]))
    say("expected tokens per call by tree size " + ", ".join(f"{n}: {x}" for n, x in sizes.items()))
    return path


if __name__ == "__main__":
    mesh.start()
    cache_compilations()
    sys.exit(guarded(lambda: main(configs.from_command_line(PRESETS)) and 0, ASKED))
