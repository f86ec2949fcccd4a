"""Affine recurrences `h_t = A_t h_{t-1} + b_t`: over a sequence in several ways, and over a draft tree; in float32.

Over a sequence there is one gradient for all of them: the same recurrence backwards (`l_t = g_t + A_{t+1}^T l_{t+1}`),
computed the same way, for which `a` and the states are kept. `ops.sharded_scan` has the form for several devices.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec import mesh
from paradec.errors import InputError, UnknownName, at_least
from paradec.ops import affine
from paradec.ops.affine import STRUCTURES, Leaves, Structure
from paradec.ops.scan_inputs import borders, check_flags, fitted, masked

IMPLEMENTATIONS = ("auto", "sequential", "associative", "lanes", "chunk", "kernel")


class ScanForm(NamedTuple):
    """How a recurrence is computed. It is static: another one is another program."""

    kind: str
    reverse: bool
    implementation: str
    chunk: int
    checked: bool

    @property
    def structure(self) -> Structure:
        """The algebra of its maps."""
        return STRUCTURES[self.kind]


def affine_scan(
    a: Leaves,
    b: Leaves,
    h0: Leaves | None = None,
    *,
    kind: str = "diagonal",
    reverse: bool = False,
    implementation: str = "auto",
    chunk: int = 64,
    segment: Int[Array, "..."] | None = None,
    valid: Bool[Array, "..."] | None = None,
    checked: bool = True,
) -> Leaves:
    """The states after every step of `h_t = A_t h_{t-1} + b_t`, shaped like `b`, in float32 (float64 if any leaf is).

    Time is axis 0 of every leaf. With `reverse` it runs backwards: `h_t = A_t h_{t+1} + b_t`. No steps give no states.

    Args:
        a: "diagonal": one array "T ...", as `b` or with fewer axes, the missing ones being the last (one factor for a
            row of states); an axis of size 1 is shared too. "block": a tuple of k rows of k such arrays, k <= 4, where
            `a[i][j]` says what state j adds to state i. "dense": one array "T ... N N".
        b: an array "T ..."; of blocks a tuple of k of them, of one shape; dense "T ... N".
        h0: the state before the first step (with `reverse`, behind the last), like one step of `b`. None: zeros.
        kind: the structure of `A`: "diagonal", "block" or "dense".
        implementation: "sequential" is a loop over time. "associative" composes all neighbours in log2 T rounds, and is
            for short axes. "lanes" runs chunks side by side, "chunk" one after the other with "associative" inside;
            both are "associative" where one chunk is enough. "kernel" is a Pallas kernel. "auto" is settled when the
            program is compiled for its platform: the loop on a CPU, where it was the fastest at every length measured;
            elsewhere "lanes", or a kernel if there is one for these shapes and the device in use, and one device
            has all of the arrays (or they are its part, inside `shard_map`).
        chunk: steps of a chunk, at least 1; a T that is no multiple is padded.
        segment: whole numbers "T ..." with the first axes of `b`. Where the id differs from that of the step before,
            the state is zero before the step. The first step goes on from `h0`, whatever its id. An infinite state, or
            one that is no number, is that across a border too.
        valid: which steps count, shaped like `segment`. Others leave the state as it is, as if they were removed, also
            where ids are compared: the step before is the last valid one.
        checked: parallel forms multiply factors that a loop would not, and these products can overflow where every
            state is finite (40 steps of 1e3 at h = 0, then one of 0: infinity times 0). With `checked`, a result that
            is not finite throughout is computed again by the loop, forward and in the gradient; under `vmap` both are
            always computed. The loop itself is never checked.

    Raises:
        UnknownName: another kind or implementation.
        InputError: shapes that do not fit, blocks of more than four, or "kernel" where there is none for this scan.

    Values and gradients equal those of the loop up to rounding where the maps contract. Where they expand, rounding
    errors do too, in each form in its own way. Sources: 1709.04057 (parallel linear recurrences and their gradient).
    """
    form = as_form(kind, reverse, implementation, chunk, checked)
    a, b, h0 = fitted(kind, a, b, h0)
    if affine.length(b) == 0:
        return b
    if segment is not None or valid is not None:
        check_flags(kind, b, segment, valid)
        border = None if segment is None else borders(segment, valid, form.reverse)
        a, b = masked(form.structure, a, b, border, valid)
    check_kernel(form, a, b)
    return _affine(a, b, h0, form)


def as_form(kind: str, reverse: bool, implementation: str, chunk: int, checked: bool) -> ScanForm:
    """The options of a scan, with a sentence for what there is not."""
    if kind not in STRUCTURES:
        raise UnknownName("kind of scan", str(kind), STRUCTURES)
    if implementation not in IMPLEMENTATIONS:
        raise UnknownName("implementation of a scan", str(implementation), IMPLEMENTATIONS)
    return ScanForm(kind, bool(reverse), implementation, at_least("chunk", chunk, 1), bool(checked))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _affine(a: Any, b: Any, h0: Any, form: ScanForm) -> Any:
    return run(form, a, b, h0)


def _forward(a: Any, b: Any, h0: Any, form: ScanForm) -> tuple[Any, Any]:
    h = _affine(a, b, h0, form)
    return h, (a, h0, h)


def _backward(form: ScanForm, saved: Any, g: Any) -> tuple[Any, Any, Any]:
    a, h0, h = saved
    structure, first = form.structure, -1 if form.reverse else 0
    turned = structure.transpose(a)
    behind = affine.before(turned, affine.zeros(affine.at(turned, 0)), not form.reverse)  # A_{t+1}; 0 after the last
    adjoint = _affine(behind, g, affine.zeros(h0), form._replace(reverse=not form.reverse))
    of_h0 = structure.apply(affine.at(turned, first), affine.at(adjoint, first))
    return gradient_of_a(structure, a, adjoint, affine.before(h, h0, form.reverse)), adjoint, of_h0


_affine.defvjp(_forward, _backward)


def gradient_of_a(structure: Structure, a: Any, adjoint: Any, previous: Any) -> Any:
    """`l_t h_{t-1}^T`, summed over the axes in which `a` is shared."""

    def summed(gradient: Array, like: Array) -> Array:
        axes = tuple(i for i, (n, m) in enumerate(zip(gradient.shape, like.shape, strict=True)) if n != m)
        return jnp.sum(gradient, axes, keepdims=True) if axes else gradient

    return jax.tree.map(summed, structure.outer(adjoint, previous), a)


def run(form: ScanForm, a: Any, b: Any, h0: Any) -> Any:
    """The states, as the form says."""
    if form.implementation == "auto":
        as_ = lambda implementation: partial(run, form._replace(implementation=implementation))
        kernel = {} if (platform := _kernel_platform(form, a, b)) is None else {platform: as_("kernel")}
        return lax.platform_dependent(a, b, h0, cpu=as_("sequential"), default=as_("lanes"), **kernel)
    if form.implementation == "sequential":
        return affine.sequential(form.structure, a, b, h0, form.reverse)
    h = _in_parallel(form, a, b, h0)
    if not form.checked:
        return h
    return lax.cond(affine.all_finite(h), lambda: h, lambda: affine.sequential(form.structure, a, b, h0, form.reverse))


def _in_parallel(form: ScanForm, a: Any, b: Any, h0: Any) -> Any:
    if form.implementation == "kernel":
        return _kernel(form, a, b, h0)
    if form.implementation == "associative" or affine.length(b) <= form.chunk:
        return affine.associative(form.structure, a, b, h0, form.reverse)
    way = affine.lanes if form.implementation == "lanes" else affine.chunked
    return way(form.structure, a, b, h0, form.reverse, form.chunk)


def _kernel_platform(form: ScanForm, a: Any, b: Any) -> str | None:
    """For which platform "auto" takes a kernel: that of the mesh in use, or else of this process, if there is one.

    Not for whatever a program may be lowered for: tracing the kernels takes twenty times as long as the loop. Nor where
    several devices may hold the arrays, outside `shard_map`: no compiler splits a kernel, so it would gather them.
    """
    place = mesh.current()
    if place is None:
        here, alone = jax.default_backend(), jax.device_count() == 1 or jax.sharding.get_abstract_mesh().manual_axes
    else:
        here, alone = place.mesh.devices.flat[0].platform, place.mesh.size == 1
    here = "cuda" if here == "gpu" else here
    return here if alone and here in ("tpu", "cuda") and refusal(form, a, b, here) is None else None


def check_kernel(form: ScanForm, a: Any, b: Any) -> None:
    """Raise `InputError` if a kernel is asked for where there is none for this scan."""
    if form.implementation == "kernel" and (sentence := refusal(form, a, b, jax.default_backend())):
        raise InputError(sentence)


def refusal(form: ScanForm, a: Any, b: Any, platform: str) -> str | None:
    """Why no kernel computes this scan on a platform, as a sentence; None if one does. On a CPU it is interpreted."""
    try:
        kernels = _kernels()
    except ImportError:
        return "This installation has no kernels for scans; use implementation='auto' or 'lanes'."
    leaves = jax.tree.leaves((a, b))
    if form.kind == "dense":
        return "There is no kernel for dense scans; use implementation='auto' or 'lanes'."
    if any(x.dtype != jnp.float32 for x in leaves):
        return "Kernels of scans compute in float32, and this scan is in float64; use implementation='auto' or 'lanes'."
    if affine.varies(leaves):
        return "Inside shard_map, kernels of scans need its option check_vma=False; or use implementation='lanes'."
    k = len(jax.tree.leaves(b))
    return kernels.affine.refusal(jax.tree.leaves(b)[0].shape, k, "gpu" if platform == "cuda" else platform)


def _kernel(form: ScanForm, a: Any, b: Any, h0: Any) -> Any:
    kernels = _kernels()
    if form.kind == "diagonal":
        return kernels.diagonal(a, b, h0, form.reverse)
    a = jax.tree.map(lambda x: jnp.broadcast_to(x, b[0].shape), a)
    return kernels.block(a, b, h0, form.reverse)


def _kernels() -> ModuleType:
    """Imported when they are first asked for: not every program pays for Pallas, nor does every machine have it."""
    from paradec.ops.kernels import scan as kernels

    return kernels


def tree_scan(
    a: Float[Array, "B N D"],
    b: Float[Array, "B N D"],
    parent: Int[Array, "B N"] | None,
    h0: Float[Array, "B D"],
) -> Float[Array, "B N D"]:
    """The state after every node (float32); a node that is its own parent hangs on `h0`, and None means one chain.

    Parents may stand anywhere. The chain is one associative scan; the tree composes each node's affine map with its
    parent's, then its grandparent's, …: log2 N rounds of pointer doubling (Wyllie's list ranking). On a chain of 4,
    round 1 composes nodes (1, 0), (2, 1), (3, 2) and lets 2 and 3 point to 0 and 1; round 2 completes 2 and 3.
    """
    a, b, h0 = (x.astype(jnp.float32) for x in (a, b, h0))
    if parent is None:
        b = b.at[:, 0].add(a[:, 0] * h0)
        return lax.associative_scan(lambda x, y: (y[0] * x[0], y[0] * x[1] + y[1]), (a, b), axis=1)[1]
    root = (parent == lax.broadcasted_iota(parent.dtype, parent.shape, 1))[..., None]
    b = jnp.where(root, a * h0[:, None] + b, b)
    a = jnp.where(root, 0.0, a)  # a root is a constant, so composing it with itself changes nothing
    for _ in range((parent.shape[1] - 1).bit_length()):
        up = parent[..., None]
        b = a * jnp.take_along_axis(b, up, axis=1) + b
        a = a * jnp.take_along_axis(a, up, axis=1)
        parent = jnp.take_along_axis(parent, parent, axis=1)
    return b
