"""Affine recurrences `h_t = A_t h_{t-1} + b_t` as one Pallas kernel that reads every operand once.

A is a k x k block for every cell, kept as k * k arrays ("structure of arrays"; k = 1 is the diagonal scan), because XLA
and the TPU pad two tiny axes to whole tiles. Time is axis 0; the state stays in VMEM (TPU) or registers (GPU) from one
chunk of time to the next, in float32, whatever the inputs are.

The adjoint of `h_t = A_t h_{t-1} + b_t` is `m_t = g_t + A_{t+1}^T m_{t+1}`: the same recurrence, reversed, with each
matrix applied one step later. So that nothing need be shifted in memory, the kernel has a `delayed` form,
`h_t = b_t + c` and then `c = A_t h_t`, which is the adjoint's. The adjoint of that is the plain form again, so a
derivative of any order is a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from paradec.ops.kernels import table
from paradec.ops.kernels.launch import SCOPED_VMEM, Launch, Operand, on_platform

Cells = tuple[Float[Array, "T ..."], ...]
State = tuple[Float[Array, "..."], ...]
Matrix = tuple[Cells, ...]


class AffineForm(NamedTuple):
    """What is static about a scan. `blocks` None: those of the stored table."""

    reverse: bool = False
    delayed: bool = False
    platform: str | None = None
    blocks: table.Blocks | None = None


def scan(a: Matrix, b: Cells, h0: State, form: AffineForm) -> Cells:
    """The states after every step, float32, of `a[i][j]` and `b[i]` "T ...", all of one shape, and `h0[i]` "...".

    Delayed: `h_t = b_t + c_{t-1}` with `c_t = a_t h_t` and `c_{-1} = h0`. Reversed: from the last step to the first.
    """
    states: Any = _scan(a, b, h0, form)
    return states


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(a: Matrix, b: Cells, h0: State, form: AffineForm) -> Cells:
    return on_platform({"tpu": partial(_tpu, form=form), "gpu": partial(_gpu, form=form)}, form.platform, a, b, h0)


def _forward(a: Matrix, b: Cells, h0: State, form: AffineForm) -> tuple[Cells, Any]:
    h = scan(a, b, h0, form)
    return h, (a, jax.tree.map(lambda x: x[:0], b), h0, h)  # of b only its type is needed


def _backward(form: AffineForm, saved: Any, g: Cells) -> tuple[Matrix, Cells, State]:
    a, like, h0, h = saved
    k, first = len(h), -1 if form.reverse else 0
    other = form._replace(reverse=not form.reverse, delayed=not form.delayed)
    m = scan(tuple(tuple(row[j] for row in a) for j in range(k)), g, jax.tree.map(jnp.zeros_like, h0), other)
    if form.delayed:  # the matrix of step t met h_t, on the way to step t + 1
        left, right = [_shifted(x, jnp.zeros_like(x[0]), not form.reverse) for x in m], h
        start = tuple(x[first] for x in m)
    else:
        left, right = m, [_shifted(x, x0.astype(x.dtype), form.reverse) for x, x0 in zip(h, h0, strict=True)]
        start = tuple(sum(a[i][j][first].astype(jnp.float32) * m[i][first] for i in range(k)) for j in range(k))
    da = tuple(tuple((left[i] * right[j]).astype(a[i][j].dtype) for j in range(k)) for i in range(k))
    db = tuple(x.astype(y.dtype) for x, y in zip(m, like, strict=True))
    return da, db, tuple(x.astype(y.dtype) for x, y in zip(start, h0, strict=True))


_scan.defvjp(_forward, _backward)


def _shifted(x: Float[Array, "T ..."], edge: Float[Array, "..."], backwards: bool) -> Float[Array, "T ..."]:
    """Every entry's neighbour before it in time (`backwards`: after it), and `edge` where there is none."""
    return jnp.concatenate([x[1:], edge[None]] if backwards else [edge[None], x[:-1]])


def refusal(shape: Sequence[int], k: int, platform: str) -> str | None:
    """Why there is no kernel for a scan of arrays of this shape, as a sentence; None where there is one."""
    if platform not in ("tpu", "gpu", "cpu"):
        return f"There is no scan kernel for {platform}, only for TPUs and GPUs; use implementation='lanes'."
    if not 1 <= k <= 4:
        return f"The scan kernel takes blocks of 1 x 1 to 4 x 4, not {k} x {k}; use kind='dense'."
    if not math.prod(shape):
        return (
            f"The scan kernel takes no empty arrays, and the shape is {tuple(shape)}; use implementation='sequential'."
        )
    if platform != "gpu":
        needed = launch(shape, k, jnp.float32, jnp.float32, AffineForm()).vmem()
        if needed > SCOPED_VMEM:
            return f"The scan kernel's blocks for {tuple(shape)} take {needed >> 20} MiB of VMEM; store smaller ones."
    return None


def collapsed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in which the TPU kernel sees an array: time and one axis of cells, or time, rows and one axis of cells.

    A batch stays an axis of its own: merged into the last it would be laid out anew, because tiles cover the last two.
    """
    T, *rest = shape
    return (T, *(rest or [1])) if len(rest) < 2 else (T, math.prod(rest[:-1]), rest[-1])


def launch(shape: Sequence[int], k: int, a_type: Any, b_type: Any, form: AffineForm) -> Launch:
    """The TPU kernel for arrays of this shape: grid (rows, cells, time) or (cells, time), time last and in order."""
    T, *rest = shape = collapsed(shape)
    unit = 8 if jnp.dtype(a_type).itemsize == 4 and jnp.dtype(b_type).itemsize == 4 else 16  # rows of one tile
    time, *tile = _tile(shape, k, unit, form)
    steps, axes = pl.cdiv(T, time), tuple(pl.cdiv(n, size) for n, size in zip(rest, tile, strict=True))

    def at(*index: Any) -> tuple:
        *cells, t = index
        return (steps - 1 - t if form.reverse else t, *cells)

    def arrays(number: int, dtype: Any) -> tuple[Operand, ...]:
        return (Operand(shape, dtype, (time, *tile), at),) * number

    start = Operand((1, *rest), jnp.float32, (1, *tile), lambda *index: (0, *index[:-1]))
    body = partial(_body, k=k, T=T, unit=unit, form=form)
    return Launch(
        "affine_scan", body, (*axes, steps), arrays(k * k, a_type) + arrays(k, b_type) + (start,) * k,
        arrays(k, jnp.float32), (((1, *tile), jnp.float32),) * k,
    )  # fmt: skip


def _tile(shape: tuple[int, ...], k: int, unit: int, form: AffineForm) -> tuple[int, ...]:
    """The block of time, rows (if any) and cells, of about as many elements as the table says."""
    T, *rows, cells = shape
    sizes = table.blocks("diagonal" if k == 1 else "block", "tpu", form.blocks)
    elements = sizes["time"] * sizes["cells"]
    high = [n if n <= unit else unit for n in rows]
    wide = min(cells, max(128, sizes["cells"] // (unit if rows else 1) // 128 * 128))
    time = elements // (unit * -(-wide // 128) * 128 if rows else -(-wide // 128) * 128)
    return (max(unit, min(time, T + unit - 1) // unit * unit), *high, wide)


def _body(*refs: Any, k: int, T: int, unit: int, form: AffineForm) -> None:
    a, b, h0 = refs[: k * k], refs[k * k : k * k + k], refs[k * k + k : k * k + 2 * k]
    out, carry = refs[-2 * k : -k], refs[-k:]
    axis = len(out[0].shape) - 1
    t, steps, time = pl.program_id(axis), pl.num_programs(axis), out[0].shape[0]
    groups, base = time // unit, (steps - 1 - t if form.reverse else t) * time

    @pl.when(t == 0)
    def _() -> None:
        for start, h in zip(h0, carry, strict=True):
            h[...] = start[...]

    def group(i: Array, h: tuple[Array, ...]) -> tuple[Array, ...]:
        i = groups - 1 - i if form.reverse else i
        rows = pl.ds(pl.multiple_of(i * unit, unit), unit)
        A, B = ([ref[rows].astype(jnp.float32) for ref in part] for part in (a, b))
        if form.reverse and T % time:  # the rows behind the end, which come first, hold anything, NaN too
            live = base + i * unit + lax.broadcasted_iota(jnp.int32, B[0].shape, 0) < T
            A = [jnp.where(live, x, float(n % (k + 1) == 0)) for n, x in enumerate(A)]
            B = [jnp.where(live, x, 0.0) for x in B]
        states: list[Any] = [None] * unit
        for j in reversed(range(unit)) if form.reverse else range(unit):
            row = lambda x, j=j: x[j : j + 1]
            states[j], h = step([row(x) for x in A], [row(x) for x in B], h, form.delayed)
        for n, ref in enumerate(out):
            ref[rows] = jnp.concatenate([s[n] for s in states])
        return h

    for ref, h in zip(carry, lax.fori_loop(0, groups, group, tuple(ref[...] for ref in carry)), strict=True):
        ref[...] = h


def step(a: Sequence[Array], b: Sequence[Array], carry: Sequence[Array], delayed: bool) -> tuple[tuple, tuple]:
    """The state after one step and what is carried to the next; `a` is the matrix row by row."""
    k = len(b)
    through = lambda h: [sum(a[i * k + j] * h[j] for j in range(1, k)) + a[i * k] * h[0] for i in range(k)]
    if delayed:
        h = tuple(x + y for x, y in zip(b, carry, strict=True))
        return h, tuple(through(h))
    h = tuple(x + y for x, y in zip(through(carry), b, strict=True))
    return h, h


def _tpu(a: Matrix, b: Cells, h0: State, *, form: AffineForm, interpret: bool) -> Cells:
    shape = b[0].shape
    rest = (seen := collapsed(shape))[1:]
    start = launch(shape, len(b), a[0][0].dtype, b[0].dtype, form)
    flat = [x.reshape(seen) for x in (*sum(a, ()), *b)] + [x.astype(jnp.float32).reshape(1, *rest) for x in h0]
    return tuple(x.reshape(shape) for x in start(*flat, interpret=interpret))


def _gpu(a: Matrix, b: Cells, h0: State, *, form: AffineForm, interpret: bool) -> Cells:
    """Triton-style: a program walks all of time for a power of two of cells, its state in registers."""
    shape, k = b[0].shape, len(b)
    T, n = shape[0], math.prod(shape[1:])
    sizes = table.blocks("diagonal" if k == 1 else "block", "gpu", form.blocks)
    wide = sizes["cells"]
    pad = lambda x: jnp.pad(x.reshape(-1, n), ((0, 0), (0, -n % wide)))  # nothing where it divides: XLA drops it
    flat = [pad(x) for x in (*sum(a, ()), *b, *(x.astype(jnp.float32) for x in h0))]
    block = lambda rows: pl.BlockSpec((rows, wide), lambda i: (0, i))
    out = pl.pallas_call(
        partial(_gpu_body, k=k, form=form),
        grid=(pl.cdiv(n, wide),),
        in_specs=[block(x.shape[0]) for x in flat],
        out_specs=[block(T)] * k,
        out_shape=[jax.ShapeDtypeStruct((T, n + -n % wide), jnp.float32)] * k,
        compiler_params=plgpu.CompilerParams(num_warps=sizes["warps"], num_stages=sizes["stages"]),
        interpret=interpret,
        name="affine_scan",
    )(*flat)
    return tuple(x[:, :n].reshape(shape) for x in out)


def _gpu_body(*refs: Any, k: int, form: AffineForm) -> None:
    a, b, h0, out = refs[: k * k], refs[k * k : k * k + k], refs[k * k + k : k * k + 2 * k], refs[-k:]
    T = out[0].shape[0]

    def one(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        t = T - 1 - i if form.reverse else i
        load = lambda part: [ref[t, :].astype(jnp.float32) for ref in part]
        h, carry = step(load(a), load(b), carry, form.delayed)
        for ref, x in zip(out, h, strict=True):
            ref[t, :] = x
        return carry

    lax.fori_loop(0, T, one, tuple(ref[0, :] for ref in h0))
