"""Softmax attention as one mixer among others: the layers of a mixed stack that see every position."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from paradec import struct
from paradec.errors import check_fields
from paradec.models import cache as kv
from paradec.models import layer
from paradec.models.backbone import visible
from paradec.models.cache import BLOCK, KVCache, KVDelta
from paradec.models.mixer import Call, Mixer, Stacked
from paradec.ops.attention import attend, attend_cache, attend_masked
from paradec.ops.cache_write import AXES
from paradec.ops.mask import Causal, Facts, Segment, Window
from paradec.ops.rope import Rope
from paradec.types import Spec


@struct.dataclass
class AttentionWeights:
    """Per key head its queries, its key, its value; and the way back. Leaves lead with L."""

    qkv: Float[Array, "L D H G+2 K"]
    out: Float[Array, "L H G K D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Attention(Mixer):
    """Causal grouped-query attention with rotary positions; through a window where `window` is not 0."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope = Rope()
    window: int = 0

    reads_stack = True

    def __post_init__(self) -> None:
        """Raise `InputError` for heads that do not group."""
        shares = self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0
        check_fields(self, {
            "num_heads": (shares, f"a multiple of num_kv_heads ({self.num_kv_heads})"),
            "head_dim": (self.head_dim > 0 and self.head_dim % 2 == 0, "even, since rotary positions turn pairs"),
        })  # fmt: skip

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> AttentionWeights:
        """The weights, a `Spec` at every leaf."""
        L, D, H, K, G = layers, width, self.num_kv_heads, self.head_dim, self.num_heads // self.num_kv_heads
        axes = ("layers", "embed", "kv_heads", None, None)
        back = ("layers", "kv_heads", None, None, "embed")
        return AttentionWeights(
            qkv=Spec((L, D, H, G + 2, K), axes, D**-0.5, dtype, (1, 1)),
            out=Spec((L, H, G, K, D), back, (H * G * K) ** -0.5 * branch, dtype, (1, 3)),
        )

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> KVDelta:
        """Keys and values of no tokens. (The length is the model's.)"""
        cache = kv.empty_cache(layers, batch, self.num_kv_heads, slots, self.head_dim, dtype)
        return KVDelta(k=cache.k, v=cache.v)

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> KVDelta:
        """Keys and values of `rows` rows."""
        k = jnp.zeros((layers, batch, self.num_kv_heads, rows, self.head_dim), dtype)
        return KVDelta(k=k, v=jnp.zeros_like(k))

    def axes(self, state: PyTree) -> KVDelta:
        """The logical axes of the cache."""
        return KVDelta(k=AXES, v=AXES)

    def forward(
        self, w: AttentionWeights, x: Float[Array, "B T D"], facts: Facts
    ) -> tuple[Float[Array, "B T D"], None]:
        """Whole sequences: every position sees those before it in its segment."""
        mask = Causal() if facts.segment is None else Causal() & Segment()
        if self.window:
            mask = mask & Window(jnp.asarray(self.window))
        q, k, v = self._qkv(w, x, facts.position)
        return layer.attention_output(attend_masked(q, k, v, mask, facts, self.scale), w.out, x.dtype), None

    def extend(
        self, w: AttentionWeights, x: Float[Array, "B M D"], state: Stacked, call: Call, pending: KVDelta | None
    ) -> tuple[Float[Array, "B M D"], KVDelta]:
        """Rows on top of the cache; keys and values of all N rows."""
        q, k, v = self._qkv(w, x, call.position)
        if pending is not None:
            k = lax.dynamic_update_slice_in_dim(pending.k, k, call.rows.start, axis=2)
            v = lax.dynamic_update_slice_in_dim(pending.v, v, call.rows.start, axis=2)
        see, back = visible(call.rows, call.see, k.shape[2])
        own = attend(q, k, v, see & (back < self.window) if self.window else see, self.scale)
        past = lambda slot: self._past(call, slot)
        out = attend_cache(
            own, q, state.stack.k, state.stack.v, state.index, call.bound, past, self.scale, BLOCK
        ).out  # fmt: skip
        return layer.attention_output(out, w.out, x.dtype), KVDelta(k=k, v=v)

    def commit(
        self,
        state: KVDelta,
        delta: KVDelta,
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int[Array, "B"],
    ) -> KVDelta:
        """The cache with the kept rows behind its `length` tokens."""
        after = kv.commit(KVCache(k=state.k, v=state.v, length=length), delta, path, count)
        return KVDelta(k=after.k, v=after.v)

    @property
    def scale(self) -> float:
        """Factor on q·k."""
        return self.head_dim**-0.5

    def _qkv(self, w: AttentionWeights, x: Array, position: Array) -> tuple[Array, Array, Array]:
        turn = layer.turn_of(layer.turns([self.rope], position, self.head_dim), jnp.asarray(False))
        q, k, v = layer.queries_keys_values(x, w.qkv)
        return *layer.rotated(q, k, turn), v

    def _past(self, call: Call, slot: Array) -> Array:
        """Which cache slots each row sees; slot and position agree for committed text."""
        stored = slot[None, None] < call.length[:, None, None]
        if not self.window:
            return stored
        return stored & (call.position[:, :, None] - slot[None, None] < self.window)
