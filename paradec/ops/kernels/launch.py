"""A Pallas TPU kernel's grid and blocks as data: the same description starts it, counts its bytes and its memory.

XLA's cost analysis sees nothing inside a kernel, so the bytes a kernel moves are counted here, from its grid and its
index maps: the pipeline fetches a block of an operand again whenever its block index differs from that of the grid step
before, and writes an output's block back by the same rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

SCOPED_VMEM = 16 << 20
"""Bytes of VMEM that the TPU compiler gives one kernel unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """One input or output: its whole shape, the block of a grid step, and which block that is (None in `block`: an axis
    of size 1 that the kernel does not see)."""

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int | None, ...]
    index: Callable[..., tuple]

    @property
    def bytes(self) -> int:
        """Of the whole array."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def spec(self) -> pl.BlockSpec:
        return pl.BlockSpec(self.block, self.index)

    def moved(self, grid: Sequence[int]) -> int:
        """Bytes fetched (or written) over the whole grid; a block that sticks out of the array counts for its part
        inside.

        Worked example: shape (8, 4), block (2, 4), grid (3, 4), index (i, t) -> (t, 0). The index runs 0 1 2 3 0 1 2 …,
        which is 12 fetches. With (i, t) -> (0, 0) it never changes: 1 fetch.
        """
        steps = [axis.reshape(-1) for axis in np.indices(grid)]  # row-major: the last axis of the grid runs fastest
        index = np.stack([np.broadcast_to(np.asarray(i), steps[0].shape) for i in self.index(*steps)], axis=-1)
        fresh = np.r_[True, (index[1:] != index[:-1]).any(axis=-1)]
        block = np.array([b or 1 for b in self.block])
        inside = np.minimum(block, np.array(self.shape) - index[fresh] * block)
        return int(inside.prod(axis=-1).sum()) * jnp.dtype(self.dtype).itemsize

    def vmem(self) -> int:
        """Bytes of one block in VMEM, where the last two axes are padded to tiles of 8 x 128 words of 4 bytes."""
        size = jnp.dtype(self.dtype).itemsize
        return tiled([b for b in self.block if b is not None], size)


def tiled(shape: Sequence[int], size: int) -> int:
    """Bytes of an array in VMEM, its elements of `size` bytes."""
    *lead, rows, lanes = (1, 1, *shape)
    sublanes = 8 * (4 // size)
    return math.prod(lead) * -(-rows // sublanes) * sublanes * -(-lanes // 128) * 128 * size


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel is started. The last axis of the grid runs in order (time); those before it are independent."""

    name: str
    body: Callable[..., None]
    grid: tuple[int, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    scratch: tuple[tuple[tuple[int, ...], Any], ...] = ()

    def __call__(self, *arrays: Array, interpret: bool = False) -> tuple[Array, ...]:
        """Run it, or lower it for TPU (`interpret` False). Returns a tuple of the outputs."""
        order = ("parallel",) * (len(self.grid) - 1) + ("arbitrary",)
        return pl.pallas_call(
            self.body,
            grid=self.grid,
            in_specs=[x.spec() for x in self.inputs],
            out_specs=[x.spec() for x in self.outputs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.outputs],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in self.scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=order),
            interpret=interpret,
            name=self.name,
        )(*arrays)

    def moved(self) -> int:
        """Bytes between HBM and VMEM, counted from the grid and the index maps."""
        return sum(x.moved(self.grid) for x in (*self.inputs, *self.outputs))

    def floor(self) -> int:
        """Bytes of every input once and every output once: no kernel of this signature moves less."""
        return sum(x.bytes for x in (*self.inputs, *self.outputs))

    def vmem(self) -> int:
        """Bytes of VMEM for the blocks, each twice (one is computed on while the next is fetched), and the scratch.
        What the compiler needs for values in between comes on top."""
        blocks = sum(2 * x.vmem() for x in (*self.inputs, *self.outputs))
        return blocks + sum(tiled(shape, jnp.dtype(dtype).itemsize) for shape, dtype in self.scratch)


def on_platform(kernels: Mapping[str, Callable[..., Any]], platform: str | None, *arrays: Any) -> Any:
    """The result of the kernel for the platform that the program is lowered for.

    Args:
        kernels: by "tpu" and "gpu" (or one of them), each taking the arrays and `interpret`, all with results alike.
        platform: "tpu" or "gpu" fixes the kernel, which is interpreted where the program is lowered for a CPU. None
            leaves it to the lowering: for a CPU the first of the kernels is interpreted, which is right and slow.
    """
    kernels = {platform: kernels[platform]} if platform else kernels
    lowered = {{"gpu": "cuda"}.get(name, name): partial(kernel, interpret=False) for name, kernel in kernels.items()}
    return lax.platform_dependent(*arrays, cpu=partial(next(iter(kernels.values())), interpret=True), **lowered)
