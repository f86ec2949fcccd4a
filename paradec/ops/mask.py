"""Structured attention masks: small objects over per-token facts that compose with `&` and `|`.

A mask never exists as a dense matrix until attention asks for the piece it works on: `mask(queries, keys)` gives the
boolean "B Q S" for the facts of those queries and keys, so masks of long sequences are built block by block.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from paradec import struct
from paradec.types import Place


@struct.dataclass
class Facts:
    """What a mask may know about tokens. `position` is the place in the text, `segment` the packed document."""

    position: Int[Array, "B T"]
    valid: Bool[Array, "B T"] | None = None  # None: all
    segment: Int[Array, "B T"] | None = None


@struct.dataclass
class Mask:
    """Which keys a query may see. Subclasses say how; `&` and `|` combine."""

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        raise NotImplementedError

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)


def _pair(
    query: Shaped[Array, "B Q"], key: Shaped[Array, "B S"]
) -> tuple[Shaped[Array, "B Q 1"], Shaped[Array, "B 1 S"]]:
    return query[:, :, None], key[:, None, :]


@struct.dataclass
class Full(Mask):
    """Every key: bidirectional attention."""

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        shape = (*query.position.shape, key.position.shape[1])
        return jnp.ones(shape, bool)


@struct.dataclass
class Causal(Mask):
    """Keys at the query's position or before."""

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        q, k = _pair(query.position, key.position)
        return k <= q


@struct.dataclass
class Window(Mask):
    """Keys less than `size` positions before the query; says nothing about later ones (combine with `Causal`)."""

    size: int | Int[Array, ""]

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        q, k = _pair(query.position, key.position)
        return q - k < self.size


@struct.dataclass
class Block(Mask):
    """Block-causal: keys in the query's block of `size` positions or in an earlier one. Size 1 is `Causal`."""

    size: int = struct.field(pytree_node=False)

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        q, k = _pair(query.position, key.position)
        return k // self.size <= q // self.size


@struct.dataclass
class Prefix(Mask):
    """Keys inside the row's first `length` positions: the part that everyone sees, in both directions."""

    length: Int[Array, "B"]

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        q, k = _pair(query.position, key.position)
        return jnp.broadcast_to(k < self.length[:, None, None], jnp.broadcast_shapes(q.shape, k.shape))


@struct.dataclass
class Segment(Mask):
    """Keys of the query's own packed document."""

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        if query.segment is None or key.segment is None:
            raise ValueError("A Segment mask needs `segment` ids on both queries and keys; pass segment= to forward.")
        q, k = _pair(query.segment, key.segment)
        return q == k


@struct.dataclass
class Given(Mask):
    """A relation that is already known, such as the ancestors of a draft tree."""

    see: Bool[Array, "B Q S"]

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        return self.see


@struct.dataclass
class Both(Mask):
    """Keys that both masks allow."""

    left: Mask
    right: Mask

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        return self.left(query, key) & self.right(query, key)


@struct.dataclass
class Either(Mask):
    """Keys that at least one of the masks allows."""

    left: Mask
    right: Mask

    def __call__(self, query: Facts, key: Facts) -> Bool[Array, "B Q S"]:
        return self.left(query, key) | self.right(query, key)


def ancestors(parent: Int[Array, "B N"]) -> Bool[Array, "B N N"]:
    """`see[b, i, j]`: j is i or an ancestor of i. A root is its own parent. log2 N rounds of pointer doubling."""
    n = parent.shape[1]
    see = jnp.broadcast_to(jnp.eye(n, dtype=bool), (parent.shape[0], n, n))
    for _ in range(max(n - 1, 0).bit_length()):
        see = see | jnp.take_along_axis(see, parent[:, :, None], axis=1)
        parent = jnp.take_along_axis(parent, parent, axis=1)
    return see


def on_canvas(place: Place) -> Bool[Array, "B M M"]:
    """Which rows of its own call each canvas row sees; see `types.Place`."""
    query, key = _pair(place.position, place.position)
    see = place.fresh[:, None, :] & (key < place.sees[:, :, None])
    if place.shadow is None:
        return see
    asks, stands = _pair(place.shadow, place.shadow)
    return see & jnp.where(stands, asks, ~(asks & (query == key)))


def under_canvas(place: Place, length: Int[Array, "B"], slots: int) -> Callable[[Array], Bool[Array, "B M S"]]:
    """Which of the given cache slots each canvas row sees; `slots` is the cache's size."""
    shadow = jnp.zeros_like(place.fresh) if place.shadow is None else place.shadow
    stands = place.fresh & ~shadow
    stood = jax.vmap(lambda at, x: jnp.zeros(slots, bool).at[at].max(x, mode="drop"))(place.position, stands)

    def see(slot: Int[Array, "S"]) -> Bool[Array, "B M S"]:
        free = (slot[None] < length[:, None]) & ~stood[:, slot]
        beside = shadow[:, :, None] & (slot[None, None] == place.position[:, :, None])
        return free[:, None] & (slot[None, None] < place.sees[:, :, None]) & ~beside

    return see
