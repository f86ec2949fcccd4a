"""Gated linear attention (arXiv 2312.06635): a matrix state whose rows decay by gates, over whole sequences.

Of one head, `S_t = diag(exp g_t) S_{t-1} + k_t^T v_t` and `o_t = scale q_t S_t`: the gate comes before the new entry,
which its own step reads undecayed. `ops.gla_rows` has the form for the rows of a draft.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError, UnknownName, at_least
from paradec.ops.gla_chunk import Form, bounded, chunked, floor
from paradec.ops.recurrent import state_dtype
from paradec.ops.scan_inputs import borders

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
    if valid is not None:
        q, k, v, g = (jnp.where(valid[..., None, None], x, 0) for x in (q, k, v, g))
    border = (
        jnp.zeros((B, T), bool)
        if segment is None
        else borders(segment.T, None if valid is None else valid.T, reverse=False).T
    )
    form = Form(K**-0.5 if scale is None else scale, chunk, sub_chunk)
    return _chosen(implementation, form, q, v)(q, k, v, g, first, border)


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


# Each form takes q, k, v and g as they are given, the state, wide, and the borders "B T"; and a `Form`.


def _chosen(implementation: str, form: Form, q: Array, v: Array) -> Any:
    if implementation == "recurrent" or (implementation == "auto" and q.shape[1] <= SHORT):
        return partial(_recurrent, form)
    if implementation == "chunk":
        return partial(chunked, form)
    if implementation == "auto":
        return partial(_auto, form)
    if refusal := _refusal(form, "tpu", q, v):
        raise InputError(refusal)
    return partial(_by_kernel, form, None)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _auto(form: Form, *operands: Array) -> tuple[Array, Array]:
    """On a CPU the loop was the fastest at every length measured, and with a gradient, for which it keeps all states,
    chunks were."""
    return lax.platform_dependent(*operands, cpu=partial(_recurrent, form), **_with_gradient(form, *operands))


def _auto_forward(form: Form, *operands: Array) -> tuple[tuple[Array, Array], Any]:
    *numbers, border = operands
    forms = _with_gradient(form, *operands)
    return jax.vjp(lambda *numbers: lax.platform_dependent(*numbers, border, **forms), *numbers)


def _auto_backward(form: Form, pull: Any, given: tuple[Array, Array]) -> tuple:
    return (*pull(given), None)


_auto.defvjp(_auto_forward, _auto_backward)


def _with_gradient(form: Form, q: Array, k: Array, v: Array, *rest: Array) -> dict[str, Any]:
    """A kernel for every platform that has one, and chunks."""
    kernels = {"tpu": "tpu", "cuda": "gpu"}
    found = {
        theirs: partial(_by_kernel, form, ours) for theirs, ours in kernels.items() if not _refusal(form, ours, q, v)
    }
    return found | {"default": partial(chunked, form)}


def _refusal(form: Form, platform: str, q: Array, v: Array) -> str | None:
    """Why no kernel computes this on a platform, or None."""
    try:
        kernels = _kernels()
    except ImportError:
        return 'This installation has no kernels of gated linear attention; use implementation="auto" or "chunk".'
    if state_dtype(q) != jnp.float32:
        return 'The kernels of gated linear attention have float32 states; use implementation="chunk" for float64.'
    return kernels.refusal(q.shape, (*q.shape[:3], v.shape[3]), platform, form.chunk, form.sub_chunk)


def _kernels() -> ModuleType:
    """Imported when they are first asked for: not every program pays for Pallas, nor does every machine have it."""
    from paradec.ops.kernels import gla as kernels

    return kernels


def _by_kernel(
    form: Form, platform: str | None, q: Array, k: Array, v: Array, g: Array, state: Array, border: Array
) -> tuple[Array, Array]:
    """A kernel knows one query a key, and no borders: there the gate takes all that a state of numbers holds."""
    group = q.shape[2] // k.shape[2]
    g = bounded(jnp.where(border[..., None, None], floor(g.dtype), g))
    if group > 1:
        k, v, g, state = (jnp.repeat(x, group, axis=i) for x, i in ((k, 2), (v, 2), (g, 2), (state, 1)))
    sizes = dict(scale=form.scale, chunk=form.chunk, sub_chunk=form.sub_chunk)
    o, state = _kernels().gla(q, k, v, g, state, **sizes, platform=platform)
    return o, state[:, ::group]


def _recurrent(
    form: Form, q: Array, k: Array, v: Array, g: Array, state: Array, border: Array
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B H K V"]]:
    """Step after step."""
    (B, T, H, K), dtype = k.shape, state.dtype

    def step(state: Array, each: tuple) -> tuple[Array, Array]:
        q, k, v, g, border = each
        o, state = _step(jnp.where(border[:, None, None, None], 0, state), q * form.scale, k, v, g)
        return state, o

    over_time = (q.reshape(B, T, H, -1, K), k, v, g)
    over_time = (*(x.astype(dtype).swapaxes(0, 1) for x in over_time), border.T)
    state, o = lax.scan(step, state, over_time)
    return o.swapaxes(0, 1).reshape(B, T, q.shape[2], -1).astype(q.dtype), state


def _step(
    state: Float[Array, "B H K V"],
    q: Float[Array, "B H G K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    g: Float[Array, "B H K"],
) -> tuple[Float[Array, "B H G V"], Float[Array, "B H K V"]]:
    state = jnp.exp(g)[..., None] * state + k[..., None] * v[:, :, None]
    return jnp.einsum("bhgk,bhkv->bhgv", q, state, precision=lax.Precision.HIGHEST), state
