"""Measure block sizes of the kernels on this machine's device, and store the quickest (`table`).

What is timed is a value with its gradients, as in training; medians of a few runs, candidates taken in turn, so that a
machine that slows down slows all of them. A candidate that does not compile (VMEM, registers) is left out and named.

    python -m paradec.ops.kernels.tune                     # print what is quickest
    python -m paradec.ops.kernels.tune --write             # and store it in the package
    python -m paradec.ops.kernels.tune --kernels gla --path mine.json --write
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from paradec.errors import InputError, ParadecError, UnknownName
from paradec.ops.kernels import affine, gla, recurrent, table


@dataclasses.dataclass(frozen=True)
class TunedKernel:
    """What is tried: `run(blocks, *arrays)`, with shapes of `arrays`, and for each platform the values of each size."""

    run: Callable[..., Any]
    arrays: tuple[tuple[int, ...], ...]
    values: Mapping[str, Mapping[str, Sequence[int]]]

    def candidates(self, platform: str) -> list[table.Blocks]:
        sizes = self.values.get(platform, {})
        return [tuple(zip(sizes, chosen, strict=True)) for chosen in product(*sizes.values())]


@dataclasses.dataclass(frozen=True)
class PlainLSTM:
    """An LSTM's pointwise function, the commonest of the cells (those of `models.cells` stand a floor above)."""

    states = 2

    class gates:
        recurrent = input = bias = 4

    def pointwise(self, states: tuple, raw: tuple) -> tuple:
        (_, c), (i, f, z, o) = states, raw
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(z)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c


def kernels(T: int = 2048, batch: int = 8, heads: int = 4, width: int = 256) -> dict[str, TunedKernel]:
    """Every kernel at the sizes of a layer: T steps of `batch` rows of `heads` heads of `width`."""
    cells, start = (T, batch, heads * width), (batch, heads * width)
    row = (batch, T, heads, width)
    gpu = {"warps": (1, 2, 4, 8), "stages": (1, 2, 3)}
    scans = {
        "tpu": {"time": (64, 128, 256, 512), "cells": (256, 512, 1024)},
        "gpu": {"cells": (16, 32, 64, 128), **gpu},
    }
    lstm = (T, heads, batch, 4 * width), (heads, width, 4 * width), (4, heads, 1, width), *((heads, batch, width),) * 2
    chunks = {"tpu": {"rows": (64, 128, 256, 512)}, "gpu": {"state": (2048, 4096, 8192, 16384), **gpu}}
    return {
        "diagonal": TunedKernel(_scan, (cells, cells, start), scans),
        "block": TunedKernel(_blocks, (cells,) * 6 + (start,) * 2, scans),
        "gla": TunedKernel(_gla, (row, row, row, row), chunks),
        "recurrent": TunedKernel(_recurrent, lstm, {"tpu": {"steps": (4, 8, 16, 32, 64)}}),
    }


def _scan(blocks: table.Blocks, platform: str, a: Array, b: Array, h0: Array) -> Any:
    form = affine.AffineForm(platform=platform, blocks=blocks)
    return affine.scan(((jax.nn.sigmoid(a),),), (b,), (h0,), form)


def _blocks(blocks: table.Blocks, platform: str, *x: Array) -> Any:
    form = affine.AffineForm(platform=platform, blocks=blocks)
    a = tuple(0.4 * jnp.tanh(y) for y in x[:4])
    return affine.scan((a[:2], a[2:]), x[4:6], x[6:], form)


def _gla(blocks: table.Blocks, platform: str, q: Array, k: Array, v: Array, g: Array) -> Any:
    B, _, H, K = q.shape
    form = gla.GlaForm(K**-0.5, platform=platform, blocks=blocks)
    state = jnp.zeros((B, H, K, v.shape[-1]), jnp.float32)
    return gla.attend(q, k, v, jax.nn.log_sigmoid(g) / 16, state, form)


def _recurrent(blocks: table.Blocks, platform: str, wx: Array, r: Array, b: Array, *first: Array) -> Any:
    return recurrent.recur(PlainLSTM(), 1, None, wx, 0.1 * r, b, first, platform=platform, blocks=blocks)


def measure(
    tuned: TunedKernel, platform: str, repeats: int = 5, say: Callable[[str], None] = print
) -> dict[table.Blocks, float]:
    """Seconds of a value with its gradients for every candidate that runs, the quickest first."""
    keys = jax.random.split(jax.random.key(0), len(tuned.arrays))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, tuned.arrays, strict=True)]
    runs = {}
    for blocks in tuned.candidates(platform):
        run = jax.jit(_with_gradients(partial(tuned.run, blocks, platform)))
        try:
            jax.block_until_ready(run(*arrays))  # compiles
        except (ParadecError, jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
            say(f"{dict(blocks)} does not run: {str(error).splitlines()[0][:200]}")
            continue
        runs[blocks] = run
    seconds: dict[table.Blocks, list[float]] = {blocks: [] for blocks in runs}
    for _ in range(repeats):
        for blocks, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            seconds[blocks].append(time.perf_counter() - start)
    medians = {blocks: statistics.median(times) for blocks, times in seconds.items()}
    return dict(sorted(medians.items(), key=lambda pair: pair[1]))


def _with_gradients(run: Callable) -> Callable:
    def both(*arrays: Array) -> Any:
        out, pull = jax.vjp(run, *arrays)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    return both


def tune(
    names: Sequence[str],
    tried: Mapping[str, TunedKernel],
    platform: str,
    path: Path | None = None,
    repeats: int = 5,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, int]]:
    """The quickest block sizes of each kernel, written to `path` under this device's kind if there is one.

    Raises `UnknownName` for a kernel that there is none of, and `InputError` where no candidate of one runs.
    """
    best = {}
    for name in names:
        if name not in tried:
            raise UnknownName("kernel", name, tried)
        if not tried[name].candidates(platform):
            say(f"{name}: no kernel on this platform")
            continue
        found = measure(tried[name], platform, repeats, say)
        if not found:
            raise InputError(
                f"No block sizes of the kernel {name} run on this device; try smaller sizes of its arrays."
            )
        for blocks, seconds in found.items():
            say(f"{name} {dict(blocks)}: {seconds * 1e3:.3f} ms")
        best[name] = dict(next(iter(found)))
        if path is not None:
            table.store(name, best[name], path)
    return best


def main() -> None:
    """The command above."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="*", default=list(kernels()), help="which (default: all)")
    parser.add_argument("--write", action="store_true", help="store what is quickest")
    parser.add_argument("--path", type=Path, default=table.STORED, help="where (default: in the package)")
    for name, default in (("length", 2048), ("batch", 8), ("heads", 4), ("width", 256), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    platform = jax.default_backend()
    if platform not in ("tpu", "gpu"):
        raise SystemExit("Block sizes are tuned on a TPU or a GPU; on a CPU kernels are interpreted, and slow.")
    tried = kernels(asked.length, asked.batch, asked.heads, asked.width)
    tune(asked.kernels, tried, platform, asked.path if asked.write else None, asked.repeats)


if __name__ == "__main__":
    main()
