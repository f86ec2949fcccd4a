"""Jacobians of a recurrent cell by tangents, from the structure that is declared of it, and whether that is true.

A state is one array "... n", or of a `block` cell a tuple of k such arrays. Leading axes are batch: a cell maps each of
them alone. Jacobians have the form that `ops.scan.affine_scan` takes: of a diagonal cell one array "... n", the
derivative of every number of the state by itself; of a block cell a tuple of k tuples of k arrays, `J[i][j]` that of
array i by array j; of a dense cell "... n n", row by column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from paradec.errors import InputError

STRUCTURES = ("diagonal", "block", "dense")
MOST_BLOCKS = 4

Step = Callable[[Any, Any, Any], Any]
"""A cell: `step(params, h, x)` is the state after one step on input x, of the shape and type of h."""


def probe(step: Callable[[PyTree], PyTree], h: PyTree, structure: str) -> tuple[PyTree, PyTree]:
    """`step(h)` and its Jacobian at h: by one tangent of ones (diagonal), k of them (block), or n unit vectors (dense).

    A tangent of ones gives the row sums of the Jacobian, which are its diagonal if and only if the rest is zero:
    where the structure may be wrong, ask `check_cell`.
    """
    if structure == "diagonal":
        return jax.jvp(step, (h,), (jnp.ones_like(h),))
    y, push = jax.linearize(step, h)
    if structure == "dense":
        unit = jnp.eye(h.shape[-1], dtype=h.dtype)
        return y, jax.vmap(lambda e: push(jnp.broadcast_to(e, h.shape)), out_axes=-1)(unit)
    full = lambda value: lambda x: jnp.full_like(x, value)
    columns = [push(tuple(full(float(i == j))(x) for i, x in enumerate(h))) for j in range(len(h))]
    return y, tuple(tuple(column[i] for column in columns) for i in range(len(h)))


def transposed(jacobian: PyTree, structure: str) -> PyTree:
    """The transposed map in the same form."""
    if structure == "block":
        return tuple(zip(*jacobian, strict=True))
    return jacobian if structure == "diagonal" else jacobian.swapaxes(-1, -2)


def diagonal(jacobian: PyTree, structure: str) -> PyTree:
    """The derivative of every number of the state by itself, in the form of a state."""
    if structure == "block":
        return tuple(row[i] for i, row in enumerate(jacobian))
    return jacobian if structure == "diagonal" else jnp.diagonal(jacobian, axis1=-2, axis2=-1)


def check_state(h: PyTree, structure: str) -> None:
    """Raise `InputError` for a structure that does not exist, or for a state that is none of it."""
    if structure not in STRUCTURES:
        raise InputError(f"A cell's structure must be one of {', '.join(STRUCTURES)}; {structure!r} was given.")
    leaves = jax.tree.leaves(h)
    if structure == "block":
        if not isinstance(h, tuple) or not 1 <= len(h) <= MOST_BLOCKS or len(leaves) != len(h):
            raise InputError(f"The state of a block cell is a tuple of 1 to {MOST_BLOCKS} arrays; got {_kind(h)}.")
        if len({x.shape for x in leaves}) > 1:
            raise InputError(f"The arrays of a block cell's state must have one shape; got {_kind(h)}.")
    elif not hasattr(h, "shape"):
        raise InputError(f"The state of a {structure} cell is one array; got {_kind(h)}.")
    for x in leaves:
        if not x.shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"A state is floating point and has an axis of numbers; got {_kind(h)}.")


def check_shapes(step: Step, params: PyTree, h: PyTree, x: PyTree) -> None:
    """Raise `InputError` unless `step(params, h, x)`, which is only traced, has the tree, shapes and types of h."""
    out = jax.eval_shape(step, params, h, x)
    kind = lambda tree: jax.tree.map(lambda leaf: (tuple(leaf.shape), np.dtype(leaf.dtype).name), tree)
    if jax.tree.structure(out) != jax.tree.structure(h) or kind(out) != kind(h):
        raise InputError(
            f"A cell must return a state like the one it is given, {_kind(h)}; this one returns {_kind(out)}. "
            "States are float32: cast back what the cell computes in another type."
        )


def check_cell(step: Step, params: PyTree, h: PyTree, x: PyTree, structure: str, seed: int = 0) -> None:
    """Raise `InputError` with what is wrong with a cell: its state, what it returns, or its declared structure.

    `h` and `x` belong to one step, with or without batch axes. They may be `jax.ShapeDtypeStruct`s; numbers are drawn
    at random then, and h always is. The true Jacobian is asked with a random tangent: the declared structure predicts
    what comes out, and a derivative outside it, or across the batch, changes that with probability 1. Runs eagerly;
    call it outside `jit`.
    """
    check_state(h, structure)
    check_shapes(step, params, h, x)
    rng = np.random.default_rng(seed)
    draw = lambda like: (0.5 * rng.standard_normal(like.shape)).astype(like.dtype)
    state, tangent = jax.tree.map(draw, h), jax.tree.map(draw, h)
    x = jax.tree.map(lambda leaf: draw(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, x)
    finite, wrong, largest = jax.jit(functools.partial(_compared, step, structure))(params, state, x, tangent)
    if not finite:
        raise InputError("The cell or its derivative is not finite at a random state of deviation 0.5.")
    wrong = np.asarray(wrong)
    if wrong.max() > 1e-4 * (1 + float(largest)):
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InputError(_outside(lambda h: step(params, h, x), state, place, structure))


def _compared(
    step: Step, structure: str, params: PyTree, h: PyTree, x: PyTree, tangent: PyTree
) -> tuple[Array, Array, Array]:
    """Whether all is finite; of every number, how far the derivative along the tangent is from what the structure
    predicts; the largest derivative inside it."""
    moved = lambda h: step(params, h, x)
    y, jacobian = probe(moved, h, structure)
    said, (_, true) = applied(jacobian, tangent, structure), jax.jvp(moved, (h,), (tangent,))
    pairs = zip(jax.tree.leaves(true), jax.tree.leaves(said), strict=True)
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((y, jacobian))])
    largest = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(jacobian)])
    return jnp.all(finite), jnp.stack([jnp.abs(a - b) for a, b in pairs]), jnp.max(largest)


def applied(jacobian: PyTree, tangent: PyTree, structure: str) -> PyTree:
    """The Jacobian times a tangent."""
    if structure == "block":
        return tuple(sum(j * t for j, t in zip(row, tangent, strict=True)) for row in jacobian)
    if structure == "diagonal":
        return jacobian * tangent
    return jnp.einsum("...ij,...j->...i", jacobian, tangent)


def _outside(moved: Callable[[PyTree], PyTree], state: PyTree, place: tuple, structure: str) -> str:
    """The sentence for a number of the new state, (array, *index), that depends on what it must not."""
    array, *index = (int(i) for i in place)
    *_, column = index
    row = jax.grad(lambda h: jax.tree.leaves(moved(h))[array][tuple(index)])(state)
    away = np.stack([np.abs(np.asarray(leaf)) for leaf in jax.tree.leaves(row)])
    inside = (slice(None), *index) if structure != "dense" else (slice(None), *index[:-1])
    away[inside] = 0
    other = tuple(int(i) for i in np.unravel_index(int(away.argmax()), away.shape))
    which = lambda a, at: (f"array {a} of the state, number " if structure == "block" else "number ") + str(at)
    across = "" if other[1:-1] == tuple(index[:-1]) else ", of another entry of the batch"
    allowed = {"diagonal": "itself alone", "block": "numbers at its own place alone", "dense": "its own batch entry"}
    return (
        f"The cell is declared {structure!r}, where a number of the state depends on {allowed[structure]}, but "
        f"{which(array, column)} depends on {which(other[0], other[-1])}{across} (derivative {away.max():.2g}). "
        "Declare the structure that it has: newton would solve another recurrence, and its gradient would be wrong."
    )


def _kind(tree: PyTree) -> str:
    """Shapes and types of a state, as a sentence says them."""
    one = lambda x: f"{np.dtype(x.dtype).name}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of ({', '.join(one(x) for x in tree)})"
    return one(tree)
