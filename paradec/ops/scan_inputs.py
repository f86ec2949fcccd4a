"""What `ops.scan` is given, brought into the form that it computes with, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from paradec.errors import InputError
from paradec.ops import affine
from paradec.ops.affine import Structure

LARGEST_BLOCK = 4
"""Arrays of states in a block, whose product is written out: 4 x 4 factors are 64 products a step."""


def fitted(kind: str, a: Any, b: Any, h0: Any) -> tuple[Any, Any, Any]:
    """All in one float type, `a` with axes of size 1 where it is shared, and an `h0`. Raises `InputError`."""
    if kind == "block":
        a, b = _block(a, b)
    elif isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
        raise InputError(f"A {kind} scan takes one array a and one array b; tuples of arrays are for kind='block'.")
    shape = _shape_of_b(kind, b)
    h0 = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), b) if h0 is None else h0
    h0 = tuple(h0) if isinstance(h0, list) else h0
    if jax.tree.structure(h0) != jax.tree.structure(b) or any(x.shape != shape[1:] for x in jax.tree.leaves(h0)):
        raise InputError(f"h0 must be like one step of b, {shape[1:]} for each array; it is {_shapes(h0)}.")
    a = jax.tree.map(lambda x: _fit(kind, x, shape), a)
    if kind == "block":  # a product adds factors of several places: they are shared in the same axes, or in none
        whole = jnp.broadcast_shapes(*(x.shape for x in jax.tree.leaves(a)))
        a = jax.tree.map(lambda x: jnp.broadcast_to(x, whole), a)
    leaves, tree = jax.tree.flatten((a, b, h0))
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in leaves) else jnp.float32
    return affine.alike(jax.tree.unflatten(tree, [x.astype(wide) for x in leaves]))


def _block(a: Any, b: Any) -> tuple[Any, Any]:
    if not isinstance(b, (tuple, list)) or not isinstance(a, (tuple, list)):
        raise InputError("A block scan takes a tuple of k arrays as b, and as a, a tuple of k tuples of k arrays.")
    k = len(b)
    if not 1 <= k <= LARGEST_BLOCK:
        raise InputError(
            f"A block scan has 1 to {LARGEST_BLOCK} arrays of states, and b has {k}: its products are written out. "
            "For more, stack them in a last axis and use kind='dense'."
        )
    if [len(row) if isinstance(row, (tuple, list)) else None for row in a] != [k] * k:
        raise InputError(f"With {k} arrays in b, a must be a tuple of {k} tuples of {k} arrays.")
    return tuple(tuple(row) for row in a), tuple(b)


def _shape_of_b(kind: str, b: Any) -> tuple[int, ...]:
    shapes = {x.shape for x in jax.tree.leaves(b)}
    if len(shapes) != 1:
        raise InputError(f"The arrays of b must have one shape; they have {_shapes(b)}.")
    (shape,) = shapes
    least = 2 if kind == "dense" else 1
    if len(shape) < least:
        wanted = "(T, ..., n)" if least == 2 else "(T, ...)"
        raise InputError(f"Time is axis 0 of b, which must have the shape {wanted}; it has {shape}.")
    return shape


def _fit(kind: str, x: Array, shape: tuple[int, ...]) -> Array:
    """A leaf of `a` with axes of size 1 where it is shared. Time is never shared, and nor are the axes of a matrix."""
    wanted = (*shape, shape[-1]) if kind == "dense" else shape
    fixed = {0, len(shape) - 1, len(shape)} if kind == "dense" else {0}
    given = x.shape if kind == "dense" else x.shape + (1,) * (len(wanted) - x.ndim)
    if len(given) != len(wanted) or any(
        n != m and (n != 1 or i in fixed) for i, (n, m) in enumerate(zip(given, wanted, strict=True))
    ):
        may = "" if kind == "dense" else ", may lack its last axes,"
        raise InputError(f"a must fit {wanted}{may} and may have axes of size 1 after the first; it is {x.shape}.")
    return x.reshape(given)


def _shapes(tree: Any) -> str:
    return ", ".join(str(x.shape) for x in jax.tree.leaves(tree)) or "empty"


def check_flags(kind: str, b: Any, segment: Array | None, valid: Array | None) -> None:
    """Raise `InputError` unless each that is given has the first axes of `b`, time at least, and both the same."""
    shape = _shape_of_b(kind, b)
    most = shape[:-1] if kind == "dense" else shape
    for name, flag in (("segment", segment), ("valid", valid)):
        if flag is not None and (flag.ndim == 0 or flag.shape != most[: flag.ndim]):
            raise InputError(f"{name} must have the first axes of b, {most} or fewer of them; it is {flag.shape}.")
    if segment is not None and valid is not None and segment.shape != valid.shape:
        raise InputError(f"segment and valid must have one shape; they are {segment.shape} and {valid.shape}.")


def borders(
    segment: Int[Array, "T ..."], valid: Bool[Array, "T ..."] | None, reverse: bool, edge: tuple | None = None
) -> Bool[Array, "T ..."]:
    """Where the id is another than at the valid step before, in the direction of travel.

    `edge` says of the part of a sequence that is before this one whether it has a valid step, and the last one's id.
    Without one, there is no step before the first.
    """
    first = segment[-1 if reverse else 0]
    has_edge, id_of_edge = (jnp.zeros_like(first, bool), first) if edge is None else edge
    if valid is None:
        return segment != affine.before(segment, jnp.where(has_edge, id_of_edge, first), reverse)
    none = len(segment) if reverse else -1
    # Ids 1 1 7 1 2, the 7 not valid: the last valid steps are 0 1 1 3 4, those before each step none 0 1 1 3 with the
    # ids - 1 1 1 1, and the last step is the only border.
    last = _last_valid(valid, reverse)
    previous = affine.before(last, jnp.full_like(last[0], none), reverse)
    id_before = jnp.take_along_axis(segment, jnp.clip(previous, 0, len(segment) - 1), axis=0)
    inside = previous != none
    return valid & (inside | has_edge[None]) & (segment != jnp.where(inside, id_before, id_of_edge[None]))


def last_id(segment: Int[Array, "T ..."], valid: Bool[Array, "T ..."] | None, reverse: bool) -> tuple[Array, Array]:
    """Whether there is a valid step, and the id of the last one, in the direction of travel."""
    end = 0 if reverse else -1
    if valid is None:
        return jnp.ones_like(segment[end], bool), segment[end]
    last = _last_valid(valid, reverse)[end]
    id_ = jnp.take_along_axis(segment, jnp.clip(last, 0, len(segment) - 1)[None], axis=0)[0]
    return valid.any(axis=0), id_


def _last_valid(valid: Bool[Array, "T ..."], reverse: bool) -> Int[Array, "T ..."]:
    """The last valid step so far, itself included; where there is none, -1 or, backwards, T."""
    step = lax.broadcasted_iota(jnp.int32, valid.shape, 0)
    if reverse:
        return lax.cummin(jnp.where(valid, step, len(valid)), axis=0, reverse=True)
    return lax.cummax(jnp.where(valid, step, -1), axis=0)


def masked(structure: Structure, a: Any, b: Any, border: Array | None, valid: Array | None) -> tuple[Any, Any]:
    """The maps with a factor of zero at a border, and the identity where a step is not valid."""
    choose = lambda flag, x, y: jnp.where(flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim)), x, y)
    if border is not None:
        a = jax.tree.map(lambda x, zero: choose(border, zero, x), a, affine.zeros(a))
    if valid is not None:
        a = jax.tree.map(lambda x, one: choose(valid, x, one), a, structure.identity(a))
        b = jax.tree.map(lambda x, zero: choose(valid, x, zero), b, affine.zeros(b))
    return a, b
