"""Affine maps `h -> A h + b` in three structures, and the ways to apply a sequence of them: what `ops.scan` is made of.

A structure says what `A` is: "diagonal" (one factor a state), "block" (k arrays of states, k x k arrays of factors, the
product written out), "dense" (a matrix over the last axis). Maps are pairs `(a, b)` of trees, time is axis 0 of every
leaf, and everything else is elementwise. `a` has the rank that fits `b`, with axes of size 1 where it is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

Leaves = PyTree[Float[Array, "..."]]


class Structure(NamedTuple):
    """The algebra of one structure. All of it is elementwise in leading axes, time and lanes among them."""

    apply: Callable[[Any, Any], Any]
    """`A h`."""
    product: Callable[[Any, Any], Any]
    """`A2 A1`: first the right one."""
    transpose: Callable[[Any], Any]
    """`A` transposed."""
    outer: Callable[[Any, Any], Any]
    """The gradient of `A` in `A h`, from that of the result and from h."""
    identity: Callable[[Any], Any]
    """The identity, in the shape of the maps given."""


def compose(structure: Structure, later: tuple, earlier: tuple) -> tuple:
    """The map that applies `earlier`, then `later`: `(A2 A1, A2 b1 + b2)`."""
    (a2, b2), (a1, b1) = later, earlier
    return structure.product(a2, a1), plus(structure.apply(a2, b1), b2)


def plus(x: Any, y: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, x, y)


def _block_apply(a: Any, h: Any) -> Any:
    return tuple(_dot(row, h) for row in a)


def _block_product(x: Any, y: Any) -> Any:
    return tuple(tuple(_dot(row, column) for column in zip(*y, strict=True)) for row in x)


def _dot(x: Any, y: Any) -> Any:
    # Written out: an `einsum` over axes of size k is laid out in tiles that hold k x k numbers of 1,024 on a TPU.
    total = x[0] * y[0]
    for one, other in zip(x[1:], y[1:], strict=True):
        total = total + one * other
    return total


def _block_transpose(a: Any) -> Any:
    return tuple(zip(*a, strict=True))


def _block_outer(out: Any, h: Any) -> Any:
    return tuple(tuple(row * column for column in h) for row in out)


def _block_identity(a: Any) -> Any:
    return tuple(tuple(filled(x, float(i == j)) for j, x in enumerate(row)) for i, row in enumerate(a))


def _einsum(subscripts: str) -> Callable[[Array, Array], Array]:
    # Float32 means float32: by default a TPU would round the operands to bfloat16.
    return lambda x, y: jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST)


def _dense_identity(a: Array) -> Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype).reshape((1,) * (a.ndim - 2) + a.shape[-2:])
    return filled(a, 0.0) + eye


STRUCTURES = {
    "diagonal": Structure(jnp.multiply, jnp.multiply, lambda a: a, jnp.multiply, lambda a: filled(a, 1.0)),
    "block": Structure(_block_apply, _block_product, _block_transpose, _block_outer, _block_identity),
    "dense": Structure(
        _einsum("...ij,...j->...i"),
        _einsum("...ij,...jk->...ik"),
        lambda a: jnp.swapaxes(a, -1, -2),
        lambda out, h: out[..., :, None] * h[..., None, :],
        _dense_identity,
    ),
}


def varying(x: Array, axes: Set[str]) -> Array:
    """`x`, said to vary over these mesh axes besides its own: a loop inside `shard_map` asks that what it carries goes
    out as it came in. Its gradient is then summed over them. Outside `shard_map` there are none."""
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def varies(trees: Any) -> frozenset[str]:
    """The mesh axes over which any leaf is said to vary; none outside `shard_map`, or where that does not check."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(trees)))


def alike(trees: Any) -> Any:
    """All leaves, said to vary over the mesh axes over which any of them does."""
    axes = varies(trees)
    return jax.tree.map(lambda x: varying(x, axes), trees)


def filled(x: Array, value: float) -> Array:
    """An array like `x`, of one value."""
    return jnp.full_like(x, value)


def all_finite(tree: Any) -> Array:
    """Whether all its numbers are."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def zeros(tree: Any) -> Any:
    """A tree of zeros like this one."""
    return jax.tree.map(lambda x: filled(x, 0.0), tree)


def length(tree: Any) -> int:
    """The number of steps."""
    return jax.tree.leaves(tree)[0].shape[0]


def at(tree: Any, step: int | slice) -> Any:
    """One step of a sequence, or some."""
    return jax.tree.map(lambda x: x[step], tree)


def before(tree: Any, first: Any, reverse: bool) -> Any:
    """What stands one step earlier, in the direction of travel; `first` where nothing does."""

    def one(x: Array, first: Array) -> Array:
        parts = [x[1:], first[None]] if reverse else [first[None], x[:-1]]
        return jnp.concatenate(parts)

    return jax.tree.map(one, tree, first)


def sequential(structure: Structure, a: Any, b: Any, h0: Any, reverse: bool) -> Any:
    """Step by step."""

    def step(h: Any, ab: tuple) -> tuple[Any, Any]:
        h = plus(structure.apply(ab[0], h), ab[1])
        return h, h

    return lax.scan(step, h0, (a, b), reverse=reverse)[1]


def associative(structure: Structure, a: Any, b: Any, h0: Any, reverse: bool) -> Any:
    """All at once, neighbours composed in log2 T rounds. Over a long axis, ten times the memory traffic of lanes."""
    first = -1 if reverse else 0
    start = structure.apply(at(a, first), h0)
    b = jax.tree.map(lambda x, s: x.at[first].add(s), b, start)
    return lax.associative_scan(lambda x, y: compose(structure, y, x), (a, b), reverse=reverse)[1]


def lanes(structure: Structure, a: Any, b: Any, h0: Any, reverse: bool, chunk: int) -> Any:
    """Chunks side by side: two passes of `chunk` steps over all of them, and between these one over the chunks' ends.

    T = 6, chunk 3: lane 0 holds steps 0, 1, 2 and lane 1 steps 3, 4, 5. The first pass composes each lane's three maps
    to one, the second carries h0 over these two maps, which gives the state that each lane starts from, and the third
    applies steps 0 and 3, then 1 and 4, then 2 and 5.
    """
    T = length(b)
    a, b = _side_by_side(structure, a, b, chunk)
    ends = sequential(structure, *_composed(structure, a, b, reverse), h0, reverse)
    h = sequential(structure, a, b, before(ends, h0, reverse), reverse)
    return jax.tree.map(lambda x: _joined(jnp.swapaxes(x, 0, 1))[:T], h)


def chunked(structure: Structure, a: Any, b: Any, h0: Any, reverse: bool, chunk: int) -> Any:
    """Chunk after chunk, each of them all at once."""
    T = length(b)
    a, b = _padded(structure, a, b, chunk)
    a, b = jax.tree.map(lambda x: _split(x, chunk), (a, b))

    def one(h: Any, ab: tuple) -> tuple[Any, Any]:
        states = associative(structure, *ab, h, reverse)
        return at(states, 0 if reverse else -1), states

    h = lax.scan(one, h0, (a, b), reverse=reverse)[1]
    return jax.tree.map(lambda x: _joined(x)[:T], h)


def total(structure: Structure, a: Any, b: Any, reverse: bool, chunk: int) -> tuple[Any, Any]:
    """The one map that all steps make together."""
    a, b = _composed(structure, *_side_by_side(structure, a, b, chunk), reverse)
    return at(_composed(structure, *jax.tree.map(lambda x: x[:, None], (a, b)), reverse), 0)


def _composed(structure: Structure, a: Any, b: Any, reverse: bool) -> tuple[Any, Any]:
    """Of each lane the map that its steps make together."""
    start = structure.identity(at(a, 0)), zeros(at(b, 0))
    return lax.scan(lambda m, ab: (compose(structure, ab, m), None), start, (a, b), reverse=reverse)[0]


def _side_by_side(structure: Structure, a: Any, b: Any, chunk: int) -> tuple[Any, Any]:
    """Steps of a chunk first, then chunks."""
    return jax.tree.map(lambda x: jnp.swapaxes(_split(x, chunk), 0, 1), _padded(structure, a, b, chunk))


def _split(x: Array, chunk: int) -> Array:
    return x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:])


def _joined(x: Array) -> Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _padded(structure: Structure, a: Any, b: Any, chunk: int) -> tuple[Any, Any]:
    """A multiple of `chunk` steps. What is added at the end changes no state, so one that comes from there, in a
    reversed recurrence, arrives as it was."""
    missing = -length(b) % chunk
    if not missing:
        return a, b
    added = structure.identity(at(a, slice(0, 1))), zeros(at(b, slice(0, 1)))
    fill = lambda x, one: jnp.concatenate([x, jnp.broadcast_to(one, (missing, *x.shape[1:]))])
    return jax.tree.map(fill, (a, b), added)
