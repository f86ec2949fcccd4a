"""Gated linear attention (arXiv 2312.06635): a matrix state whose rows decay by gates, over whole sequences.

Of one head, `S_t = diag(exp g_t) S_{t-1} + k_t^T v_t` and `o_t = scale q_t S_t`: the gate comes before the new entry,
which its own step reads undecayed. `ops.gla_rows` has the form for the rows of a draft.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError, UnknownName, at_least
from paradec.ops import gla_chunk
from paradec.ops.recurrent import state_dtype

IMPLEMENTATIONS = ("auto", "recurrent", "chunk", "kernel")
SHORT = 16
"""Steps up to which "auto" runs the recurrence."""


def gla(
    q: Float[Array, "B T Q K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H K"],
    state: Float[Array, "B H K V"] | None = None,
    *,
    scale: float | None = None,
    implementation: str = "auto",
    chunk: int = 64,
    sub_chunk: int = 16,
    segment: Int[Array, "B T"] | None = None,
    valid: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B H K V"]]:
    """The outputs, in q's type, and the state after the last step, in float32 (float64 if q is), as all is inside.

    Time is axis 1 and heads are axis 2 of every array: arrays with the two exchanged may fit too, and are wrong. Key
    head h serves the queries h Q/H to (h + 1) Q/H - 1.

    Args:
        g: logarithms of the decays, at most 0 (-inf empties a row of the state). Numbers that are at hand are looked
            at (`check_gates`); under `jit` a gate above 0 makes states grow, and may overflow.
        state: what is before the first step. None: zeros.
        scale: factor on q; None: K ** -0.5.
        implementation: "recurrent" is a loop over time, which keeps all states for its gradient. "chunk" computes
            chunks with matrix products, in two levels, and keeps its inputs and a state a chunk. "kernel" is a Pallas
            kernel. "auto": the loop up to `SHORT` steps, and on a CPU if no gradient is taken; else a kernel where the
            program is compiled for a platform that has one, else chunks.
        chunk: steps of a chunk, a multiple of `sub_chunk`; a T that is no multiple is padded.
        segment: where the id differs from that of the step before, the state is zero before the step. The first step
            goes on from `state`, whatever its id.
        valid: which steps count. Others leave the state as it is, as if they were removed, also where ids are compared;
            their outputs are 0.

    Raises:
        UnknownName: another implementation.
        InputError: shapes that do not fit, a gate above 0, or "kernel" where there is none.
    """
    check_shapes(q, k, v, g, state, segment, valid)
    check_gates(g)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownName("implementation of gated linear attention", str(implementation), IMPLEMENTATIONS)
    at_least("chunk", chunk, at_least("sub_chunk", sub_chunk, 1))
    if chunk % sub_chunk:
        raise InputError(f"chunk must be a multiple of sub_chunk; they are {chunk} and {sub_chunk}.")
    dtype, (B, T, H, K) = state_dtype(q), k.shape
    first = jnp.zeros((B, H, K, v.shape[3]), dtype) if state is None else state.astype(dtype)
    if T == 0:
        return jnp.zeros((B, 0, q.shape[2], v.shape[3]), q.dtype), first
    scale = K**-0.5 if scale is None else scale
    if valid is not None:
        q, k, v, g = (jnp.where(valid[..., None, None], x, 0) for x in (q, k, v, g))
    wide = (q.astype(dtype) * scale, k.astype(dtype), v.astype(dtype), bounded(g.astype(dtype)))
    border = jnp.zeros((B, T), bool) if segment is None else borders(segment, valid)
    o, last = _chosen(implementation, T, chunk, sub_chunk)(*wide, first, border)
    return o.astype(q.dtype), last


def gla_step(
    q: Float[Array, "B Q K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    g: Float[Array, "B H K"],
    state: Float[Array, "B H K V"],
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "B Q V"], Float[Array, "B H K V"]]:
    """One step: the output in q's type, and the state after it in that of `state`."""
    dtype, (B, H, K) = state_dtype(q), k.shape
    wide = q.astype(dtype).reshape(B, H, -1, K) * (K**-0.5 if scale is None else scale)
    o, after = _step(state.astype(dtype), wide, *(x.astype(dtype) for x in (k, v, g)))
    return o.reshape(B, q.shape[1], -1).astype(q.dtype), after.astype(state.dtype)


def check_gates(g: Any) -> None:
    """Raise `InputError` where a gate is above 0 or no number. Traced gates have no values yet, and pass."""
    if isinstance(g, jax.core.Tracer):
        return
    values = np.asarray(g)
    wrong = np.argwhere(~(values <= 0))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise InputError(
            f"Gates are logarithms of decays, so at most 0; g{list(place)} is {float(values[place]):.4g}. "
            "Pass jax.nn.log_sigmoid of what a layer projects, divided by its normaliser."
        )


def check_shapes(q: Any, k: Any, v: Any, g: Any, state: Any, segment: Any, valid: Any) -> None:
    """Raise `InputError` where an operand of `gla` does not fit the keys."""
    if k.ndim != 4 or q.ndim != 4 or v.ndim != 4:
        raise InputError(f"q, k and v are [batch, time, heads, size]; these are {q.shape}, {k.shape} and {v.shape}.")
    B, T, H, K = k.shape
    if H == 0 or q.shape[2] % H or q.shape[2] == 0:
        raise InputError(f"The heads of q must be a multiple of the {H} of k; there are {q.shape[2]}.")
    wanted = {
        "q": (q, (B, T, q.shape[2], K)),
        "v": (v, (B, T, H, v.shape[3])),
        "g": (g, (B, T, H, K)),
        "state": (state, (B, H, K, v.shape[3])),
        "segment": (segment, (B, T)),
        "valid": (valid, (B, T)),
    }
    for name, (given, shape) in wanted.items():
        if given is not None and given.shape != shape:
            raise InputError(f"With k {k.shape} and v {v.shape}, {name} must be {shape}; it is {given.shape}.")


def bounded(g: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gates no lower than where `exp` is 0: no decay changes, and sums of gates keep their last digits."""
    return jnp.maximum(g, _floor(g.dtype))


def _floor(dtype: Any) -> float:
    return -750.0 if dtype == jnp.float64 else -120.0


def borders(segment: Int[Array, "B T"], valid: Bool[Array, "B T"] | None) -> Bool[Array, "B T"]:
    """Where a new segment begins: the id differs from that of the last valid step before, if there is one."""
    index = lax.broadcasted_iota(jnp.int32, segment.shape, 1)
    last = lax.cummax(index if valid is None else jnp.where(valid, index, -1), axis=1)
    last = jnp.pad(last, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    before = jnp.take_along_axis(segment, jnp.maximum(last, 0), axis=1)
    found = (last >= 0) & (segment != before)
    return found if valid is None else found & valid


# Each form takes q "B T Q K" (scaled), k, v, g, the state and the borders "B T", all wide.


def _chosen(implementation: str, T: int, chunk: int, sub_chunk: int) -> Any:
    sizes = (chunk, sub_chunk)
    if implementation == "recurrent" or (implementation == "auto" and T <= SHORT):
        return _recurrent
    if implementation == "chunk":
        return partial(_chunked, sizes)
    if implementation == "auto":
        return partial(_auto, sizes)
    if not _kernels():
        raise InputError('This installation has no kernel for gated linear attention; use "auto" or "chunk".')
    return partial(_by_kernel, sizes, None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _auto(sizes: tuple[int, int], *operands: Array) -> tuple[Array, Array]:
    """On a CPU the loop was the fastest at every length measured, and with a gradient, for which it keeps all states,
    chunks were."""
    return lax.platform_dependent(*operands, cpu=_recurrent, **_on_accelerators(sizes))


def _auto_forward(sizes: tuple[int, int], *operands: Array) -> tuple[tuple[Array, Array], Any]:
    *numbers, border = operands
    form = lambda *numbers: lax.platform_dependent(*numbers, border, **_on_accelerators(sizes))
    return jax.vjp(form, *numbers)


def _auto_backward(sizes: tuple[int, int], pull: Any, given: tuple[Array, Array]) -> tuple:
    return (*pull(given), None)


_auto.defvjp(_auto_forward, _auto_backward)


def _on_accelerators(sizes: tuple[int, int]) -> dict[str, Any]:
    kernel = {"tpu": partial(_by_kernel, sizes, "tpu")} if _kernels() else {}
    return kernel | {"default": partial(_chunked, sizes)}


def _kernels() -> ModuleType | None:
    """Imported when it is first asked for: not every program pays for Pallas, nor does every machine have it."""
    try:
        from paradec.ops.kernels import gla as kernels
    except ImportError:
        return None
    return kernels


def _by_kernel(
    sizes: tuple[int, int], platform: str | None, q: Array, k: Array, v: Array, g: Array, state: Array, border: Array
) -> tuple[Array, Array]:
    """A kernel knows one query a key, and no borders: there the gate takes all that a state of numbers holds."""
    kernels, group, (chunk, sub_chunk) = _kernels(), q.shape[2] // k.shape[2], sizes
    g = jnp.where(border[..., None, None], _floor(g.dtype), g)
    if group > 1:
        k, v, g, state = (jnp.repeat(x, group, axis=i) for x, i in ((k, 2), (v, 2), (g, 2), (state, 1)))
    o, state = kernels.gla(q, k, v, g, state, scale=1.0, chunk=chunk, sub_chunk=sub_chunk, platform=platform)
    return o, state[:, ::group]


def _recurrent(
    q: Array, k: Array, v: Array, g: Array, state: Array, border: Array
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B H K V"]]:
    """Step after step."""
    B, T, H, K = k.shape

    def step(state: Array, each: tuple) -> tuple[Array, Array]:
        *now, border = each
        o, state = _step(jnp.where(border[:, None, None, None], 0, state), *now)
        return state, o

    over_time = (q.reshape(B, T, H, -1, K), k, v, g, border)
    state, o = lax.scan(step, state, tuple(x.swapaxes(0, 1) for x in over_time))
    return o.swapaxes(0, 1).reshape(B, T, q.shape[2], -1), state


def _step(
    state: Float[Array, "B H K V"],
    q: Float[Array, "B H G K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    g: Float[Array, "B H K"],
) -> tuple[Float[Array, "B H G V"], Float[Array, "B H K V"]]:
    state = jnp.exp(g)[..., None] * state + k[..., None] * v[:, :, None]
    return jnp.einsum("bhgk,bhkv->bhgv", q, state, precision=lax.Precision.HIGHEST), state


def _chunked(
    sizes: tuple[int, int], q: Array, k: Array, v: Array, g: Array, state: Array, border: Array
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B H K V"]]:
    """Chunk after chunk. A short sequence is one chunk of as few sub-chunks as it needs; the rest are zeros."""
    B, T, H, K = k.shape
    chunk, c = sizes[0], min(sizes[1], T)
    C = min(chunk, -(-T // c) * c)
    n = -(-T // C)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, n * C - T)) + ((0, 0),) * (x.ndim - 2))
    heads = lambda x: pad(x).reshape(B, n, C, H, -1).transpose(1, 0, 3, 2, 4)
    queries = pad(q).reshape(B, n, C, H, -1, K).transpose(1, 0, 3, 4, 2, 5)
    edges = pad(border).reshape(B, n, C).swapaxes(0, 1)
    x = gla_chunk.Inputs(queries, heads(k), heads(v), heads(g), edges)
    o, state = cast(Any, gla_chunk.run(c, x, state))
    o = o.transpose(1, 0, 4, 2, 3, 5).reshape(B, n * C, q.shape[2], -1)
    return o[:, :T], state
