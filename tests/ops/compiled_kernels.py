"""What the TPU compiler makes of every kernel, forward and with its gradient: VMEM, and what it copies, as JSON.

A program of its own, which tests/test_explain.py starts, because that compiler serves one process at a time:

    python -m tests.ops.compiled_kernels gla diagonal
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from paradec.explain import ProgramRequest
from paradec.explain.child import PATIENCE, environment
from paradec.explain.compiler import topology
from paradec.models.cells.elman import Elman
from paradec.models.cells.gru import GRU
from paradec.models.cells.lstm import LSTM
from paradec.models.cells.slstm import SLSTM
from paradec.ops.kernels import gla, recurrent, scan

BF16 = jnp.bfloat16


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def scans(T: int, *cells: int, k: int = 1, dtype: Any = jnp.float32, reverse: bool = False) -> tuple[Callable, tuple]:
    x, start = shape(T, *cells, dtype=dtype), shape(*cells)
    if k == 1:
        return lambda a, b, h0: scan.diagonal(a, b, h0, reverse), (x, x, start)
    return lambda a, b, h0: scan.block(a, b, h0, reverse), (((x,) * k,) * k, (x,) * k, (start,) * k)


def attention(B: int, T: int, H: int, K: int, V: int, dtype: Any = jnp.float32) -> tuple[Callable, tuple]:
    key, value = shape(B, T, H, K, dtype=dtype), shape(B, T, H, V, dtype=dtype)
    return lambda *x: gla.gla(*x), (key, key, value, shape(B, T, H, K), shape(B, H, K, V))


def cells(
    kind: Any, T: int, N: int, B: int, D: int, dtype: Any = jnp.float32, marked: bool = False
) -> tuple[Callable, tuple]:
    cell = kind(N, D)
    gates, facts = cell.gates, (jnp.zeros((T, B), bool),) * 2 if marked else (None, None)
    run = lambda wx, r, b, first: recurrent.recur(cell, 1, None, wx, r, b, first, facts)
    wx, r = shape(T, N, B, gates.input * D, dtype=dtype), shape(N, D, gates.recurrent * D, dtype=dtype)
    return run, (wx, r, shape(gates.bias, N, 1, D), (shape(N, B, D),) * cell.states)


PROGRAMS = {
    "diagonal": scans(8192, 2048),
    "diagonal, reversed, a batch": scans(2048, 8, 1024, reverse=True),
    "diagonal, bfloat16, four rows": scans(2048, 4, 2048, dtype=BF16),
    "diagonal, ragged": scans(1001, 3, 200, dtype=BF16, reverse=True),
    "diagonal, short": scans(5, 64),
    "2 x 2": scans(8192, 2048, k=2),
    "2 x 2, reversed, a batch": scans(2048, 8, 1024, k=2, reverse=True),
    "gla": attention(1, 2048, 4, 128, 256),
    "gla, wide": attention(1, 2048, 4, 256, 512),
    "gla, bfloat16, wide": attention(1, 2048, 4, 256, 512, BF16),
    "gla, narrow, ragged": attention(2, 2000, 2, 64, 64, BF16),
    "elman": cells(Elman, 1024, 1, 8, 512),
    "lstm": cells(LSTM, 1024, 4, 8, 256),
    "lstm, bfloat16, wide": cells(LSTM, 1024, 1, 32, 768, BF16),
    "lstm, marked, ragged": cells(LSTM, 1001, 4, 5, 256, BF16, True),
    "gru": cells(GRU, 1024, 4, 16, 256, BF16),
    "slstm": cells(SLSTM, 1024, 4, 8, 128),
}


def gradient(run: Callable) -> Callable:
    def both(*arguments: Any) -> Any:
        out, pull = jax.vjp(run, *arguments)
        return pull(jax.tree.map(jnp.ones_like, out))

    return both


def compiled(function: Callable, arguments: tuple) -> dict[str, Any]:
    """Bytes of VMEM of every kernel, and the arrays that are copied or transposed around them."""
    place = SingleDeviceSharding(topology("v5e:1x1")[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    text = jax.jit(function).lower(*placed).compile().as_text()
    lines = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    used = r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
    copies = re.findall(r" = (\S+?)(?:\{\S*)? (?:copy|transpose)\(", text)
    return {"vmem": [int(size) for line in lines for size in re.findall(used, line)], "copies": copies}


def ask(*names: str) -> list[dict[str, Any]]:
    """What this program prints of these kernels (of all, if none is named). Waits while another has the compiler."""
    for _ in range(12):
        command = [sys.executable, "-m", "tests.ops.compiled_kernels", *names]
        variables = environment(ProgramRequest("ar", target="v5e:1x1"))
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if "libtpu_lockfile" not in done.stderr:
            break
        time.sleep(PATIENCE / 12)
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(names: list[str]) -> None:
    for name in names or PROGRAMS:
        run, arguments = PROGRAMS[name]
        for what, function in (("forward", run), ("gradient", gradient(run))):
            print(json.dumps({"name": name, "what": what} | compiled(function, arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
