"""A recurrence over a sequence, one step or all steps of it, and sequences cut into windows.

A state is a tree of arrays "*B n", inputs a tree of arrays that lead with time. A `Recurrence` is a cell with its
weights; masks belong to the steps, as inputs do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from paradec import struct
from paradec.errors import InputError
from paradec.ops.jacobian import Step
from paradec.ops.scan_inputs import borders


@struct.dataclass
class Masks:
    """Where a state is reset to zeros before a step, and which steps count, "T *B"; None: nowhere, all."""

    start: Bool[Array, "..."] | None
    valid: Bool[Array, "..."] | None

    @classmethod
    def of(cls, segment: Int[Array, "..."] | None, valid: Bool[Array, "..."] | None, shape: tuple[int, ...]) -> Masks:
        """From ids and marks with the first axes of `shape`, "T *B". Raises `InputError` where they do not fit."""
        for name, mask in (("segment", segment), ("valid", valid)):
            if mask is not None and (not mask.ndim or mask.shape != shape[: mask.ndim]):
                raise InputError(
                    f"{name} must lead with time and the state's batch axes, {shape} or the first of them; it is "
                    f"{mask.shape}."
                )
        if segment is not None and valid is not None and segment.shape != valid.shape:
            raise InputError(f"segment and valid must have one shape; they are {segment.shape} and {valid.shape}.")
        return cls(None if segment is None or not shape[0] else borders(segment, valid, reverse=False), valid)


@struct.dataclass
class Recurrence:
    """A cell and its weights."""

    step: Step = struct.field(pytree_node=False)
    params: PyTree

    def moved(self, h: PyTree, x: PyTree, masks: Masks) -> PyTree:
        """The state after one step, with what the masks say of it: so Jacobians of it know the masks too."""
        at = lambda mask, h: mask.reshape(mask.shape + (1,) * (h.ndim - mask.ndim))
        if masks.start is not None:
            h = jax.tree.map(lambda h: jnp.where(at(masks.start, h), jnp.zeros_like(h), h), h)
        new = self.step(self.params, h, cast(x, wide(h)))
        if masks.valid is not None:
            new = jax.tree.map(lambda new, h: jnp.where(at(masks.valid, h), new, h), new, h)
        return new

    def sweep(self, x: PyTree, masks: Masks) -> Callable[[PyTree], PyTree]:
        """A function from the states before every step to those after it, all in parallel."""
        return lambda before: jax.vmap(self.moved)(before, x, masks)

    def pulled(self, before: PyTree, x: PyTree, masks: Masks, lam: PyTree) -> tuple[Recurrence, PyTree, PyTree]:
        """Cotangents of the weights, of the states before every step and of x, from those of the states after it.

        Where weights are vectors each step has a copy, whose cotangents are summed at the end: asked for the sum alone,
        XLA recomputes the cell inside of it, on a CPU number by number (30 ms instead of 4 at T = 2048, n = 256).
        """
        T, n = jax.tree.leaves(before)[0].shape[0], jax.tree.leaves(before)[0].shape[-1]
        wanted, fixed = parted(self)
        vectors, matrices = parted(wanted, lambda a: a.size <= 16 * n)
        x, x_fixed = parted(x)

        def sweep(vectors: PyTree, matrices: PyTree, before: PyTree, x: PyTree) -> PyTree:
            def one(vectors: PyTree, h: PyTree, x: PyTree, x_fixed: PyTree, masks: Masks) -> PyTree:
                return joined(joined(vectors, matrices), fixed).moved(h, joined(x, x_fixed), masks)

            return jax.vmap(one)(vectors, before, x, x_fixed, masks)

        copies = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (T, *a.shape)), vectors)
        of_copies, of_matrices, of_before, of_x = jax.vjp(sweep, copies, matrices, before, x)[1](lam)
        return joined(jax.tree.map(lambda a: jnp.sum(a, axis=0), of_copies), of_matrices), of_before, of_x

    def states(self, h0: PyTree, x: PyTree, masks: Masks) -> PyTree:
        """The states after every step, one after the other."""

        def step(h: PyTree, each: tuple) -> tuple[PyTree, PyTree]:
            h = self.moved(h, *each)
            return h, h

        return lax.scan(step, h0, (x, masks))[1]

    def costates(self, before: PyTree, x: PyTree, masks: Masks, g: PyTree) -> PyTree:
        """`lam_t = g_t + J_{t+1}^T lam_{t+1}`, from the last step to the first, without a Jacobian."""

        def back(late: PyTree, each: tuple) -> tuple[PyTree, PyTree]:
            h, x, masks, g = each
            lam = jax.tree.map(jnp.add, g, late)
            return jax.vjp(lambda h: self.moved(h, x, masks), h)[1](lam)[0], lam

        return lax.scan(back, jax.tree.map(jnp.zeros_like, at(g, 0)), (before, x, masks, g), reverse=True)[1]


def before(h: PyTree, h0: PyTree) -> PyTree:
    """The states before every step, from those after it."""
    return jax.tree.map(lambda h, h0: jnp.concatenate([h0[None], h[:-1]]), h, h0)


# Windows.


def cut(window: int, x: PyTree, masks: Masks, *others: PyTree) -> tuple[Any, ...]:
    """x, masks and others cut into windows, "N W ...". The last window is filled up with steps that are not valid and
    repeat the last one: at zeros a cell may have no derivative."""
    T = jax.tree.leaves(x)[0].shape[0]
    if T % window and masks.valid is None:
        masks = masks.replace(valid=jnp.ones(T, bool))
    masks = jax.tree.map(lambda mask: split(mask, window, "constant"), masks)
    edge = lambda tree: jax.tree.map(lambda a: split(a, window, "edge"), tree)
    return edge(x), masks, *(edge(tree) for tree in others)


def split(a: Shaped[Array, "T ..."], window: int, mode: str) -> Shaped[Array, "N W ..."]:
    """Windows of one array, the last filled up as `jnp.pad` does in this mode."""
    missing = -a.shape[0] % window
    if missing:
        a = jnp.pad(a, ((0, missing),) + ((0, 0),) * (a.ndim - 1), mode=mode)
    return a.reshape(-1, window, *a.shape[1:])


def whole(tree: PyTree, T: int) -> PyTree:
    """The first T steps of windows, put together again."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:T], tree)


def over(window: Callable, carry: PyTree, xs: PyTree, reverse: bool = False) -> tuple[PyTree, PyTree]:
    """`lax.scan` over windows; of a single one no loop is made."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return lax.scan(window, carry, xs, reverse=reverse)
    carry, out = window(carry, at(xs, 0))
    return carry, jax.tree.map(lambda a: a[None], out)


# Trees.


def at(tree: PyTree, i: int) -> PyTree:
    """One entry of every leaf."""
    return jax.tree.map(lambda a: a[i], tree)


def is_float(a: Array) -> bool:
    """Whether it is a number with a gradient."""
    return jnp.issubdtype(a.dtype, jnp.floating)


def wide(tree: PyTree) -> Any:
    """The type to compute in: float64 where a leaf is, else float32."""
    return jnp.float64 if any(a.dtype == jnp.float64 for a in jax.tree.leaves(tree)) else jnp.float32


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Its numbers in another type; integers stay."""
    return jax.tree.map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


def parted(tree: PyTree, wanted: Callable[[Array], bool] = is_float) -> tuple[PyTree, PyTree]:
    """Leaves that are wanted, by default those that have a gradient, and the others; the gaps are None."""
    pick = lambda want: jax.tree.map(lambda a: a if wanted(a) is want else None, tree)
    return pick(True), pick(False)


def joined(wanted: PyTree, fixed: PyTree) -> PyTree:
    """The inverse of `parted`."""
    return jax.tree.map(lambda a, b: b if a is None else a, wanted, fixed, is_leaf=lambda a: a is None)
