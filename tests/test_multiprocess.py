"""Two and four processes do what one does: train, decode, and record. The file is also the program.

Whatever the processes, there are four devices; a mesh with a model axis then has data rows that lie on several
processes, which must read the same rows.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import paradec
from infer import batch
from paradec import answers, mesh, params
from paradec.data import chain
from paradec.data.synthetic import Markov
from paradec.decode import loop, sampling
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.speculative import speculative
from paradec.learn import loop as training
from paradec.learn.loop import Run
from paradec.learn.objectives.masked import Masked, Noise
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.step import Plan
from paradec.models.block_diffusion import BlockDiffusion
from paradec.record import traces
from paradec.testing import ragged_prompts, tiny_transformer
from tests.fixtures import write_tiny_model
from tests.quick import quick_environment

PROMPTS = ["abc abc abc", "Hello, world", "x", "The list: one two one two", "zyx"]
DRAFTERS = {"ar": NoDraft(), "prompt_lookup": PromptLookup(num_draft=3, min_ngram=1)}
RULES = {"replicated": mesh.REPLICATED, "tensor": mesh.TENSOR, "fsdp": mesh.FSDP}
TOLD = ("loss", "weight", "accuracy", "gradient_norm")


class Ragged(Markov):
    """Rows of different lengths, to be packed."""

    def __getitem__(self, index):
        return {name: x[: 4 + index % 9] for name, x in super().__getitem__(index).items()}


def trained(folder: Path, data: int, model: int, rules: str, pack: int = 0, steps: int = 3) -> dict[str, list]:
    """What a short run on a mesh says, and sums over the weights it ends with."""
    structure, _ = tiny_transformer(vocab_size=17)
    objective = NextToken(structure) if pack else Masked(BlockDiffusion(structure, mask_id=16), Noise())
    plan, key = Plan(steps=steps, warmup=1, learning_rate=3e-3), jax.random.key(1)
    grid = mesh.make_mesh(data, model)
    with mesh.use(grid, RULES[rules]):
        new = params.init(structure.specs(), jax.random.key(0), params.shardings(structure.specs(), grid, RULES[rules]))
        trainable, frozen = params.partition(new, lambda name: True)
        held = chain.HeldOut(Markov(16, 13, 10, seed=2), 4)  # the last batch is not full
        rows = chain.batches((Ragged if pack else Markov)(16, 13, 64), 8, pack=pack, threads=2)
        state = training.fit(
            Run(out=folder, save_every=2), plan, objective, trainable, frozen, rows, key=key, config={"pack": pack},
            evaluate=training.Evaluator(plan, objective, frozen, held),
        )  # fmt: skip
        whole = mesh.fetched(state.trainable, at_once=2000)
        sums = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(whole)]
    mesh.wait(f"trained {folder.name}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    said = [line.get("evaluation", line) for line in lines]
    return {"said": [[line[name] for name in TOLD if name in line] for line in said], "weights": sums}


def decode(drafter, model, weights):
    """Tokens and the number of turns of a small decode, streamed; half of its rows sample."""
    method, prompt = speculative(model, drafter), ragged_prompts(0, model.vocab_size, (7, 1, 2, 5))
    keys, law = sampling.row_keys(0, range(4)), sampling.sampling(4, [0.0, 0.8, 0.0, 0.8])
    state = loop.start(method, weights, prompt, prompt.length + 16, keys, law, slots=32, chunk=8)
    *_, last = loop.stream(method, weights, state, every=4)
    return {"tokens": last.tokens.tolist(), "calls": last.calls.tolist()}


def decoded(name: str, data: int, model: int) -> dict[str, list]:
    """A decode on a mesh."""
    structure, _ = tiny_transformer(vocab_size=96)
    grid = mesh.make_mesh(data, model)
    weights = params.init(structure.specs(), jax.random.key(0), params.shardings(structure.specs(), grid))
    with mesh.use(grid):
        return decode(DRAFTERS[name], structure, {"target": weights})


def recorded(folder: Path) -> dict[str, list]:
    """A recording of a tiny model's own text, and its hidden states, in shards of two prompts."""
    if jax.process_index() == 0 and not (folder / "tiny").exists():
        write_tiny_model(folder / "tiny")
    mesh.wait("written")
    lm = paradec.load(str(folder / "tiny"))
    traces.record(lm, PROMPTS, folder / "text", max_new_tokens=9, batch_size=2, shard=2)
    rows = traces.hidden_states(lm, folder / "text", length=64, ahead=2, batch=2)
    return {
        "new": [record["new"] for record in traces.read(folder / "text")],
        "hidden": [rows[n]["hidden"].astype(np.float32).sum(-1).tolist() for n in range(len(rows))],
    }


def answered(folder: Path, data: int, model: int) -> str:
    """The file of answers that `infer/batch.py` writes, whole."""
    if jax.process_index() == 0 and not (folder / "in.jsonl").exists():
        write_tiny_model(folder / "tiny")
        lines = [{"id": i, "prompt": prompt, "temperature": 0.4 * i} for i, prompt in enumerate(PROMPTS)]
        lines += [{"id": "talk", "turns": PROMPTS[:2]}]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mesh.wait("written")
    where = dict(prompts=folder / "in.jsonl", out=folder / f"{data}.jsonl", model=str(folder / "tiny"))
    assert batch.main(batch.Batch(**where, data=data, model_axis=model, batch_size=4, max_new_tokens=9)) == 0
    return (folder / f"{data}.jsonl").read_text()


def found(folder: Path, jobs: list[list]) -> list:
    """The results of some jobs, each a function of this file and its arguments."""
    return [
        {"trained": lambda *a, n=n: trained(folder / str(n), *a), "decoded": decoded,
         "answered": lambda *a: answered(folder, *a), "recorded": lambda: recorded(folder)}[name](*arguments)
        for n, (name, *arguments) in enumerate(jobs)
    ]  # fmt: skip


def main(port: str, rank: str, count: str, folder: str, jobs: str) -> None:
    """One of the processes: print the result of every job as JSON."""
    mesh.start(f"127.0.0.1:{port}", int(count), int(rank))
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == 4 and jax.process_count() == int(count)
    print(json.dumps(found(Path(folder), json.loads(jobs))))


def together(folder: Path, count: int, jobs: list[list]) -> list:
    """What `count` processes find, which is the same in each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = lambda rank: [sys.executable, __file__, port, str(rank), str(count), str(folder), json.dumps(jobs)]
    env = quick_environment(4 // count)
    every = [subprocess.Popen(command(i), env=env, stdout=-1, stderr=-1, text=True) for i in range(count)]
    try:
        printed = [process.communicate(timeout=900) for process in every]
    finally:
        for process in every:
            process.kill()
    for process, (_, said) in zip(every, printed, strict=True):
        assert process.returncode == 0, said[-4000:]
    first, *others = (json.loads(out.strip().splitlines()[-1]) for out, _ in printed)
    assert all(first == other for other in others)
    return first


def close(many: dict[str, list], one: dict[str, list]) -> None:
    assert len(many["said"]) == len(one["said"])
    for a, b in zip(many["said"], one["said"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many["weights"], one["weights"], rtol=1e-4)


@pytest.mark.multiprocess
def test_two_processes_that_share_a_data_row_train_what_one_does(tmp_path):
    """The mesh's only data row lies on both; packed rows too are the same in both."""
    jobs = [["trained", 1, 4, "tensor"], ["trained", 1, 4, "fsdp", 13]]
    both, alone = together(tmp_path / "two", 2, jobs), found(tmp_path / "one", jobs)
    for many, one in zip(both, alone, strict=True):
        close(many, one)


@pytest.mark.multiprocess
def test_four_processes_do_what_one_does(tmp_path):
    """Each has one device: every data row of 2 × 2 lies on two of them. PARADEC_CASES: each has its own, in 4 × 1."""
    jobs = [["trained", 2, 2, "fsdp"], ["decoded", "prompt_lookup", 2, 2]]
    jobs += [["trained", 4, 1, "fsdp"]] if "PARADEC_CASES" in os.environ else []
    four, alone = together(tmp_path / "four", 4, jobs), found(tmp_path / "one", jobs)
    for (job, *_), many, one in zip(jobs, four, alone, strict=True):
        close(many, one) if job == "trained" else np.testing.assert_array_equal(many["tokens"], one["tokens"])


@pytest.mark.multiprocess
def test_two_processes_decode_record_and_answer_what_one_does(tmp_path):
    jobs = [["recorded"], ["decoded", "ar", 2, 2], ["decoded", "prompt_lookup", 1, 4]]
    jobs += [["answered", 4, 1], ["answered", 2, 2]]
    both = together(tmp_path / "two", 2, jobs)
    assert len(list((tmp_path / "two" / "text").glob("*.jsonl"))) == 3
    alone = recorded(tmp_path / "one")
    assert both[0]["new"] == alone["new"] and len(alone["new"]) == len(PROMPTS)
    np.testing.assert_allclose(both[0]["hidden"], alone["hidden"], atol=0.1)  # sums of bfloat16
    model, _ = tiny_transformer(vocab_size=96)
    weights = params.init(model.specs(), jax.random.key(0))
    for (_, name, *_), result in zip(jobs[1:3], both[1:3], strict=True):
        assert result == decode(DRAFTERS[name], model, {"target": weights})
    lm = paradec.load(str(tmp_path / "two" / "tiny"))
    answers.write(lm, tmp_path / "two" / "in.jsonl", tmp_path / "one.jsonl", max_new_tokens=9, batch_size=4)
    assert both[3] == both[4] == (tmp_path / "one.jsonl").read_text() and both[3].count("\n") == 6


if __name__ == "__main__":
    main(*sys.argv[1:])
