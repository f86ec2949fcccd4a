"""Recurrences with recurrent matrices as one Pallas TPU kernel over time, after FlashRNN's fused kernel (2412.07752).

`raw = R h + Wx + b`, then a cell's pointwise function of the states and of raw. A head's R stays in VMEM for all steps,
as do its states, so R is read once a head and each step moves its inputs and its states alone. The backward pass stores
nothing but the states: for a chunk of steps it recomputes R h in one product, then goes through the chunk in reverse
with the vector-Jacobian product of the pointwise function, which jax derives inside the kernel. What sums over time
(the cotangents of R and of b) is one product and one sum in XLA, after the kernel.

FlashRNN keeps the gates as well, which costs four times a state's memory and, at equal width, more traffic than reading
the inputs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from paradec.errors import InputError
from paradec.ops.kernels import table
from paradec.ops.kernels.gla_chunk import product
from paradec.ops.kernels.launch import SCOPED_VMEM, Launch, Operand, on_platform

States = tuple[Array, ...]
Facts = tuple[Bool[Array, "T B"] | None, Bool[Array, "T B"] | None]

ROWS = 8
"""Rows of a batch that the kernel pads to: those of one tile of float32."""


class StepForm(NamedTuple):
    """What is static: a cell (`ops.recurrent.Pointwise`), the bound of the gradient through R, the kernel's platform,
    and block sizes (None: those of the table). The `steps` of a chunk follow from them and from VMEM."""

    cell: Any
    clip: float | None = None
    platform: str | None = None
    blocks: table.Blocks | None = None
    steps: int = 0


class StepSizes(NamedTuple):
    """Time, heads, batch, head size; the types of Wx and R; whether steps are reset or left out."""

    T: int
    N: int
    B: int
    D: int
    wx: Any
    r: Any
    marked: bool


def recur(
    cell: Any,
    unroll: int,
    clip: float | None,
    wx: Float[Array, "T N B GiD"],
    r: Float[Array, "N D GrD"],
    b: Float[Array, "Gb N 1 D"],
    first: States,
    facts: Facts = (None, None),
    *,
    platform: str | None = None,
    blocks: table.Blocks | None = None,
) -> States:
    """The states after every step, each "T N B D", float32: what `ops.recurrent`'s scan returns.

    `first` are the states before, each "N B D"; `facts` says where they are emptied before a step, and which steps
    count. `unroll` is the scan's, and has no meaning here. Raises `InputError` with what `refusal` says.
    """
    T, _, B, _ = wx.shape
    if sentence := refusal(cell, wx.shape, r.dtype, platform or "cpu", wx.dtype):
        raise InputError(sentence)
    rows = -B % ROWS
    pad = lambda x, axis: jnp.pad(x, [(0, rows if i == axis else 0) for i in range(x.ndim)]) if rows else x
    marks = None
    if any(x is not None for x in facts):
        reset = jnp.zeros((T, B), bool) if facts[0] is None else facts[0]
        valid = jnp.ones((T, B), bool) if facts[1] is None else facts[1]
        marks = pad(jnp.stack([reset, valid], axis=-1).astype(jnp.float32), 1)
    first = tuple(pad(x.astype(jnp.float32), 1) for x in first)
    form = StepForm(cell, clip, platform, blocks)
    states: Any = _recur(pad(wx, 2), r, b.astype(jnp.float32), first, marks, form)
    return tuple(x[:, :, :B] for x in states)


def refusal(cell: Any, wx: Sequence[int], r: Any, platform: str, wx_type: Any = jnp.float32) -> str | None:
    """Why there is no kernel for Wx "T N B GiD" and matrices of type r, as a sentence; None where there is one."""
    T, N, B, width = wx
    D = width // cell.gates.input
    other = "use implementation='scan'"
    if platform not in ("tpu", "cpu"):
        return f"There is no kernel for recurrences on {platform}, only on TPUs; {other}."
    if 0 in wx:
        return f"The kernel for recurrences takes no empty arrays, and Wx is {tuple(wx)}; {other}."
    if any(jnp.dtype(x).itemsize > 4 for x in (r, wx_type)):
        return f"The kernel for recurrences has no float64; {other}."
    if not fitting_steps(StepSizes(T, N, B + -B % ROWS, D, wx_type, r, True), StepForm(cell)):
        size = D * D * cell.gates.recurrent * jnp.dtype(r).itemsize >> 20
        return (
            f"The recurrent matrices of one head of {D} are {size} MiB and do not fit VMEM; take more heads or {other}."
        )
    return None


def fitting_steps(sizes: StepSizes, form: StepForm) -> int:
    """Steps a chunk: as many as the table says, or halved until the backward pass fits VMEM; 0 where one does not."""
    steps = min(table.blocks("recurrent", "tpu", form.blocks)["steps"], sizes.T)
    while steps and backward_launch(sizes, form._replace(steps=steps)).vmem() > SCOPED_VMEM * 15 // 16:
        steps //= 2
    return steps


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recur(wx: Array, r: Array, b: Array, first: States, marks: Array | None, form: StepForm) -> States:
    kernel = partial(_forward, form=form)
    return on_platform({"tpu": kernel}, form.platform, wx, r, b, first, marks)


def _saved(wx: Array, r: Array, b: Array, first: States, marks: Array | None, form: StepForm) -> tuple[States, tuple]:
    after: Any = _recur(wx, r, b, first, marks, form)
    return after, (wx, r, b, first, marks, after)


def _pulled(form: StepForm, saved: tuple, given: States) -> tuple:
    wx, r, b, first, marks, after = saved
    kernel = partial(_backward, form=form)
    d_raw, *d_first = on_platform({"tpu": kernel}, form.platform, wx, r, b, first, marks, after, given)
    gates, D = form.cell.gates, r.shape[1]
    before = jnp.concatenate([first[0][None], after[0][:-1]])
    if marks is not None:
        before = jnp.where(marks[:, None, :, :1] > 0, 0.0, before)
    d_wx = d_raw[..., (gates.bias - gates.input) * D :].astype(wx.dtype)
    d_r = jnp.einsum("tnbd,tnbe->nde", before, d_raw[..., : gates.recurrent * D]).astype(r.dtype)
    d_b = jnp.stack(jnp.split(d_raw.sum((0, 2)), gates.bias, axis=-1))[:, :, None]
    return d_wx, d_r, d_b, tuple(d_first), None


_recur.defvjp(_saved, _pulled)


class StepGrid:
    """The operands of one grid: heads, tiles of the batch, chunks of time."""

    def __init__(self, sizes: StepSizes, form: StepForm, reverse: bool):
        self.sizes, self.form = sizes, form
        self.rows = sizes.B if sizes.B <= 16 else 16  # of one chunk; a divisor or not, rows do not meet
        self.chunks = pl.cdiv(sizes.T, form.steps)
        self.grid = (sizes.N, pl.cdiv(sizes.B, self.rows), self.chunks)
        self.time = (lambda t: self.chunks - 1 - t) if reverse else (lambda t: t)

    def timed(self, width: int, dtype: Any = jnp.float32) -> Operand:
        T, N, B, *_ = self.sizes
        block = (self.form.steps, None, self.rows, width)
        return Operand((T, N, B, width), dtype, block, lambda n, i, t: (self.time(t), n, i, 0))

    def edge(self) -> Operand:
        """The states of the step before the chunk (of the first chunk: any, they are not looked at)."""
        T, N, B, D, *_ = self.sizes
        index = lambda n, i, t: (jnp.maximum(self.time(t) * self.form.steps - 1, 0), n, i, 0)
        return Operand((T, N, B, D), jnp.float32, (None, None, self.rows, D), index)

    def state(self) -> Operand:
        _, N, B, D, *_ = self.sizes
        return Operand((N, B, D), jnp.float32, (None, self.rows, D), lambda n, i, t: (n, i, 0))

    def weights(self) -> tuple[Operand, Operand]:
        """R and b, which change with the head alone."""
        gates, D = self.form.cell.gates, self.sizes.D
        width = gates.recurrent * D
        r = Operand((self.sizes.N, D, width), self.sizes.r, (None, D, width), lambda n, i, t: (n, 0, 0))
        shape, block = (gates.bias, self.sizes.N, 1, D), (gates.bias, None, 1, D)
        return r, Operand(shape, jnp.float32, block, lambda n, i, t: (0, n, 0, 0))

    def marks(self) -> tuple[Operand, ...]:
        """Two columns for every row of the batch: to be emptied, to count."""
        T, _, B, *_ = self.sizes
        block, index = (self.form.steps, self.rows, 2), lambda n, i, t: (self.time(t), i, 0)
        return (Operand((T, B, 2), jnp.float32, block, index),) if self.sizes.marked else ()


def forward_launch(sizes: StepSizes, form: StepForm) -> Launch:
    """Wx, R, b, (marks,) the states before -> the states after every step."""
    place, S, D = StepGrid(sizes, form, reverse=False), form.cell.states, sizes.D
    inputs = (place.timed(form.cell.gates.input * D, sizes.wx), *place.weights(), *place.marks())
    inputs += (place.state(),) * S
    scratch = (((place.rows, D), jnp.float32),) * S
    body = partial(_forward_body, form=form, sizes=sizes)
    return Launch("recurrence", body, place.grid, inputs, (place.timed(D),) * S, scratch)


def backward_launch(sizes: StepSizes, form: StepForm) -> Launch:
    """Wx, R, b, (marks,) and for every state: before the first step, after every step, before the chunk, the cotangents
    of all; -> the cotangents of raw, and of the states before the first step."""
    place, S, D, gates = StepGrid(sizes, form, reverse=True), form.cell.states, sizes.D, form.cell.gates
    inputs = (place.timed(gates.input * D, sizes.wx), *place.weights(), *place.marks())
    inputs += (place.state(),) * S + (place.timed(D),) * S + (place.edge(),) * S + (place.timed(D),) * S
    scratch = (((place.rows, D), jnp.float32),) * S
    scratch += (((form.steps, place.rows, gates.recurrent * D), jnp.float32),)
    body = partial(_backward_body, form=form, sizes=sizes)
    outputs = (place.timed(gates.bias * D), *(place.state(),) * S)
    return Launch("recurrence_backward", body, place.grid, inputs, outputs, scratch)


def _forward(
    wx: Array, r: Array, b: Array, first: States, marks: Array | None, *, form: StepForm, interpret: bool
) -> States:
    sizes, form = _fitted(wx, r, marks, form)
    given = () if marks is None else (marks,)
    return forward_launch(sizes, form)(wx, r, b, *given, *first, interpret=interpret)


def _backward(
    wx: Array, r: Array, b: Array, first: States, marks: Array | None, after: States, given: States, *,
    form: StepForm, interpret: bool,
) -> tuple[Array, ...]:  # fmt: skip
    sizes, form = _fitted(wx, r, marks, form)
    facts = () if marks is None else (marks,)
    given = tuple(x.astype(jnp.float32) for x in given)
    return backward_launch(sizes, form)(wx, r, b, *facts, *first, *after, *after, *given, interpret=interpret)


def _fitted(wx: Array, r: Array, marks: Array | None, form: StepForm) -> tuple[StepSizes, StepForm]:
    T, N, B, _ = wx.shape
    sizes = StepSizes(T, N, B, r.shape[1], wx.dtype, r.dtype, marks is not None)
    return sizes, form._replace(steps=fitting_steps(sizes, form))


def _forward_body(*refs: Any, form: StepForm, sizes: StepSizes) -> None:
    S, t = form.cell.states, pl.program_id(2)
    (wx, r, b), marks = refs[:3], refs[3] if sizes.marked else None
    first, out, carry = refs[-3 * S : -2 * S], refs[-2 * S : -S], refs[-S:]

    @pl.when(t == 0)
    def _() -> None:
        for ref, start in zip(carry, first, strict=True):
            ref[...] = start[...]

    def step(i: Array, states: States) -> States:
        reset, valid = _marked(marks, i)
        states = _emptied(states, reset)
        raw = _raw(form, wx, b, i, _times(states[0], r))
        states = _kept(form.cell.pointwise(states, raw), states, valid)
        for ref, x in zip(out, states, strict=True):
            ref[i] = x
        return states

    last = lax.fori_loop(0, _live(t, form, sizes), step, tuple(ref[...] for ref in carry))
    for ref, x in zip(carry, last, strict=True):
        ref[...] = x


def _backward_body(*refs: Any, form: StepForm, sizes: StepSizes) -> None:
    S, t, chunks = form.cell.states, pl.program_id(2), pl.num_programs(2)
    (wx, r, b), marks = refs[:3], refs[3] if sizes.marked else None
    parts = refs[3 + sizes.marked :]
    first, after, edge, given = (parts[n * S : (n + 1) * S] for n in range(4))
    d_raw, *d_first = parts[4 * S : 5 * S + 1]
    carry, ry = parts[-S - 1 : -1], parts[-1]
    chunk, gates, D = chunks - 1 - t, form.cell.gates, sizes.D
    start = [jnp.where(chunk == 0, x[...], y[...]) for x, y in zip(first, edge, strict=True)]
    before = lambda ref, i, at_start: jnp.where(i == 0, at_start, ref[jnp.maximum(i - 1, 0)])

    @pl.when(t == 0)
    def _() -> None:
        for ref in carry:
            ref[...] = jnp.zeros_like(ref)

    # R h of the whole chunk at once: rows of step i are the states after step i - 1, and of step 0 come by themselves.
    steps, rows = ry.shape[:2]
    ry[...] = _times(after[0][...].reshape(steps * rows, D), r).reshape(ry.shape)

    def step(n: Array, behind: States) -> States:
        i = live - 1 - n
        reset, valid = _marked(marks, i)
        states = _emptied(tuple(before(ref, i, x) for ref, x in zip(after, start, strict=True)), reset)
        product_before = jnp.where(i == 0, at_start, ry[jnp.maximum(i - 1, 0)])
        if reset is not None:
            product_before = jnp.where(reset, 0.0, product_before)
        raw = _raw(form, wx, b, i, product_before)
        _, pull = jax.vjp(lambda s, x: _kept(form.cell.pointwise(s, x), s, valid), states, raw)
        ahead, gate = pull(tuple(x + ref[i] for x, ref in zip(behind, given, strict=True)))
        d_raw[i] = jnp.concatenate(gate, axis=-1)
        through = _times(jnp.concatenate(gate[: gates.recurrent], axis=-1), r, "nt")
        if form.clip is not None:
            through = jnp.clip(through, -form.clip, form.clip)
        return _emptied((ahead[0] + through, *ahead[1:]), reset)

    live, at_start = _live(chunk, form, sizes), _times(start[0], r)
    last = lax.fori_loop(0, live, step, tuple(ref[...] for ref in carry))
    for ref, x in zip(carry, last, strict=True):
        ref[...] = x

    @pl.when(t == chunks - 1)
    def _() -> None:
        for ref, x in zip(d_first, carry, strict=True):
            ref[...] = x[...]


def _live(chunk: Array, form: StepForm, sizes: StepSizes) -> Array | int:
    """How many steps of a chunk there are: fewer in the last."""
    return jnp.minimum(form.steps, sizes.T - chunk * form.steps) if sizes.T % form.steps else form.steps


def _times(x: Float[Array, "B M"], r: Any, contract: str = "k") -> Array:
    """A product with the recurrent matrices in their own type, summed in float32."""
    precision = lax.Precision.HIGHEST if r.dtype == jnp.float32 else lax.Precision.DEFAULT
    return product(x.astype(r.dtype), r[...], contract, precision)


def _raw(form: StepForm, wx: Any, b: Any, i: Array, ry: Float[Array, "B GrD"]) -> States:
    """`R h + Wx + b` of every gate, each term where it has one."""
    gates, D, raw = form.cell.gates, b.shape[-1], []
    skipped, x = gates.bias - gates.input, wx[i].astype(jnp.float32)
    for g in range(gates.bias):
        total = b[g] + ry[:, g * D : (g + 1) * D] if g < gates.recurrent else b[g]
        raw.append(total + x[:, (g - skipped) * D : (g - skipped + 1) * D] if g >= skipped else total)
    return tuple(raw)


def _marked(marks: Any, i: Array) -> tuple[Array | None, Array | None]:
    if marks is None:
        return None, None
    both = marks[i]
    return both[:, :1] > 0, both[:, 1:] > 0


def _emptied(states: States, reset: Array | None) -> States:
    return states if reset is None else tuple(jnp.where(reset, 0.0, x) for x in states)


def _kept(new: States, old: States, valid: Array | None) -> States:
    return new if valid is None else tuple(jnp.where(valid, x, y) for x, y in zip(new, old, strict=True))
