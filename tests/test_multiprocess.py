"""Two processes, each with half of the devices, decode what one process does. The file is also the program they run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from paradec import mesh, params
from paradec.decode import loop, sampling
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.speculative import speculative
from paradec.testing import ragged_prompts, tiny_transformer

DRAFTERS = {"ar": NoDraft(), "prompt_lookup": PromptLookup(num_draft=3, min_ngram=1)}


def decode(drafter, model, weights):
    """Tokens and the number of turns of a small decode, streamed; half of its rows sample."""
    method, prompt = speculative(model, drafter), ragged_prompts(0, model.vocab_size, (7, 1, 2, 5))
    keys, law = sampling.row_keys(0, range(4)), sampling.sampling(4, [0.0, 0.8, 0.0, 0.8])
    state = loop.start(method, weights, prompt, prompt.length + 16, keys, law, slots=32, chunk=8)
    *_, last = loop.stream(method, weights, state, every=4)
    return {"tokens": last.tokens.tolist(), "calls": last.calls.tolist()}


def main(port: str, rank: str) -> None:
    """One of the two processes: print every method's result as JSON."""
    mesh.start(f"127.0.0.1:{port}", 2, int(rank))
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    model, _ = tiny_transformer(vocab_size=96)
    grid = mesh.make_mesh(2, 2)
    weights = params.init(model.specs(), jax.random.key(0), params.shardings(model.specs(), grid))
    with mesh.use(grid):
        results = {name: decode(drafter, model, {"target": weights}) for name, drafter in DRAFTERS.items()}
    print(json.dumps(results))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_decode_what_one_does():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, __file__, port]
    both = [subprocess.Popen([*command, str(i)], env=env, stdout=-1, stderr=-1, text=True) for i in (0, 1)]
    try:
        printed = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], printed
    first, second = (json.loads(out.strip().splitlines()[-1]) for out, _ in printed)
    assert first == second

    model, weights = tiny_transformer(vocab_size=96)
    alone = {name: decode(drafter, model, {"target": weights}) for name, drafter in DRAFTERS.items()}
    np.testing.assert_array_equal(first["ar"]["tokens"], alone["ar"]["tokens"])
    assert first == alone


if __name__ == "__main__":
    main(*sys.argv[1:])
