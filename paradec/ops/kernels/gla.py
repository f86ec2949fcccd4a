"""Gated linear attention as Pallas TPU kernels, forward and backward: `S_t = diag(e^{g_t}) S_{t-1} + k_t^T v_t`,
`o_t = scale * q_t S_t` (2312.06635; the arithmetic is in `gla_chunk`).

The state [K, V] of a head stays in VMEM over all of time, so q, k, v and g are read once. Where a gradient is taken,
the forward pass also writes the state before every block of rows (one matrix for some 256 rows); the backward pass
walks the blocks from the last to the first, rebuilds the states of a block's chunks from that one, and so reads
everything once too. Recomputing these states from the inputs in a pass of its own would read k, v and g once more and
save nothing but that memory, which `jax.checkpoint` around the layer saves as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from paradec.errors import InputError
from paradec.ops.kernels import gla_chunk as chunk
from paradec.ops.kernels import gla_gpu, table
from paradec.ops.kernels.launch import SCOPED_VMEM, Launch, Operand, on_platform, tiled

Heads = Float[Array, "B T H _"]


class GlaForm(NamedTuple):
    """What is static. `blocks` None: those of the stored table. `rows` of a block follow from them and from VMEM."""

    scale: float
    chunk: int = 64
    sub_chunk: int = 16
    platform: str | None = None
    blocks: table.Blocks | None = None
    rows: int = 0


def gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H K"],
    state: Float[Array, "B H K V"] | None = None,
    *,
    scale: float | None = None,
    chunk: int = 64,
    sub_chunk: int = 16,
    platform: str | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The outputs, in q's type, and the state after the last row, float32.

    `g <= 0` is the log of the decay, applied before the row's own key and value are added, so that row t sees its own
    undecayed. `scale` None is K^-1/2. `platform` as in `kernels.scan`. Differentiable once. Raises `InputError` with
    what `refusal` says.
    """
    B, _, H, K = q.shape
    if sentence := refusal(q.shape, v.shape, platform or "cpu", chunk, sub_chunk):
        raise InputError(sentence)
    state = jnp.zeros((B, H, K, v.shape[-1]), jnp.float32) if state is None else state.astype(jnp.float32)
    form = GlaForm(K**-0.5 if scale is None else scale, chunk, sub_chunk, platform)
    result: Any = attend(q, k, v, g, state, form)  # custom_vjp hides the types
    return result


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(q: Heads, k: Heads, v: Heads, g: Heads, state: Array, form: GlaForm) -> tuple[Heads, Array]:
    """`gla` with everything static in one argument."""
    o, end = _forward(q, k, v, g, state, form, False)
    return o, end


def _forward(q: Heads, k: Heads, v: Heads, g: Heads, state: Array, form: GlaForm, save: bool) -> tuple[Array, ...]:
    sizes, form = fitted(q, k, v, g, form)
    kernels = {"tpu": partial(_tpu_forward, form=form, save=save)}
    if gla_gpu.refusal(sizes.K, sizes.V) is None:
        kernels["gpu"] = partial(_gpu_forward, form=form, save=save)
    return on_platform(kernels, form.platform, q, k, v, g, state)


def _saved(q: Heads, k: Heads, v: Heads, g: Heads, state: Array, form: GlaForm) -> tuple[Any, Any]:
    o, end, *states = _forward(q, k, v, g, state, form, True)
    return (o, end), (q, k, v, g, state, end, *states)


def _backward(form: GlaForm, saved: Any, push: tuple[Array, Array]) -> tuple[Array, ...]:
    sizes, form = fitted(*saved[:4], form)
    kernels = {"tpu": partial(_tpu_backward, form=form)}
    if gla_gpu.refusal(sizes.K, sizes.V) is None:
        kernels["gpu"] = partial(_gpu_backward, form=form)
    return on_platform(kernels, form.platform, *saved, *push)


attend.defvjp(_saved, _backward)


def refusal(q: Sequence[int], v: Sequence[int], platform: str, chunk: int = 64, sub_chunk: int = 16) -> str | None:
    """Why there is no kernel for q and v of these shapes ("B T H K", "B T H V"), as a sentence; None where there is."""
    if platform not in ("tpu", "gpu", "cpu"):
        return f"There is no GLA kernel for {platform}, only for TPUs and GPUs; use implementation='chunk'."
    if 0 in (*q, *v):
        return (
            f"The GLA kernel takes no empty arrays; q is {tuple(q)} and v {tuple(v)}. Use implementation='recurrent'."
        )
    if sub_chunk % 8 or chunk % sub_chunk:
        return f"The GLA kernel takes chunks of whole sub-chunks of a multiple of 8 rows, not {chunk} of {sub_chunk}."
    if platform == "gpu":
        return gla_gpu.refusal(q[-1], v[-1])
    if not fitting_rows(GlaSizes(*q, v[-1]), GlaForm(1.0, chunk, sub_chunk)):
        return (
            f"The GLA kernel's state of {q[-1]} x {v[-1]} does not fit VMEM; use implementation='chunk' or more heads."
        )
    return None


class GlaTypes(NamedTuple):
    """Of q, k, v and g. Outputs and their cotangents are of q's."""

    q: Any
    k: Any
    v: Any
    g: Any

    @property
    def precision(self) -> lax.Precision:
        """Of products with q, k and v: those of bfloat16 numbers need one pass of the matrix unit, others six."""
        narrow = all(jnp.dtype(x).itemsize == 2 for x in (self.q, self.k, self.v))
        return lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST


class GlaSizes(NamedTuple):
    """Batch, time, heads, width of a key, width of a value."""

    B: int
    T: int
    H: int
    K: int
    V: int


WIDE = GlaTypes(jnp.float32, jnp.float32, jnp.float32, jnp.float32)


def fitting_rows(sizes: GlaSizes, form: GlaForm, types: GlaTypes = WIDE) -> int:
    """Rows a block, a multiple of the chunk: the greatest, up to the table's, whose backward pass fits VMEM, 0 if not
    even one chunk does. For values in between the compiler takes up to eight states' worth."""
    most = SCOPED_VMEM * 15 // 16 - 8 * tiled((sizes.K, sizes.V), 4)
    rows = table.blocks("gla", "tpu", form.blocks if form.platform != "gpu" else None)["rows"]
    tries = max(1, min(rows, sizes.T + form.chunk - 1) // form.chunk)
    for n in range(tries, 0, -1):
        if backward_launch(sizes, form._replace(rows=n * form.chunk), types).vmem() <= most:
            return n * form.chunk
    return 0


class HeadLayout:
    """How a head's rows are cut out of "B T H W".

    Where W is whole tiles of 128 lanes, from "B T (H W)", which is what the projection before has written: no copy.
    Else from "B H T W", which costs one.
    """

    def __init__(self, sizes: GlaSizes, rows: int, reverse: bool):
        self.sizes, self.rows, self.steps = sizes, rows, pl.cdiv(sizes.T, rows)
        self.packed = sizes.H == 1 or not (sizes.K % 128 or sizes.V % 128)
        self.time = (lambda t: self.steps - 1 - t) if reverse else (lambda t: t)

    def operand(self, width: int, dtype: Any) -> Operand:
        B, T, H, *_ = self.sizes
        if self.packed:
            return Operand((B, T, H * width), dtype, (None, self.rows, width), lambda b, h, t: (b, self.time(t), h))
        return Operand((B, H, T, width), dtype, (None, None, self.rows, width), lambda b, h, t: (b, h, self.time(t), 0))

    def state(self) -> Operand:
        B, _, H, K, V = self.sizes
        return Operand((B, H, K, V), jnp.float32, (None, None, K, V), lambda b, h, t: (b, h, 0, 0))

    def states(self) -> Operand:
        """The state before every block."""
        B, _, H, K, V = self.sizes
        block, index = (None, None, None, K, V), lambda b, h, t: (b, h, self.time(t), 0, 0)
        return Operand((B, H, self.steps, K, V), jnp.float32, block, index)

    def inside(self, x: Heads) -> Array:
        return x.reshape(*x.shape[:2], -1) if self.packed else jnp.swapaxes(x, 1, 2)

    def outside(self, x: Array) -> Heads:
        return x.reshape(*x.shape[:2], self.sizes.H, -1) if self.packed else jnp.swapaxes(x, 1, 2)


def forward_launch(sizes: GlaSizes, form: GlaForm, types: GlaTypes, save: bool) -> Launch:
    """Grid (batch, heads, blocks of rows): q, k, v, g, S -> o, S and, to be saved, the state before every block."""
    B, T, H, K, V = sizes
    place = HeadLayout(sizes, form.rows, reverse=False)
    body = partial(_forward_body, T=T, form=form, precision=types.precision)
    inputs = (*_key_value_gate(place, types), place.state())
    outputs = (place.operand(V, types.q), place.state()) + ((place.states(),) if save else ())
    return Launch("gla", body, (B, H, place.steps), inputs, outputs, (((K, V), jnp.float32),))


def backward_launch(sizes: GlaSizes, form: GlaForm, types: GlaTypes) -> Launch:
    """The same grid, from the last block to the first: q, k, v, g, the saved states, do, dS -> dq, dk, dv, dg, dS."""
    B, T, H, K, V = sizes
    place = HeadLayout(sizes, form.rows, reverse=True)
    body = partial(_backward_body, T=T, form=form, precision=types.precision)
    scratch = (((K, V), jnp.float32), ((form.rows // form.chunk + 1, K, V), jnp.float32))
    parts = _key_value_gate(place, types)
    inputs = (*parts, place.states(), place.operand(V, types.q), place.state())
    return Launch("gla_backward", body, (B, H, place.steps), inputs, (*parts, place.state()), scratch)


def _key_value_gate(place: HeadLayout, types: GlaTypes) -> tuple[Operand, ...]:
    K, V = place.sizes.K, place.sizes.V
    return tuple(place.operand(width, kind) for width, kind in zip((K, K, V, K), types, strict=True))


def _chunk_of(refs: Sequence[Any], m: Array, base: Array, T: int, form: GlaForm) -> list[Array]:
    """The m-th chunk of a block, in float32. Rows behind the end hold anything: as zeros they leave the state alone."""
    at = pl.ds(pl.multiple_of(m * form.chunk, form.chunk), form.chunk)
    parts = [ref[at].astype(jnp.float32) for ref in refs]
    if T % form.rows:
        row = lambda x: base + m * form.chunk + lax.broadcasted_iota(jnp.int32, x.shape, 0)
        parts = [jnp.where(row(x) < T, x, 0.0) for x in parts]
    return parts


def _forward_body(*refs: Any, T: int, form: GlaForm, precision: Any) -> None:
    (q, k, v, g, start), (o, end, *saved), S = refs[:5], refs[5:-1], refs[-1]
    t = pl.program_id(2)

    @pl.when(t == 0)
    def _() -> None:
        S[...] = start[...]

    for ref in saved:
        ref[...] = S[...]

    def one(m: Array, _: None) -> None:
        Q, K, V, G = _chunk_of((q, k, v, g), m, t * form.rows, T, form)
        b = chunk.cumulative(G)
        at = pl.ds(pl.multiple_of(m * form.chunk, form.chunk), form.chunk)
        out = chunk.outputs(Q, K, V, b, S[...], form.sub_chunk, precision)
        o[at] = (form.scale * out).astype(o.dtype)
        S[...] = chunk.after(S[...], K, V, b, precision)

    lax.fori_loop(0, form.rows // form.chunk, one, None)

    @pl.when(t == pl.num_programs(2) - 1)
    def _() -> None:
        end[...] = S[...]


def _backward_body(*refs: Any, T: int, form: GlaForm, precision: Any) -> None:
    (q, k, v, g, saved, do, dend), (dq, dk, dv, dg, dstart, dS, states) = refs[:7], refs[7:]
    t, steps, number = pl.program_id(2), pl.num_programs(2), form.rows // form.chunk
    base = (steps - 1 - t) * form.rows

    @pl.when(t == 0)
    def _() -> None:
        dS[...] = dend[...]

    states[0] = saved[...]

    def rebuild(m: Array, _: None) -> None:
        K, V, G = _chunk_of((k, v, g), m, base, T, form)
        states[m + 1] = chunk.after(states[m], K, V, chunk.cumulative(G), precision)

    lax.fori_loop(0, number, rebuild, None)

    def one(i: Array, _: None) -> None:
        m = number - 1 - i
        Q, K, V, G, D = _chunk_of((q, k, v, g, do), m, base, T, form)
        b, D = chunk.cumulative(G), form.scale * D
        *parts, dS[...] = chunk.cotangents(
            Q, K, V, b, states[m], states[m + 1], D, dS[...], form.sub_chunk, precision
        )  # fmt: skip
        at = pl.ds(pl.multiple_of(m * form.chunk, form.chunk), form.chunk)
        for ref, part in zip((dq, dk, dv, dg), parts, strict=True):
            ref[at] = part.astype(ref.dtype)

    lax.fori_loop(0, number, one, None)

    @pl.when(t == steps - 1)
    def _() -> None:
        dstart[...] = dS[...]


def fitted(q: Heads, k: Heads, v: Heads, g: Heads, form: GlaForm) -> tuple[GlaSizes, GlaForm]:
    """The sizes, and the form with a chunk no longer than the text and as many rows a block as fit."""
    sizes, types = GlaSizes(*q.shape, v.shape[-1]), GlaTypes(*(x.dtype for x in (q, k, v, g)))
    short = -(-sizes.T // form.sub_chunk) * form.sub_chunk
    form = form._replace(chunk=min(form.chunk, short))
    return sizes, form._replace(rows=fitting_rows(sizes, form, types) or form.chunk)


def _tpu_forward(
    q: Heads, k: Heads, v: Heads, g: Heads, state: Array, *, form: GlaForm, save: bool, interpret: bool
) -> tuple[Array, ...]:
    sizes, types = GlaSizes(*q.shape, v.shape[-1]), GlaTypes(*(x.dtype for x in (q, k, v, g)))
    place = HeadLayout(sizes, form.rows, reverse=False)
    parts = [place.inside(x) for x in (q, k, v, g)]
    o, *rest = forward_launch(sizes, form, types, save)(*parts, state, interpret=interpret)
    return place.outside(o), *rest


def _tpu_backward(
    q: Heads, k: Heads, v: Heads, g: Heads, _start: Array, _end: Array, states: Array, do: Heads, dend: Array,
    *, form: GlaForm, interpret: bool,
) -> tuple[Array, ...]:  # fmt: skip
    sizes, types = GlaSizes(*q.shape, v.shape[-1]), GlaTypes(*(x.dtype for x in (q, k, v, g)))
    place = HeadLayout(sizes, form.rows, reverse=True)
    *parts, do = (place.inside(x) for x in (q, k, v, g, do))
    *grads, dstart = backward_launch(sizes, form, types)(*parts, states, do, dend, interpret=interpret)
    return *(place.outside(d) for d in grads), dstart


def _gpu_forward(
    q: Heads, k: Heads, v: Heads, g: Heads, state: Array, *, form: GlaForm, save: bool, interpret: bool
) -> tuple[Array, ...]:
    """Of the states before every block a GPU's backward pass reads none; as zeros that nobody reads they vanish."""
    result = gla_gpu.forward(q, k, v, g, state, form.scale, form.blocks, interpret)
    steps = pl.cdiv(q.shape[1], form.rows)
    unread = jnp.zeros((*state.shape[:2], steps, *state.shape[2:]), jnp.float32)
    return (*result, unread) if save else result


def _gpu_backward(
    q: Heads, k: Heads, v: Heads, g: Heads, start: Array, end: Array, _states: Array, do: Heads, dend: Array,
    *, form: GlaForm, interpret: bool,
) -> tuple[Array, ...]:  # fmt: skip
    return gla_gpu.backward(q, k, v, g, start, end, do, dend, form.scale, form.blocks, interpret)
