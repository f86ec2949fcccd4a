"""The seam of a layer's mixer: what lets positions of a text know of each other, in whole sequences and row by row.

A `models.recurrent.RecurrentLM` is a pattern of mixers. Each keeps a state of its own kind (keys and values, a vector,
a matrix), and says how rows of a draft, chain or tree, are computed on top of it and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.ops.mask import Facts, ancestors
from paradec.types import Rows


@struct.dataclass
class Call:
    """What all layers of one `extend` share. `length` are the tokens that the cache holds of each row.

    The call's M rows are those from `rows.start` on of a delta of N rows. Of a tree `see[b, i, j]` says whether node j
    is node i or an ancestor of it; None on a chain.
    """

    rows: Rows
    length: Int32[Array, "B"]
    bound: Int32[Array, ""]  # no live row's cache is longer
    see: Bool[Array, "B N N"] | None = None

    @classmethod
    def of(cls, rows: Rows, length: Int32[Array, "B"], live: Bool[Array, "B"] | None) -> Call:
        """The call of these rows on caches of these lengths. Rows that are not `live` may be computed wrong."""
        bound = jnp.max(length if live is None else jnp.where(live, length, 0))
        return cls(rows, length, bound, None if rows.parent is None else ancestors(rows.parent))

    @property
    def position(self) -> Int[Array, "B M"]:
        """Where each row stands in its text."""
        return self.length[:, None] + self.rows.depth

    def written(self, new: PyTree, pending: PyTree | None) -> PyTree:
        """The delta of one layer: the rows just computed, "B M ...", among the pending ones, "B N ..."."""
        if pending is None:
            return new
        put = lambda old, x: lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), self.rows.start, axis=1)
        return jax.tree.map(put, pending, new)


@struct.dataclass
class Stacked:
    """The state of all layers of a place in the pattern, of which a mixer that `reads_stack` takes layer `index`."""

    stack: PyTree
    index: Int[Array, ""]


class Mixer:
    """One kind of layer: a frozen dataclass, registered static and compared by value.

    Weights, states and deltas are trees of its own whose leaves lead with an axis of layers, L, wherever they are not
    handed in for one layer. `x` is the normed residual stream; the model adds what a pass returns to the stream.
    """

    reads_stack: bool = False
    """Whether `extend` is given the whole stack as `Stacked`: a slice is copied, which matters where it is long."""
    skip_scale: bool = False
    """Whether the stream is multiplied by a learned number before this mixer's output is added to it."""

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> PyTree:
        """The weights, a `Spec` at every leaf. `branch` scales what projects back into the stream."""
        raise NotImplementedError

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> PyTree:
        """The state before any token, "L B ...", with room for `slots` tokens a row where it grows."""
        raise NotImplementedError

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> PyTree:
        """A delta of `rows` rows, "L B N ...", that several calls may fill."""
        raise NotImplementedError

    def axes(self, state: PyTree) -> PyTree:
        """The logical axes of each leaf of a state, named as in `Spec.axes`."""
        return jax.tree.map(lambda x: ("layers", "batch") + (None,) * (x.ndim - 2), state)

    def forward(self, w: Any, x: Float[Array, "B T D"], facts: Facts) -> tuple[Float[Array, "B T D"], PyTree | None]:
        """Whole sequences, and what a solver says of itself (`Output.info`).

        A segment begins with the state before any token. Positions that are not valid stand before or behind a text;
        what is returned for them means nothing, and they change nothing for the others.
        """
        raise NotImplementedError

    def extend(
        self, w: Any, x: Float[Array, "B M D"], state: PyTree, call: Call, pending: PyTree | None
    ) -> tuple[Float[Array, "B M D"], PyTree]:
        """Rows on top of one layer's state, and its delta of all N rows: see `types.Model.extend`."""
        raise NotImplementedError

    def commit(
        self,
        state: PyTree,
        delta: PyTree,
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int32[Array, "B"],
    ) -> PyTree:
        """The state of all layers after delta rows `path[:count]`; a count of 0 keeps every bit.

        `length` are the tokens that the state has seen, for what is written behind them.
        """
        raise NotImplementedError


def states_after(
    step: Callable[[PyTree, PyTree], PyTree], state: PyTree, inputs: PyTree, call: Call, pending: PyTree | None
) -> PyTree:
    """The state after every row of a delta, "B N ...", of any recurrence `state = step(state, input)`.

    `state` leaves are "B ...", `inputs` "B M ..."; `step` maps leaves that lead with "B" or with "B M" alike. A chain
    is a scan. A tree is swept: each sweep computes all rows from what their parents had after the last one, so after d
    sweeps all rows with up to d - 1 ancestors among the call's rows are right, and as many are made as the deepest
    row needs. A row that is its own parent begins from `state`.
    """
    rows, first = call.rows, jax.tree.leaves(inputs)[0]
    B, M = first.shape[:2]
    if rows.parent is None:
        if pending is not None:  # go on behind the last row that is known
            last = jnp.maximum(rows.start - 1, 0)
            known = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, last, axis=1, keepdims=False), pending)
            state = jax.tree.map(lambda x, old: jnp.where(rows.start > 0, x.astype(old.dtype), old), known, state)
        over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
        _, after = lax.scan(lambda h, u: (new := step(h, u), new), state, over_time)
        return call.written(jax.tree.map(lambda x: x.swapaxes(0, 1), after), pending)

    mine = lambda x: lax.dynamic_slice_in_dim(x, rows.start, M, axis=1)
    index = lax.broadcasted_iota(rows.parent.dtype, rows.parent.shape, 1)
    parent, root = mine(rows.parent), mine(rows.parent == index)
    blank = jax.tree.map(lambda x: jnp.zeros((B, rows.parent.shape[1], *x.shape[1:]), x.dtype), state)

    def before(old: Array, after: Array) -> Array:
        spread = lambda x: x.reshape(B, M, *(1,) * (old.ndim - 1))
        taken = jnp.take_along_axis(after, spread(parent), axis=1)
        return jnp.where(spread(root), old[:, None], taken.astype(old.dtype))

    sweep = lambda _, after: call.written(step(jax.tree.map(before, state, after), inputs), after)
    depth = jnp.max(jnp.sum(mine(call.see), axis=-1))
    return lax.fori_loop(0, depth, sweep, blank if pending is None else pending)


def chosen(after: PyTree, old: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
    """Of the states after every row, "L B N ...", the one after the last kept row; where none is kept, the old one."""
    last = jnp.maximum(count - 1, 0)[:, None]
    node = last if path is None else jnp.take_along_axis(path, last, axis=1)

    def pick(new: Array, old: Array) -> Array:
        spread = lambda x, dims: x.reshape(1, -1, *(1,) * (dims - 2))
        taken = jnp.take_along_axis(new, spread(node, new.ndim), axis=2)[:, :, 0]
        return jnp.where(spread(count > 0, old.ndim), taken.astype(old.dtype), old)

    return jax.tree.map(pick, after, old)
