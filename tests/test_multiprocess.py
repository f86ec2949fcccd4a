"""Two processes, each with half of the devices, do what one does: decode, and record. The file is also the program."""

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
from paradec import mesh, params
from paradec.decode import loop, sampling
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.speculative import speculative
from paradec.learn import traces
from paradec.testing import ragged_prompts, tiny_transformer
from tests.fixtures import write_tiny_model

PROMPTS = ["abc abc abc", "Hello, world", "x", "The list: one two one two", "zyx"]
DRAFTERS = {"ar": NoDraft(), "prompt_lookup": PromptLookup(num_draft=3, min_ngram=1)}


def decode(drafter, model, weights):
    """Tokens and the number of turns of a small decode, streamed; half of its rows sample."""
    method, prompt = speculative(model, drafter), ragged_prompts(0, model.vocab_size, (7, 1, 2, 5))
    keys, law = sampling.row_keys(0, range(4)), sampling.sampling(4, [0.0, 0.8, 0.0, 0.8])
    state = loop.start(method, weights, prompt, prompt.length + 16, keys, law, slots=32, chunk=8)
    *_, last = loop.stream(method, weights, state, every=4)
    return {"tokens": last.tokens.tolist(), "calls": last.calls.tolist()}


def recorded(folder: Path) -> dict[str, list]:
    """A recording of a tiny model's own text, and its hidden states, in shards of two prompts."""
    lm = paradec.load(str(folder / "tiny"))
    traces.record(lm, PROMPTS, folder / "text", max_new_tokens=9, batch_size=2, shard=2)
    rows = traces.hidden_states(lm, folder / "text", length=64, ahead=2, batch=2)
    return {
        "new": [record["new"] for record in traces.read(folder / "text")],
        "hidden": [rows[n]["hidden"].astype(np.float32).sum(-1).tolist() for n in range(len(rows))],
    }


def main(port: str, rank: str, folder: str) -> None:
    """One of the two processes: print every method's result as JSON."""
    mesh.start(f"127.0.0.1:{port}", 2, int(rank))
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    model, _ = tiny_transformer(vocab_size=96)
    grid = mesh.make_mesh(2, 2)
    weights = params.init(model.specs(), jax.random.key(0), params.shardings(model.specs(), grid))
    with mesh.use(grid):
        results = {name: decode(drafter, model, {"target": weights}) for name, drafter in DRAFTERS.items()}
    print(json.dumps(results | {"recorded": recorded(Path(folder))}))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_do_what_one_does(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    for name in ("two", "one"):
        write_tiny_model(tmp_path / name / "tiny")
    command = lambda rank: [sys.executable, __file__, port, rank, str(tmp_path / "two")]
    both = [subprocess.Popen(command(i), env=env, stdout=-1, stderr=-1, text=True) for i in "01"]
    try:
        printed = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], printed
    first, second = (json.loads(out.strip().splitlines()[-1]) for out, _ in printed)
    assert first == second
    assert len(list((tmp_path / "two" / "text").glob("*.jsonl"))) == 3
    alone = recorded(tmp_path / "one")
    found = first.pop("recorded")
    assert found["new"] == alone["new"] and len(found["new"]) == len(PROMPTS)
    np.testing.assert_allclose(found["hidden"], alone["hidden"], atol=0.1)  # sums of bfloat16

    model, weights = tiny_transformer(vocab_size=96)
    alone = {name: decode(drafter, model, {"target": weights}) for name, drafter in DRAFTERS.items()}
    np.testing.assert_array_equal(first["ar"]["tokens"], alone["ar"]["tokens"])
    assert first == alone


if __name__ == "__main__":
    main(*sys.argv[1:])
