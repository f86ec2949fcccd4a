"""One decoder stack: Llama, SmolLM2, Mistral, Ministral 3, Qwen2, Qwen3, Gemma 3, mixtures of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec import struct
from paradec.mesh import constrain
from paradec.models import cache as kv
from paradec.models import lora
from paradec.models.cache import BLOCK, KVCache, KVDelta
from paradec.models.experts import Experts, ExpertWeights
from paradec.models.layers import held_back, in_turn, once, taken_apart
from paradec.ops.attention import attend, attend_cache, attend_masked
from paradec.ops.mask import Causal, Facts, Mask, Segment, Window, ancestors, on_canvas, under_canvas
from paradec.ops.norm import rms_norm
from paradec.ops.product import wide_einsum
from paradec.ops.rope import Rope, angles, query_growth, rotate
from paradec.types import Model, Output, Rows, Spec


@struct.dataclass
class Blocks:
    """The layer stack: every leaf has a leading layer axis L. H here counts key/value heads, G queries per key head."""

    attn_norm: Float[Array, "L D"]
    qkv: Float[Array, "L D H G+2 K"]  # per key head: its G queries, then its key, then its value
    qkv_bias: Float[Array, "L H G+2 K"] | None
    q_norm: Float[Array, "L K"] | None
    k_norm: Float[Array, "L K"] | None
    out: Float[Array, "L H G K D"]
    attn_post_norm: Float[Array, "L D"] | None
    mlp_norm: Float[Array, "L D"]
    gate_up: Float[Array, "L 2 D F"] | None  # gate, then up; beside experts the MLP that all tokens pass, if any
    down: Float[Array, "L F D"] | None
    mlp_post_norm: Float[Array, "L D"] | None
    experts: ExpertWeights | None = None


@struct.dataclass
class Weights:
    """The parameter tree of a `Transformer`. `head` is None where it is tied to `embed`.

    `leading` are the layers before the first with experts, where there are any: their MLPs have another shape.
    """

    embed: Float[Array, "V D"]
    blocks: Blocks | tuple[Blocks, ...]  # one stack, or the layers one by one (see `Transformer.laid_out`)
    norm: Float[Array, "D"]
    head: Float[Array, "V D"] | None
    leading: Blocks | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Transformer(Model):
    """A decoder's structure. Two equal ones never recompile; its weights are a `Weights` tree that you pass along."""

    lays_out = True

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_length: int = 2048  # positions the model was trained for
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    local_rope: Rope | None = None  # of sliding layers, where it differs (Gemma 3)
    window: int = 0  # sliding layers see this many positions, themselves included; 0: none slide
    sliding: tuple[bool, ...] = ()  # which layers slide; empty: all, if there is a window
    tied: bool = True
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3, Gemma 3
    post_norms: bool = False  # Gemma: a norm after attention and after the MLP too
    unit_norm: bool = False  # Gemma: norms multiply by 1 + w
    embed_scale: float = 1.0  # Gemma: sqrt(width)
    query_scale: float | None = None  # factor on q·k; None: head_dim ** -0.5
    activation: str = "silu"  # or "gelu_tanh"
    dtype: str = "float32"  # of weights, activations and cache; norms, softmax, logits and routers are float32
    experts: Experts | None = None  # LLaDA-MoE, LLaDA2, SDAR-MoE: many small MLPs a layer, of which a token passes few

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
        if not self.window:
            return np.zeros(self.num_layers, bool)
        return np.asarray(self.sliding or (True,) * self.num_layers)

    def specs(self) -> Weights:
        """The parameter tree, a `Spec` at every leaf."""
        mixture, D = self.experts, self.width
        leading = mixture.leading if mixture else 0
        table = Spec((self.vocab_size, D), ("vocab", "embed"), D**-0.5, self.dtype, (0, 1))
        return Weights(
            embed=table,
            blocks=self._stack(self.num_layers - leading, mixture.shared if mixture else self.mlp_width, mixture),
            norm=Spec((D,), (None,), "zeros" if self.unit_norm else "ones", self.dtype),
            head=None if self.tied else table,
            leading=self._stack(leading, self.mlp_width, None) if leading else None,
        )

    def _stack(self, L: int, F: int, mixture: Experts | None) -> Blocks:
        """The specs of L layers alike, whose MLPs have width F; 0: experts alone."""
        D, H, G, K = self.width, self.num_kv_heads, self.groups, self.head_dim

        def spec(
            shape: tuple[int, ...], axes: tuple[str | None, ...], init: float | str, dense: tuple | None = None
        ) -> Spec:
            return Spec(shape, axes, init, self.dtype, dense)

        def norm(size: int, present: bool = True) -> Spec | None:
            return spec((L, size), ("layers", None), "zeros" if self.unit_norm else "ones") if present else None

        residual = (2 * self.num_layers) ** -0.5  # keeps the residual stream's variance independent of depth
        return Blocks(
            attn_norm=norm(D),
            qkv=spec((L, D, H, G + 2, K), ("layers", "embed", "kv_heads", None, None), D**-0.5, (1, 1)),
            qkv_bias=spec((L, H, G + 2, K), ("layers", "kv_heads", None, None), "zeros") if self.qkv_bias else None,
            q_norm=norm(K, self.qk_norm),
            k_norm=norm(K, self.qk_norm),
            out=spec(
                (L, H, G, K, D), ("layers", "kv_heads", None, None, "embed"), (H * G * K) ** -0.5 * residual, (1, 3)
            ),
            attn_post_norm=norm(D, self.post_norms),
            mlp_norm=norm(D),
            gate_up=spec((L, 2, D, F), ("layers", None, "embed", "mlp"), D**-0.5, (2, 1)) if F else None,
            down=spec((L, F, D), ("layers", "mlp", "embed"), F**-0.5 * residual, (1, 1)) if F else None,
            mlp_post_norm=norm(D, self.post_norms),
            experts=mixture.specs(L, D, self.dtype, residual) if mixture else None,
        )

    def laid_out(self, params: Weights) -> Weights:
        """The same weights for a decode step on a CPU, which copies them out of a stack in every call.

        Every layer's are arrays of their own and the layers are written out, which takes longer to compile.
        """
        stacks = [stack for stack in (params.leading, params.blocks) if stack is not None]
        return params.replace(blocks=tuple(w for stack in stacks for w in taken_apart(stack)), leading=None)

    def forward(
        self,
        params: Weights,
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

        def layer(x: Array, scanned: tuple[Blocks, Array]) -> tuple[Array, Array | None]:
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

    def init_cache(self, batch: int, slots: int) -> KVCache:
        """An empty key/value cache with room for `slots` tokens a row, rounded up to the attention block."""
        return kv.empty_cache(self.num_layers, batch, self.num_kv_heads, slots, self.head_dim, self.dtype)

    def init_delta(self, batch: int, rows: int) -> KVDelta:
        """A delta of `rows` rows that several `extend` calls may fill."""
        k = jnp.zeros((self.num_layers, batch, self.num_kv_heads, rows, self.head_dim), self.dtype)
        return KVDelta(k=k, v=jnp.zeros_like(k))

    def extend(
        self,
        params: Weights,
        cache: KVCache,
        rows: Rows,
        pending: KVDelta | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, KVDelta]:
        """Compute `rows` on top of the cache (and of pending rows); see `types.Model`. The cache is only read."""
        place = rows.place
        position = cache.length[:, None] + rows.depth if place is None else place.position
        see, back = self._visible(rows, pending) if place is None else (on_canvas(place), None)
        beyond = None if place is None else under_canvas(place, cache.length, cache.k.shape[3])
        bound = jnp.max(cache.length if live is None else jnp.where(live, cache.length, 0))
        angles = lambda: self._angles(position)
        turn = once(angles, bound) if isinstance(params.blocks, tuple) else angles()

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
        if isinstance(params.blocks, tuple):
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

    def unembed(self, params: Weights) -> Float[Array, "V D"]:
        """The vocabulary head: what `Output.hidden` is multiplied with."""
        return lora.merged(params.embed if params.head is None else params.head)

    def _scan(self, layer: Callable, x: Array, params: Weights, each: tuple) -> tuple[Array, Any]:
        """`layer` over all of them in turn, with its weights and its slice of `each`; what they return is stacked."""
        if isinstance(params.blocks, tuple):
            return in_turn(layer, x, params.blocks, each)
        if params.leading is None:
            return lax.scan(layer, x, (params.blocks, *each))
        k = self.experts.leading
        x, before = lax.scan(layer, x, (params.leading, *jax.tree.map(lambda a: a[:k], each)))
        x, after = lax.scan(layer, x, (params.blocks, *jax.tree.map(lambda a: a[k:], each)))
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, after)

    # The pieces of a layer.

    def _norm(self, x: Array, weight: Array) -> Array:
        return rms_norm(x, weight, self.norm_eps, offset=1.0 if self.unit_norm else 0.0)

    def _embed(self, params: Weights, token: Array, embed: Array | None = None, aux: Array | None = None) -> Array:
        x = lora.changed(params.embed, lambda table: table[token], lambda a, b: a[token] @ b)
        if embed is not None:
            x = jnp.where(aux[..., None], embed.astype(x.dtype), x)
        x = x if self.embed_scale == 1.0 else x * jnp.asarray(self.embed_scale, x.dtype)
        return constrain(x, ("batch", None, None))

    def _angles(self, position: Array) -> tuple[Array, ...]:
        """Cosines and sines "B 1 1 T K/2"; stacked (global, local) in front where sliding layers have their own.

        Where queries grow with their position, the factor on them, "B 1 1 T 1", comes third.
        """
        ropes = [self.rope] if self.local_rope is None else [self.rope, self.local_rope]
        tables: list[tuple[Array, ...]] = [angles(rope, position, self.head_dim) for rope in ropes]
        if any(rope.query_beta for rope in ropes):
            tables = [(*t, query_growth(r, position)[..., None]) for r, t in zip(ropes, tables, strict=True)]
        return tuple(jnp.stack(same)[:, :, None, None] for same in zip(*tables, strict=True))

    def _qkv(self, w: Blocks, x: Array, turn: tuple[Array, ...], slide: Array) -> tuple[Array, Array, Array]:
        cos, sin, *growth = (t[0] if self.local_rope is None else jnp.where(slide, t[1], t[0]) for t in turn)
        # Written with heads last and transposed after: asked for directly, XLA would transpose the weights instead.
        qkv = lora.product("btd,dhgk->bthgk", self._norm(x, w.attn_norm), w.qkv)
        if w.qkv_bias is not None:
            qkv = qkv + w.qkv_bias[None, None]
        qkv = qkv.transpose(0, 2, 3, 1, 4)
        q, k, v = qkv[:, :, :-2], qkv[:, :, -2:-1], qkv[:, :, -1]
        if self.qk_norm:
            q, k = self._norm(q, w.q_norm), self._norm(k, w.k_norm)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)[:, :, 0]
        if growth:
            q = (q.astype(jnp.float32) * growth[0]).astype(q.dtype)
        return q, k, v

    def _mixed(self, w: Blocks, out: Array, dtype: Any) -> Array:
        """What the heads found, in the width of the model."""
        if lora.removed(w.out).ndim == 4:
            return lora.product("bhgtk,hgkd->btd", out.astype(dtype), w.out)
        B, _, _, T, _ = out.shape  # laid out: a CPU would transpose the weight, so the activations are
        return lora.product("bti,id->btd", out.astype(dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, -1), w.out)

    def _join(self, w: Blocks, x: Array, out: Array) -> Array:
        mixed = self._mixed(w, out, x.dtype)
        return x + (mixed if w.attn_post_norm is None else self._norm(mixed, w.attn_post_norm))

    def _mlp(self, w: Blocks, x: Array) -> Array:
        x_norm = self._norm(x, w.mlp_norm)
        mixed = None if w.gate_up is None else self._plain_mlp(w, x_norm)
        if w.experts is not None:
            routed = self.experts.mix(w.experts, x_norm, self._activate)
            mixed = routed if mixed is None else routed + mixed
        return x + (mixed if w.mlp_post_norm is None else self._norm(mixed, w.mlp_post_norm))

    def _plain_mlp(self, w: Blocks, x: Array) -> Array:
        # Two products, and the pair of matrices in front: as one product, or with the pair inside, a CPU transposes
        # the weights and a TPU lays them out anew in every call.
        gate, up = (lora.product("btd,df->btf", x, w.gate_up[i]) for i in (0, 1))
        return lora.product("btf,fd->btd", self._activate(gate) * up, w.down)

    def _activate(self, gate: Array) -> Array:
        return jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)

    def _output(self, params: Weights, x: Array, every: Array | None, taps: tuple[int, ...]) -> Output:
        hidden = self._norm(x, params.norm)
        table = params.embed if params.head is None else params.head
        logits = lora.product("btd,vd->btv", hidden, table, wide_einsum)
        return Output(logits=logits, hidden=hidden, taps=tuple(every[i] for i in taps))

    # Who sees whom.

    def _window(self, slide: Array) -> Mask:
        """The window of a layer; one that does not slide gets a window longer than any text."""
        return Window(jnp.where(slide, self.window, np.iinfo(np.int32).max))

    def _visible(self, rows: Rows, pending: KVDelta | None) -> tuple[Array, Array]:
        """Which delta rows each new row sees, and how many positions back they are: both "#B M N"."""
        M = rows.token.shape[1]
        N = M if pending is None else pending.k.shape[3]
        if rows.parent is None:
            back = rows.start + lax.iota(jnp.int32, M)[:, None] - lax.iota(jnp.int32, N)[None]
            return (back >= 0)[None], back[None]
        see = ancestors(rows.parent)
        links = jnp.sum(see, axis=-1, dtype=jnp.int32)  # a row's position grows by one with every link
        mine = lax.dynamic_slice_in_dim(links, rows.start, M, axis=1)
        return lax.dynamic_slice_in_dim(see, rows.start, M, axis=1), mine[:, :, None] - links[:, None]

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
