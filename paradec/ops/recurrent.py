"""Recurrences with recurrent matrices, step by step over time: the FlashRNN family (arXiv 2412.07752, equations 1-3).

Every step is `raw = R h + Wx + b`, one small matrix product a head, and a pointwise function of the states and of raw.
No scan over time is parallel here: the states before a step must be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError
from paradec.ops.scan_inputs import borders

States = tuple[Array, ...]


class Gates(NamedTuple):
    """How many gates read the state, the input and a bias. They overlap: of `bias` gates in all, the first `recurrent`
    read the state and the last `input` read the input."""

    recurrent: int
    input: int
    bias: int


class Pointwise(Protocol):
    """What is different from cell to cell. A cell is static (hashable, compared by value); state 0 is the output h."""

    states: int
    gates: Gates

    def pointwise(self, states: States, raw: States) -> States:
        """The states after one step, elementwise, from those before and `gates.bias` pre-activations."""
        ...


def flash_rnn(
    wx: Float[Array, "B T Gi N D"],
    r: Float[Array, "Gr N D D"],
    b: Float[Array, "Gb N D"],
    states: Float[Array, "S B 1 N D"] | None = None,
    *,
    cell: Pointwise,
    unroll: int = 1,
    gradient_clip: float | None = None,
    segment: Int[Array, "B T"] | None = None,
    valid: Bool[Array, "B T"] | None = None,
    implementation: str = "scan",
) -> tuple[Float[Array, "S B T N D"], Float[Array, "S B 1 N D"]]:
    """The states after every step, and after the last one, of N independent heads of size D; at least float32.

    `wx` are projected inputs, `r[g, n]` is the (out, in) matrix of a gate in a head, `states` what is before the first
    step (None: zeros). Where `valid` is False the states pass as they are. Where `segment` differs from that of the
    valid position before, the states before the step are zeros; the first one continues from `states`. `gradient_clip`
    bounds every element of the gradient that reaches h through R, and nothing else. `unroll` steps are one turn of the
    loop. `implementation` is "scan", or "kernel" (`ops.kernels.recurrent`).

    The backward pass stores the states alone: it recomputes raw for all steps in one product, goes through the steps in
    reverse, and takes the gradient of R from all steps in one product. Raises `InputError` for shapes that do not fit.
    """
    check_shapes(wx, r, b, states, cell, segment, valid)
    B, T, _, N, D = wx.shape
    dtype = state_dtype(wx)
    if states is None:
        states = jnp.zeros((cell.states, B, 1, N, D), dtype)
    first = tuple(x[:, 0].swapaxes(0, 1).astype(dtype) for x in states)
    inputs = wx.transpose(1, 3, 0, 2, 4).reshape(T, N, B, cell.gates.input * D)  # heads lead: a step is one product
    matrix = r.transpose(1, 3, 0, 2).reshape(N, D, -1)  # "N in Gr*out"
    timed = lambda x: None if x is None else x.T
    begins = jax.vmap(lambda segment, valid: borders(segment, valid, reverse=False), out_axes=1)
    facts = (begins(segment, valid) if segment is not None and T else None, timed(valid))
    after = _chosen(implementation)(cell, unroll, gradient_clip, inputs, matrix, b[:, :, None], first, facts)
    every = jnp.stack([x.transpose(2, 0, 1, 3) for x in after])
    last = every[:, :, -1:] if T else states.astype(dtype)
    return every, last


def state_dtype(x: Array) -> Any:
    """The type of the states of a recurrence on inputs x: float32, or float64 where they are."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def raw_gates(gates: Gates, ry: Sequence[Array], wx: Sequence[Array], b: Sequence[Array]) -> States:
    """`R h + Wx + b` of every gate, each term where it has one; arrays that broadcast, one a gate."""
    skipped, raw = gates.bias - gates.input, []
    for g in range(gates.bias):
        total = ry[g] + b[g] if g < gates.recurrent else b[g]
        raw.append(total + wx[g - skipped] if g >= skipped else total)
    return tuple(raw)


def check_shapes(wx: Any, r: Any, b: Any, states: Any, cell: Pointwise, segment: Any, valid: Any) -> None:
    """Raise `InputError` where an operand of `flash_rnn` does not fit the cell or the others."""
    if wx.ndim != 5:
        raise InputError(f"Projected inputs are [batch, time, gates, heads, head size]; these are {wx.shape}.")
    B, T, _, N, D = wx.shape
    g, name = cell.gates, type(cell).__name__
    wanted = {
        "wx": (wx, (B, T, g.input, N, D)),
        "r": (r, (g.recurrent, N, D, D)),
        "b": (b, (g.bias, N, D)),
        "states": (states, (cell.states, B, 1, N, D)),
        "segment": (segment, (B, T)),
        "valid": (valid, (B, T)),
    }
    for what, (given, shape) in wanted.items():
        if given is not None and given.shape != shape:
            raise InputError(f"A {name} cell on wx {wx.shape} needs {what} of shape {shape}; it is {given.shape}.")


def _chosen(implementation: str) -> Any:
    if implementation == "scan":
        return _scan
    if implementation != "kernel":
        raise InputError(f'implementation={implementation!r} of a recurrence is neither "scan" nor "kernel".')
    try:
        from paradec.ops.kernels import recurrent as kernels
    except ImportError as e:
        raise InputError('There is no kernel for recurrences in this installation; use implementation="scan".') from e
    return kernels.recur


# The scan itself has time first, then heads, so that a step is one batched product: wx "T N B Gi*D", r "N D Gr*D"
# (in, gates and out), b "Gb N 1 D", states "N B D" each, facts (where to reset, what is valid) "T B" or None.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(
    cell: Pointwise, unroll: int, clip: float | None, wx: Array, r: Array, b: Array, first: States, facts: tuple
) -> States:
    """The states after every step, "T N B D" each."""
    dtype = first[0].dtype

    def step(states: States, each: tuple) -> tuple[States, States]:
        x, (reset, valid) = each
        states = _emptied(states, reset)
        ry = _split(_product("nbd,nde->nbe", states[0], r), cell.gates.recurrent)
        raw = raw_gates(cell.gates, ry, _split(x.astype(dtype), cell.gates.input), list(b.astype(dtype)))
        after = _kept(cell.pointwise(states, raw), states, valid)
        return after, after

    return lax.scan(step, first, (wx, facts), unroll=unroll)[1]


def _forward(
    cell: Pointwise, unroll: int, clip: float | None, wx: Array, r: Array, b: Array, first: States, facts: tuple
) -> tuple[States, tuple]:
    after: Any = _scan(cell, unroll, clip, wx, r, b, first, facts)
    return after, (wx, r, b, first, facts, after)


def _backward(cell: Pointwise, unroll: int, clip: float | None, saved: tuple, given: States) -> tuple:
    """What a reversed scan through the pointwise functions finds, and products over all steps for R."""
    wx, r, b, first, facts, after = saved
    gates, dtype = cell.gates, first[0].dtype
    before = tuple(jnp.concatenate([x[None], y])[: len(wx)] for x, y in zip(first, after, strict=True))
    before = _emptied(before, facts[0])
    ry = _split(_product("tnbd,nde->tnbe", before[0], r), gates.recurrent)
    raw = raw_gates(gates, ry, _split(wx.astype(dtype), gates.input), list(b.astype(dtype)[:, None]))

    def step(behind: States, each: tuple) -> tuple[States, Array]:
        own, states, raw, (reset, valid) = each
        total = jax.tree.map(jnp.add, behind, own)
        _, pull = jax.vjp(lambda s, x: _kept(cell.pointwise(s, x), s, valid), states, raw)
        ahead, gate = pull(total)
        through = _product("nbe,nde->nbd", jnp.concatenate(gate[: gates.recurrent], axis=-1), r)
        if clip is not None:
            through = jnp.clip(through, -clip, clip)
        return _emptied((ahead[0] + through, *ahead[1:]), reset), jnp.concatenate(gate, axis=-1)

    zeros = jax.tree.map(jnp.zeros_like, first)
    d_first, d_raw = lax.scan(step, zeros, (given, before, raw, facts), reverse=True, unroll=unroll)
    D = first[0].shape[-1]
    d_wx = d_raw[..., (gates.bias - gates.input) * D :].astype(wx.dtype)
    d_r = jnp.einsum("tnbd,tnbe->nde", before[0], d_raw[..., : gates.recurrent * D]).astype(r.dtype)
    d_b = jnp.stack(_split(d_raw.sum((0, 2)), gates.bias))[:, :, None].astype(b.dtype)
    return d_wx, d_r, d_b, d_first, None


_scan.defvjp(_forward, _backward)


def _product(subscripts: str, x: Array, r: Array) -> Array:
    """A product with the recurrent matrices in their own type, summed and returned in that of the states."""
    return jnp.einsum(subscripts, x.astype(r.dtype), r, preferred_element_type=x.dtype)


def _split(x: Array, parts: int) -> list[Array]:
    """The gates that stand one after the other on the last axis."""
    return jnp.split(x, parts, axis=-1)


def _emptied(states: States, reset: Array | None) -> States:
    """Zeros where a segment begins; states "… N B D", reset "… B"."""
    if reset is None:
        return states
    return tuple(jnp.where(reset[..., None, :, None], 0, x) for x in states)


def _kept(new: States, old: States, valid: Array | None) -> States:
    """The new states where the step is valid."""
    if valid is None:
        return new
    return tuple(jnp.where(valid[..., None, :, None], x, y) for x, y in zip(new, old, strict=True))
