"""What architectures with attention share: caches, the pass over whole sequences, and the pass of rows over a cache.

An architecture adds its fields, its parameter tree, and the pieces of its layers, put together from `models.layer`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from paradec.models import cache as kv
from paradec.models import lora
from paradec.models.cache import BLOCK, KVCache, KVDelta
from paradec.models.laid_out import held_back, in_turn, once, taken_apart
from paradec.models.layer import Turn
from paradec.ops.attention import attend, attend_cache, attend_masked
from paradec.ops.mask import Causal, Facts, Mask, Segment, Window, ancestors, on_canvas, under_canvas
from paradec.types import Model, Output, Rows, Sizes, Stacks


class Backbone(Model, abc.ABC):
    """The base of a static dataclass whose fields, among others, are the first ones here.

    Its parameter tree has the fields `embed`, `head` (None: tied to `embed`) and those that `stacks` names.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int  # positions the model was trained for
    query_scale: float | None  # factor on q·k; None: head_dim ** -0.5
    dtype: str  # of weights, activations and cache; norms, softmax, logits and routers are float32

    lays_out = True
    window: int = 0
    """Sliding layers see this many positions, themselves included; 0: none slide."""

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def scale(self) -> float:
        """Factor on q·k."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def slides(self) -> np.ndarray:
        """Which layers attend through the sliding window: bool "L"."""
        return np.zeros(self.num_layers, bool)

    @abc.abstractmethod
    def specs(self) -> PyTree:
        """The parameter tree, a `Spec` at every leaf."""

    def sizes(self) -> Sizes:
        """The numbers that formulas need."""
        return Sizes(
            vocab_size=self.vocab_size, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, mlp_width=self.mlp_width, dtype=self.dtype,
        )  # fmt: skip

    @abc.abstractmethod
    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""

    # The pieces of a layer.

    @abc.abstractmethod
    def _embed(self, params: Any, token: Array, embed: Array | None = None, aux: Array | None = None) -> Array:
        """The residual stream before the first layer; where `aux`, the row of `embed` takes the token's place."""

    @abc.abstractmethod
    def _angles(self, position: Array) -> Turn:
        """The cosines and sines of a call (`layer.turns`)."""

    @abc.abstractmethod
    def _qkv(self, w: Any, x: Array, turn: Turn, slide: Array) -> tuple[Array, Array, Array]:
        """Queries "B H G T K", keys and values "B H T K" of a layer."""

    @abc.abstractmethod
    def _join(self, w: Any, x: Array, out: Array) -> Array:
        """The residual stream after attention, which found `out`, "B H G T K"."""

    @abc.abstractmethod
    def _mlp(self, w: Any, x: Array) -> Array:
        """The residual stream after the MLP."""

    @abc.abstractmethod
    def _output(self, params: Any, x: Array, every: Array | None, taps: tuple[int, ...]) -> Output:
        """The norm before the vocabulary head, and the head; `every` holds the stream after each layer."""

    # Whole sequences.

    def forward(
        self,
        params: Any,
        token: Int[Array, "B T"],
        *,
        mask: Mask = Causal(),
        position: Int[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        segment: Int[Array, "B T"] | None = None,
        taps: tuple[int, ...] = (),
        remat: bool = False,
        attention: Callable[..., Array] = attend_masked,
        read: Callable[[Array], Array] | None = None,
    ) -> Output:
        """Whole sequences at once. Another `mask` makes the same weights bidirectional or block-causal.

        `valid` hides padding keys, `segment` separates packed documents. `remat` recomputes each layer in the backward
        pass. Sliding layers intersect the mask with their window. `attention` may take the place of `attend_masked`.
        `read` picks the rows whose output is wanted, before the vocabulary head.
        """
        if position is None:
            position = jnp.broadcast_to(lax.iota(jnp.int32, token.shape[1])[None], token.shape)
        facts = Facts(position=position, valid=valid, segment=segment)
        base = mask if segment is None else mask & Segment()
        turn = self._angles(position)

        def layer(x: Array, scanned: tuple[Any, Array]) -> tuple[Array, Array | None]:
            w, slide = scanned
            q, k, v = self._qkv(w, x, turn, slide)
            out = attention(q, k, v, base & self._window(slide) if self.window else base, facts, self.scale)
            x = self._mlp(w, self._join(w, x, out))
            return x, x if taps else None

        body = jax.checkpoint(layer) if remat else layer
        x, every = self._scan(body, self._embed(params, token), params, (jnp.asarray(self.slides()),))
        if read is not None:
            x, every = read(x), every if every is None else jax.vmap(read)(every)
        return self._output(params, x, every, taps)

    # Rows on a cache.

    def init_cache(self, batch: int, slots: int) -> KVCache:
        """An empty key/value cache with room for `slots` tokens a row, rounded up to the attention block."""
        return kv.empty_cache(self.num_layers, batch, self.num_kv_heads, slots, self.head_dim, self.dtype)

    def init_delta(self, batch: int, rows: int) -> KVDelta:
        """A delta of `rows` rows that several `extend` calls may fill."""
        k = jnp.zeros((self.num_layers, batch, self.num_kv_heads, rows, self.head_dim), self.dtype)
        return KVDelta(k=k, v=jnp.zeros_like(k))

    def extend(
        self,
        params: Any,
        cache: KVCache,
        rows: Rows,
        pending: KVDelta | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, KVDelta]:
        """Compute `rows` on top of the cache (and of pending rows); see `types.Model`. The cache is only read."""
        place = rows.place
        position = cache.length[:, None] + rows.depth if place is None else place.position
        if place is None:
            nodes = rows.token.shape[1] if pending is None else pending.k.shape[3]
            see, back = visible(rows, None if rows.parent is None else ancestors(rows.parent), nodes)
        else:
            see, back = on_canvas(place), None
        beyond = None if place is None else under_canvas(place, cache.length, cache.k.shape[3])
        bound = jnp.max(cache.length if live is None else jnp.where(live, cache.length, 0))
        angles = lambda: self._angles(position)
        apart = self._apart(params)
        turn = once(angles, bound) if apart else angles()

        def layer(x: Array, scanned: tuple) -> tuple[Array, tuple]:
            w, old, index, slide = scanned
            q, k, v = self._qkv(w, x, turn, slide)
            if old is not None:
                k = lax.dynamic_update_slice_in_dim(old.k, k, rows.start, axis=2)
                v = lax.dynamic_update_slice_in_dim(old.v, v, rows.start, axis=2)
            own = attend(q, k, v, self._near(see, back, slide), self.scale)
            past = beyond or self._past(position, cache.length, slide)
            out = attend_cache(own, q, cache.k, cache.v, index, bound, past, self.scale, BLOCK).out
            x = self._mlp(w, self._join(w, x, out))
            return x, (KVDelta(k=k, v=v), x if taps else None)

        each = (pending, jnp.arange(self.num_layers), jnp.asarray(self.slides()))
        x, (delta, every) = self._scan(layer, self._embed(params, rows.token, rows.embed, rows.aux), params, each)
        if apart:
            delta = held_back(delta, x)
        if rows.read is not None:
            pick = lambda x: jnp.take_along_axis(x, rows.read[..., None], axis=1)
            x, every = pick(x), every if every is None else jax.vmap(pick)(every)
        return self._output(params, x, every, taps), delta

    def commit(self, cache: KVCache, delta: KVDelta, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> KVCache:
        """The cache with delta rows `path[:count]` appended; see `types.Model`."""
        return kv.commit(cache, delta, path, count)

    def store(
        self, cache: KVCache, delta: KVDelta, start: Int[Array, "B"], count: Int[Array, "B"], length: Int[Array, "B"]
    ) -> KVCache:
        """The cache of a canvas with delta rows `:count` at slots `start` on; see `types.Denoiser`."""
        return kv.store(cache, delta, start, count, length)

    def unembed(self, params: Any) -> Float[Array, "V D"]:
        """The vocabulary head: what `Output.hidden` is multiplied with."""
        return lora.merged(params.embed if params.head is None else params.head)

    def laid_out(self, params: Any) -> Any:
        """The same weights for a decode step on a CPU, which copies them out of a stack in every call.

        Every layer's are arrays of their own and the layers are written out, which takes longer to compile. They stand
        in the field of the last stack; those of stacks before it are None.
        """
        names = [name for name, _ in self.stacks().layers]
        layers = tuple(w for name in names for w in taken_apart(getattr(params, name)))
        return params.replace(**dict.fromkeys(names) | {names[-1]: layers})

    # All layers in turn.

    def _apart(self, params: Any) -> bool:
        """Whether these weights are laid out."""
        return isinstance(getattr(params, self.stacks().layers[-1][0]), tuple)

    def _scan(self, layer: Callable, x: Array, params: Any, each: tuple) -> tuple[Array, Any]:
        """`layer` over all of them in turn, with its weights and its slice of `each`; what they return is stacked."""
        stacks = self.stacks().layers
        last = getattr(params, stacks[-1][0])
        if self._apart(params):
            return in_turn(layer, x, last, each)
        if len(stacks) == 1:
            return lax.scan(layer, x, (last, *each))
        start, made = 0, []
        for name, depth in stacks:
            mine = jax.tree.map(lambda a, i=start, j=start + depth: a[i:j], each)
            x, out = lax.scan(layer, x, (getattr(params, name), *mine))
            start, made = start + depth, [*made, out]
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *made)

    # Who sees whom.

    def _window(self, slide: Array) -> Mask:
        """The window of a layer; one that does not slide gets a window longer than any text."""
        return Window(jnp.where(slide, self.window, np.iinfo(np.int32).max))

    def _near(self, see: Array, back: Array | None, slide: Array) -> Array:
        return see if back is None or not self.window else see & ((back < self.window) | ~slide)

    def _past(self, position: Array, length: Array, slide: Array) -> Callable[[Array], Array]:
        """Which cache slots each row sees; slot and position agree for committed text."""

        def see(slot: Array) -> Array:
            stored = slot[None, None] < length[:, None, None]
            if not self.window:
                return stored
            return stored & ((position[:, :, None] - slot[None, None] < self.window) | ~slide)

        return see


def visible(
    rows: Rows, ancestry: Bool[Array, "B N N"] | None, nodes: int
) -> tuple[Bool[Array, "#B M N"], Int[Array, "#B M N"]]:
    """Which of a delta's N rows each new row sees, and how many positions back they are. Chains have no `ancestry`."""
    M = rows.token.shape[1]
    if ancestry is None:
        back = rows.start + lax.iota(jnp.int32, M)[:, None] - lax.iota(jnp.int32, nodes)[None]
        return (back >= 0)[None], back[None]
    links = jnp.sum(ancestry, axis=-1, dtype=jnp.int32)  # a row's position grows by one with every link
    mine = lax.dynamic_slice_in_dim(links, rows.start, M, axis=1)
    return lax.dynamic_slice_in_dim(ancestry, rows.start, M, axis=1), mine[:, :, None] - links[:, None]
