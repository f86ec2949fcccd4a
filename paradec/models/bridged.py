"""A causal function of tokens as a `types.Model`: it computes the text anew in every call, or keeps what it brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.errors import InputError
from paradec.ops.mask import ancestors
from paradec.types import Model, Output, Rows, Spec

UNBOUNDED = 2**30
"""`max_length` of a function that reads texts of any length."""


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """A cache that a function brings: for every token of every row it keeps some arrays, such as keys and values.

    `init(batch, slots)` returns an empty one: a tree in which every leaf has one axis for the rows of the batch and
    one, of at least `slots`, for the tokens, wherever they stand. The token at position p of a row is kept in slot p.

    `apply(params, token "B T", position "B T", cache) -> (logits "B T V", cache)` writes what it keeps of each token
    into the slot of its position and lets it see the slots up to that one, of its own row. Whatever stands in later
    slots is junk. Positions of a row are consecutive and below `slots`; each row begins at its own.
    """

    init: Callable[[int, int], PyTree]
    apply: Callable[[PyTree, Array, Array, PyTree], tuple[Array, PyTree]]


class Leaf(NamedTuple):
    """One leaf of a `TokenCache` for one row of one token, and which axes count rows and tokens."""

    shape: tuple[int, ...]
    dtype: Any
    row: int
    slot: int

    @property
    def inner(self) -> int:
        """The axis of the tokens where the axis of the rows is gone, as under `vmap`."""
        return self.slot - (self.row < self.slot)


@struct.dataclass
class BridgedCache:
    """The text that was read, and what the function keeps of its tokens (nothing, if it recomputes)."""

    text: Int32[Array, "B S"]
    kept: PyTree
    length: Int32[Array, "B"]
    rows: tuple[int, ...] = struct.field(pytree_node=False, default=())  # the axis of rows of each leaf of `kept`

    def axes(self) -> BridgedCache:
        """The logical axes of every leaf, named as in `Spec.axes`."""
        leaves, tree = jax.tree.flatten(self.kept)
        named = [
            tuple("batch" if axis == row else None for axis in range(x.ndim))
            for x, row in zip(leaves, self.rows, strict=True)
        ]
        return self.replace(text=("batch", None), kept=tree.unflatten(named), length=("batch",))


@struct.dataclass
class BridgedDelta:
    """The tokens of a call's rows, and what the function would keep of each."""

    token: Int32[Array, "B N"]
    kept: PyTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Bridged(Model):
    """`apply(params, token "B T") -> logits "B T V"` as a model. Functions compare by `==`: plain ones by identity.

    Without `cache` every call computes `apply` on all slots of the canvas, so a call costs what a forward of the whole
    canvas costs, however few rows it asks for; many tokens a call are then all the more worth it. With one it computes
    the rows alone, and writes what they keep into a copy of the cache, of which `commit` takes the accepted tokens:
    the copy is read once and thrown away, so a refused token leaves no trace, and costs nothing but that copy.

    A function reads chains. A chain is one call of it. Of a tree every path from the root to a leaf is laid out as a
    chain, one after the other in a loop, of as many turns as the row with the most leaves needs: memory is that of a
    chain, time is that times the leaves. There are no hidden states: `Output.hidden` has width 0.

    Rows that an earlier `extend` left pending are read again by the next one, from their tokens.
    """

    apply: Callable[[PyTree, Array], Array]
    vocab_size: int
    max_length: int = dataclasses.field()
    tree: Any  # structure of the parameters
    leaves: tuple[tuple[tuple[int, ...], str], ...]  # and the shape and type of each
    cache: TokenCache | None = None
    cache_tree: Any = None  # structure of what the cache keeps
    cache_leaves: tuple[Leaf, ...] = ()

    @property
    def dtype(self) -> str:
        """The type of the first floating-point parameter; float32 where there is none."""
        wide = (dtype for _, dtype in self.leaves if jnp.issubdtype(dtype, jnp.floating))
        return next(wide, "float32")

    def specs(self) -> PyTree:
        """The parameter tree, a `Spec` at every leaf: shapes and types. No axis is named, so a mesh shards none."""
        return self.tree.unflatten([Spec(shape, (None,) * len(shape), 0.02, dtype) for shape, dtype in self.leaves])

    def forward(
        self,
        params: PyTree,
        token: Int[Array, "B T"],
        *,
        taps: tuple[int, ...] = (),
        read: Callable[[Array], Array] | None = None,
        **facts: Any,
    ) -> Output:
        """Whole sequences at once. The function chooses its own mask, so other facts are refused."""
        if given := [name for name, value in facts.items() if value is not None]:
            raise InputError(f"A bridged function reads tokens alone and has no use for {', '.join(given)}.")
        self._no_taps(taps)
        if token.shape[1] > self.max_length:
            raise InputError(f"{token.shape[1]} tokens were given and this model reads at most {self.max_length}.")
        logits = self.apply(params, token)
        return self._output(logits if read is None else read(logits))

    def init_cache(self, batch: int, slots: int) -> BridgedCache:
        """An empty cache with room for `slots` tokens a row, and for no more than the model reads."""
        slots = max(1, min(slots, self.max_length))
        kept = () if self.cache is None else self.cache.init(batch, slots)
        text, rows = jnp.zeros((batch, slots), jnp.int32), tuple(leaf.row for leaf in self.cache_leaves)
        return BridgedCache(text=text, kept=kept, length=jnp.zeros(batch, jnp.int32), rows=rows)

    def init_delta(self, batch: int, rows: int) -> BridgedDelta:
        """A delta of `rows` rows that several `extend` calls may fill."""

        def empty(leaf: Leaf) -> Array:
            size = {leaf.row: batch, leaf.slot: rows}
            return jnp.zeros([size.get(axis, n) for axis, n in enumerate(leaf.shape)], leaf.dtype)

        token, kept = jnp.zeros((batch, rows), jnp.int32), [empty(leaf) for leaf in self.cache_leaves]
        return BridgedDelta(token=token, kept=() if self.cache is None else self.cache_tree.unflatten(kept))

    def extend(
        self,
        params: PyTree,
        cache: BridgedCache,
        rows: Rows,
        pending: BridgedDelta | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, BridgedDelta]:
        """Compute `rows` behind the cached text; see `types.Model`, and the class for what it costs."""
        self._no_taps(taps)
        if rows.place is not None or rows.embed is not None:
            raise InputError("A bridged function reads tokens from left to right: no canvas and no embeddings.")
        B, M = rows.token.shape
        delta = self.init_delta(B, M) if pending is None else pending
        token = lax.dynamic_update_slice_in_dim(delta.token, rows.token.astype(jnp.int32), rows.start, axis=1)
        index = lax.iota(jnp.int32, token.shape[1])[None]
        asked = (index >= rows.start) & (index < rows.start + M)
        # Columns of a call: up to the last row that is asked for, where that is known when this is compiled.
        wide = rows.start + M if isinstance(rows.start, int) else token.shape[1]

        def along(path: Bool[Array, "B N"], found: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            """What was found, and what the nodes of one path give that are asked for."""
            at = cache.length[:, None] + jnp.cumsum(path, axis=1, dtype=jnp.int32) - 1
            logits, kept = self._chain(params, cache, token, jnp.where(path, at, cache.text.shape[1]), at, wide)
            here = path & asked
            mine = lambda x: lax.dynamic_slice_in_dim(x, rows.start, M, axis=1)
            new = jnp.where(mine(here)[:, :, None], mine(logits), found[0])
            return new, self._each(lambda leaf, old, new: where_rows(leaf, here, new, old), found[1], kept)

        found = (jnp.zeros((B, M, self.vocab_size)), delta.kept)
        if rows.parent is None:
            logits, kept = along(jnp.broadcast_to(index < rows.start + M, token.shape), found)
        else:
            most, path = paths(rows, asked, live)
            logits, kept = lax.fori_loop(0, most, lambda i, found: along(path(i), found), found)
        if rows.read is not None:
            logits = jnp.take_along_axis(logits, rows.read[:, :, None], axis=1)
        return self._output(logits), BridgedDelta(token=token, kept=kept)

    def _chain(
        self,
        params: PyTree,
        cache: BridgedCache,
        token: Int[Array, "B N"],
        write: Int[Array, "B N"],
        at: Int[Array, "B N"],
        wide: int,
    ) -> tuple[Float[Array, "B N V"], PyTree]:
        """Logits at the positions `at`, and what is kept of them, of the text with `token` at positions `write`.

        The function is asked for `wide` columns, the first at the end of the cached text. Where that would lead beyond
        the last slot they begin earlier, and the text's last tokens are read again: so no position is out of range, and
        a cache may be written with windows, which clamp. Positions in `at` beyond the last slot give junk.
        """
        slots = cache.text.shape[1]
        text = write_rows(Leaf((1, 1), jnp.int32, 0, 1), cache.text, token, write)
        if self.cache is None:
            logits, kept, column = self.apply(params, text), (), at
        else:
            wide = min(wide, slots)
            begin = jnp.minimum(cache.length, slots - wide)[:, None]
            position = begin + lax.iota(jnp.int32, wide)[None]
            words = jnp.take_along_axis(text, position, axis=1)
            logits, written = self.cache.apply(params, words, position, cache.kept)
            kept = self._each(lambda leaf, x: rows_at(leaf, x, jnp.clip(at, 0, slots - 1)), written)
            column = at - begin
        column = jnp.clip(column, 0, logits.shape[1] - 1)[:, :, None]
        return jnp.take_along_axis(logits.astype(jnp.float32), column, axis=1), kept

    def commit(
        self, cache: BridgedCache, delta: BridgedDelta, path: Int[Array, "B P"] | None, count: Int[Array, "B"]
    ) -> BridgedCache:
        """The cache with delta rows `path[:count]` appended; see `types.Model`. Only their slots are written."""
        token, kept = delta.token, delta.kept
        if path is not None:
            token = jnp.take_along_axis(token, path, axis=1)
            kept = self._each(lambda leaf, x: rows_at(leaf, x, path), kept)
        index = lax.iota(jnp.int32, token.shape[1])[None]
        at = jnp.where(index < count[:, None], cache.length[:, None] + index, cache.text.shape[1])
        text = write_rows(Leaf((1, 1), jnp.int32, 0, 1), cache.text, token, at)
        kept = self._each(lambda leaf, old, new: write_rows(leaf, old, new, at), cache.kept, kept)
        return cache.replace(text=text, kept=kept, length=cache.length + count)

    def _each(self, do: Callable[..., Array], *trees: PyTree) -> PyTree:
        """`do(leaf, ...)` over the leaves of what is kept."""
        if self.cache is None:
            return ()
        flat = [self.cache_tree.flatten_up_to(tree) for tree in trees]
        return self.cache_tree.unflatten([do(*each) for each in zip(self.cache_leaves, *flat, strict=True)])

    def _output(self, logits: Float[Array, "B M V"]) -> Output:
        return Output(logits=logits.astype(jnp.float32), hidden=jnp.zeros((*logits.shape[:2], 0)))

    def _no_taps(self, taps: tuple[int, ...]) -> None:
        if taps:
            raise InputError("A bridged function gives logits alone; this method reads hidden states.")


def paths(
    rows: Rows, asked: Bool[Array, "1 N"], live: Bool[Array, "B"] | None
) -> tuple[Int[Array, ""], Callable[[Array | int], Bool[Array, "B N"]]]:
    """How many paths from root to leaf the busiest row has, and the nodes of path i (none where a row has fewer).

    Of the tree

        0 ── 1 ── 3
        │    └─── 4        2 and 5 are their own parents, 2 at depth 0, 5 deeper: an unused node
        2         5

    that is asked for whole the leaves are 2, 3 and 4, and the paths {2}, {0, 1, 3} and {0, 1, 4}: nodes 0 and 1 are
    computed twice, with the same result. If 3, 4 and 5 are not asked for, 1 is a leaf. That nobody reads an unused node
    (see `types.Tree`) makes a chain of which only the first nodes are used one path, whatever its length.
    """
    parent = rows.parent
    index = lax.broadcasted_iota(jnp.int32, parent.shape, 1)
    hangs = asked & (parent != index)
    has_child = jax.vmap(lambda up, hangs: jnp.zeros_like(hangs).at[up].max(hangs))(parent, hangs)
    depth = lax.dynamic_update_slice_in_dim(jnp.zeros_like(index), rows.depth.astype(jnp.int32), rows.start, axis=1)
    leaf = asked & ~has_child & ~((parent == index) & (depth > 0))
    number = jnp.where(leaf, jnp.cumsum(leaf, axis=1, dtype=jnp.int32), 0)  # leaves are counted from 1
    most = jnp.max(number if live is None else jnp.where(live[:, None], number, 0))
    see = ancestors(parent)
    return most, lambda i: jnp.any(see & (number == i + 1)[:, :, None], axis=1)


def rows_at(leaf: Leaf, x: Array, at: Int[Array, "B N"]) -> Array:
    """The slots `at` of each row of a leaf."""
    take = lambda x, at: jnp.take(x, at, axis=leaf.inner, mode="clip")
    return jax.vmap(take, in_axes=(leaf.row, 0), out_axes=leaf.row)(x, at)


def write_rows(leaf: Leaf, x: Array, new: Array, at: Int[Array, "B N"]) -> Array:
    """A leaf with `new` in the slots `at` of each row; slots that it does not have are not written."""
    put = lambda x, new, at: x.at[(slice(None),) * leaf.inner + (at,)].set(new, mode="drop")
    return jax.vmap(put, in_axes=(leaf.row, leaf.row, 0), out_axes=leaf.row)(x, new, at)


def where_rows(leaf: Leaf, keep: Bool[Array, "B N"], new: Array, old: Array) -> Array:
    """`new` in the slots of each row that `keep` names, `old` in the others."""

    def pick(keep: Array, new: Array, old: Array) -> Array:
        shape = [1] * new.ndim
        shape[leaf.inner] = keep.shape[0]
        return jnp.where(keep.reshape(shape), new, old)

    return jax.vmap(pick, in_axes=(0, leaf.row, leaf.row), out_axes=leaf.row)(keep, new, old)
