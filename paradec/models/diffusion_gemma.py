"""DiffusionGemma: block diffusion from uniform noise, on the layers of Gemma 4's mixture of experts.

One stack of weights makes two passes. Finished text is read causally and its keys are kept (the published "encoder");
an open block, the canvas, sees them and all of itself, and its keys are not kept (the "decoder"). The passes differ in
three things: who sees whom, each layer's output scalar, and the canvas' input, which is told what the call before
thought of each position (self-conditioning, arXiv 2208.04202). There is no mask token: open positions hold noise.

There is no paper; the source is the code of transformers 5.24. Sliding layers keep all keys here and look at the last
ones, where the published cache forgets the others: the same numbers from more memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError
from paradec.mesh import constrain
from paradec.models import cache as kv
from paradec.models import lora
from paradec.models.cache import BLOCK, KVDelta
from paradec.models.diffusion_gemma_trees import (
    KINDS,
    GemmaBlocks,
    GemmaCache,
    GemmaDelta,
    GemmaWeights,
    SelfConditioning,
)
from paradec.models.experts import Experts
from paradec.ops.attention import attend, attend_cache, attend_masked
from paradec.ops.mask import Causal, Facts, Segment, Window, on_canvas, under_canvas
from paradec.ops.norm import rms_norm
from paradec.ops.product import wide_einsum
from paradec.ops.rope import Rope, angles, rotate
from paradec.types import Denoiser, Output, Place, Rows, Sizes, Spec, Stacks

gelu = partial(jax.nn.gelu, approximate=True)


class Heads(NamedTuple):
    """The heads of one kind of layer."""

    count: int  # key/value heads
    groups: int  # queries per key head
    size: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DiffusionGemma(Denoiser):
    """The text model's structure; a `types.Denoiser`. Its weights are a `GemmaWeights` tree that is passed along."""

    vocab_size: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int  # of sliding layers
    head_dim: int
    num_global_kv_heads: int  # of full layers
    global_head_dim: int
    sliding: tuple[bool, ...]  # one a layer
    window: int  # positions that a sliding layer's causal rows see, themselves included
    block: int = dataclasses.field()  # the canvas: positions that are denoised together
    experts: Experts
    rope: Rope = Rope(1e6, "proportional", fraction=0.25)
    local_rope: Rope = Rope(1e4)
    norm_eps: float = 1e-6
    softcap: float = 30.0  # of logits
    max_length: int = 131_072
    dtype: str = "float32"

    mask_id = None  # open positions hold noise
    causal_cache = True
    usual = "renoise"  # the rule that it was published with

    def __post_init__(self) -> None:
        """Raise `InputError` for sizes that do not go together."""
        for heads in (self.num_kv_heads, self.num_global_kv_heads):
            if self.num_heads % heads:
                raise InputError(f"{self.num_heads} heads cannot share {heads} key/value heads evenly.")
        if self.block < 1 or self.window < 1 or not self.sliding:
            raise InputError("A DiffusionGemma has a layer, a window and a canvas, each at least 1.")
        if not self.experts.gain:
            raise InputError("The experts of a DiffusionGemma have a gain each: pass Experts(..., gain=True).")

    @property
    def num_layers(self) -> int:
        return len(self.sliding)

    @property
    def conditioned(self) -> int:
        """Width of what a canvas is told of the call before."""
        return self.width

    def heads(self, kind: str) -> Heads:
        """The heads of a kind of layer."""
        count, size = self.num_kv_heads, self.head_dim
        if kind == "full":
            count, size = self.num_global_kv_heads, self.global_head_dim
        return Heads(count, self.num_heads // count, size)

    def sizes(self) -> Sizes:
        """Those of its sliding layers, of which there are most."""
        heads = self.heads("local")
        return Sizes(
            self.vocab_size, self.width, self.num_layers, heads.count * heads.groups, heads.count, heads.size,
            self.mlp_width, self.dtype,
        )  # fmt: skip

    def stacks(self) -> Stacks:
        """A stack for each kind of layer that there is."""
        layers = tuple((kind, len(numbers)) for kind, numbers in self.layer_numbers().items() if numbers)
        return Stacks(layers=layers, norm="norm")

    def layer_numbers(self) -> dict[str, tuple[int, ...]]:
        """Which layers each stack of the parameter tree holds."""
        return {kind: tuple(i for i, s in enumerate(self.sliding) if s is (kind == "local")) for kind in KINDS}

    def letters(self) -> dict[str, int]:
        """The letters of a checkpoint's axes; P, Q and T are H, G and K of full layers, U is 1."""
        local, full = self.heads("local"), self.heads("full")
        return {
            "V": self.vocab_size, "D": self.width, "F": self.mlp_width, "H": local.count, "G": local.groups,
            "K": local.size, "P": full.count, "Q": full.groups, "T": full.size, "X": self.experts.count,
            "R": self.experts.width, "I": 2, "U": 1,
        }  # fmt: skip

    def specs(self) -> GemmaWeights:
        """The parameter tree, a `Spec` at every leaf."""
        D, F, V = self.width, self.mlp_width, self.vocab_size
        local, full = (self._stack(kind, len(layers)) for kind, layers in self.layer_numbers().items())
        return GemmaWeights(
            embed=Spec((V, D), ("vocab", "embed"), D**-0.5, self.dtype, (0, 1)),
            local=local,
            full=full,
            conditioning=SelfConditioning(
                norm=Spec((D,), (None,), "ones", self.dtype),
                gate_up=Spec((2, D, F), (None, "embed", "mlp"), D**-0.5, self.dtype, (1, 1)),
                down=Spec((F, D), ("mlp", "embed"), F**-0.5, self.dtype, (0, 1)),
            ),
            norm=Spec((D,), (None,), "ones", self.dtype),
        )

    def _stack(self, kind: str, L: int) -> GemmaBlocks | None:
        if not L:
            return None
        D, F, (H, G, K) = self.width, self.mlp_width, self.heads(kind)
        residual = (2 * self.num_layers) ** -0.5
        spec = lambda shape, axes, init, dense: Spec((L, *shape), ("layers", *axes), init, self.dtype, dense)
        ones = lambda size: Spec((L, size), ("layers", None), "ones", self.dtype)
        key = spec((D, H, K), ("embed", "kv_heads", None), D**-0.5, (1, 1))
        heads = ("kv_heads", None, None)
        return GemmaBlocks(
            attn_norm=ones(D), attn_post_norm=ones(D), q_norm=ones(K), k_norm=ones(K),
            q=spec((D, H, G, K), ("embed", *heads), D**-0.5, (1, 1)),
            k=key, v=key if kind == "local" else None,
            out=spec((H, G, K, D), (*heads, "embed"), (H * G * K) ** -0.5 * residual, (1, 3)),
            mlp_norm=ones(D), mlp_post_norm=ones(D),
            gate_up=spec((2, D, F), (None, "embed", "mlp"), D**-0.5, (2, 1)),
            down=spec((F, D), ("mlp", "embed"), F**-0.5 * residual, (1, 1)),
            router_scale=ones(D)._replace(dtype="float32"), expert_norm=ones(D), expert_post_norm=ones(D),
            experts=self.experts.specs(L, D, self.dtype, residual),
            post_norm=ones(D), canvas_scalar=ones(1), causal_scalar=ones(1),
        )  # fmt: skip

    def forward(
        self,
        params: GemmaWeights,
        token: Int[Array, "B T"],
        *,
        position: Int[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        segment: Int[Array, "B T"] | None = None,
        remat: bool = False,
    ) -> Output:
        """The causal pass over whole texts, which is a language model of the next token. Facts as in `Transformer`."""
        if position is None:
            position = jnp.broadcast_to(lax.iota(jnp.int32, token.shape[1])[None], token.shape)
        facts = Facts(position=position, valid=valid, segment=segment)
        base = Causal() if segment is None else Causal() & Segment()
        masks, turn = {"local": base & Window(self.window), "full": base}, self._angles(position)

        def layer(kind: str, x: Array, scanned: tuple) -> tuple[Array, None]:
            w, _ = scanned
            q, k, v = self._qkv(w, x, turn[kind])
            x = self._join(w, x, attend_masked(q, k, v, masks[kind], facts, 1.0))
            return self._mlp(w, x) * w.causal_scalar[None, None], None

        x, _ = self._scan(
            jax.checkpoint(layer, static_argnums=0) if remat else layer, self._embed(params, token), params
        )
        return self._output(params, x)

    def init_cache(self, batch: int, slots: int) -> GemmaCache:
        """An empty cache with room for `slots` tokens a row; 0: none is kept."""
        empty = lambda kind, layers: kv.empty_cache(
            len(layers), batch, self.heads(kind).count, slots, self.heads(kind).size, self.dtype
        )
        return GemmaCache(*(empty(kind, layers) for kind, layers in self.layer_numbers().items()))

    def extend(
        self, params: GemmaWeights, cache: GemmaCache, rows: Rows, *, live: Bool[Array, "B"] | None = None
    ) -> tuple[Output, GemmaDelta]:
        """Compute rows of both passes on top of the cache; see `types.Denoiser`. Rows must have a place."""
        place, slots = rows.place, cache.full.k.shape[3]
        causal, position = place.causal, place.position
        see, stored = on_canvas(place), under_canvas(place, cache.length, slots)
        anchor = self._anchor(place)[:, :, None]
        near = {"local": see & (position[:, None] > anchor - self.window), "full": see}
        window = lambda slot: stored(slot) & (slot[None, None] > anchor - self.window)
        past = {"local": window, "full": stored}
        bound = jnp.max(cache.length if live is None else jnp.where(live, cache.length, 0))
        turn = self._angles(position)

        def layer(kind: str, x: Array, scanned: tuple) -> tuple[Array, KVDelta]:
            w, index = scanned
            q, k, v = self._qkv(w, x, turn[kind])
            held = getattr(cache, kind)
            own = attend(q, k, v, near[kind], 1.0)
            x = self._join(w, x, attend_cache(own, q, held.k, held.v, index, bound, past[kind], 1.0, BLOCK).out)
            x = self._mlp(w, x) * jnp.where(causal[..., None], w.causal_scalar[None, None], w.canvas_scalar[None, None])
            return x, KVDelta(k=k, v=v)

        x = self._embed(params, rows.token)
        x = jnp.where(causal[..., None], x, self._told(params, x, rows.condition))
        x, made = self._scan(layer, x, params)
        none = {kind: self._no_delta(kind, rows.token.shape) for kind in KINDS if kind not in made}
        if rows.read is not None:
            x = jnp.take_along_axis(x, rows.read[..., None], axis=1)
        return self._output(params, x), GemmaDelta(**made | none)

    def store(
        self,
        cache: GemmaCache,
        delta: GemmaDelta,
        start: Int[Array, "B"],
        count: Int[Array, "B"],
        length: Int[Array, "B"],
    ) -> GemmaCache:
        """The cache with delta rows written; see `types.Denoiser`."""
        parts = (kv.store(getattr(cache, kind), getattr(delta, kind), start, count, length) for kind in KINDS)
        return GemmaCache(*parts)

    def soften(self, params: GemmaWeights, logits: Float[Array, "B W V"]) -> Float[Array, "B W D"]:
        """The mean embedding under the law of these logits: what the next call's canvas is told of each position."""
        law = jax.nn.softmax(logits.astype(self.dtype).astype(jnp.float32), axis=-1).astype(self.dtype)
        return lora.product("btv,vd->btd", law, params.embed) * jnp.asarray(self.width**0.5, self.dtype)

    def unembed(self, params: GemmaWeights) -> Float[Array, "V D"]:
        """The vocabulary head: what `Output.hidden` is multiplied with."""
        return lora.merged(params.embed)

    def period(self) -> int:
        """The length of the pattern of layers that the stack repeats: 6 as published, all layers where nothing does."""
        L = self.num_layers
        return next(p for p in range(1, L + 1) if L % p == 0 and self.sliding == self.sliding[:p] * (L // p))

    def _scan(self, layer: Callable, x: Array, params: GemmaWeights) -> tuple[Array, dict[str, Any]]:
        """`layer(kind, x, (weights, number in its stack))` over all layers; what they return, stacked by kind.

        A scan over repeats of the pattern. Inside, each run of layers of one kind is a scan over its part of what the
        pattern takes of that kind's stack.
        """
        size = self.period()
        repeats, kinds = self.num_layers // size, [KINDS[not slides] for slides in self.sliding[:size]]
        runs = [(kind, len([*run])) for kind, run in itertools.groupby(kinds)]
        fold = lambda a: a.reshape(repeats, -1, *a.shape[1:])
        stacks = {kind: (getattr(params, kind), jnp.arange(repeats * kinds.count(kind))) for kind in {*kinds}}

        def pattern(x: Array, held: dict) -> tuple[Array, dict]:
            taken, made = dict.fromkeys(held, 0), {kind: [] for kind in held}
            for kind, count in runs:
                first = taken[kind]
                part = jax.tree.map(lambda a: a[first : first + count], held[kind])  # noqa: B023
                x, out = lax.scan(partial(layer, kind), x, part)
                taken[kind], made[kind] = first + count, [*made[kind], out]
            return x, {kind: jax.tree.map(lambda *a: jnp.concatenate(a), *outs) for kind, outs in made.items()}

        x, made = lax.scan(pattern, x, jax.tree.map(fold, stacks))
        return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), made)

    def _anchor(self, place: Place) -> Int[Array, "B M"]:
        """The position at which each row's window ends: `window` positions up to here, and all behind it that it sees.

        A causal row's ends at itself. A canvas row looks back as far as the first of them, and none of the canvas is
        out of its sight. Example, a window of 5 and a canvas at 7 to 12: row 6 sees 2 to 6, rows 7 to 12 see 3 to 12.
        """
        return jnp.where(place.causal, place.position, place.block_start[:, None])

    # The pieces of a layer.

    def _norm(self, x: Array, weight: Array | None) -> Array:
        """RMS norm; without a weight it only scales."""
        return rms_norm(x, jnp.ones(x.shape[-1], x.dtype) if weight is None else weight, self.norm_eps)

    def _embed(self, params: GemmaWeights, token: Array) -> Array:
        x = lora.changed(params.embed, lambda table: table[token], lambda a, b: a[token] @ b)
        return constrain(x * jnp.asarray(self.width**0.5, x.dtype), ("batch", None, None))

    def _told(self, params: GemmaWeights, x: Array, condition: Array | None) -> Array:
        """A canvas' input, normed even where there is nothing to tell (None or 0)."""
        if condition is not None:
            w = params.conditioning
            x = x + self._gated(self._norm(condition.astype(x.dtype), w.norm), w.gate_up, w.down)
        return self._norm(x, None)

    def _angles(self, position: Array) -> dict[str, tuple[Array, Array]]:
        table = lambda rope, kind: angles(rope, position, self.heads(kind).size)
        both = {"local": table(self.local_rope, "local"), "full": table(self.rope, "full")}
        return {kind: (cos[:, None, None], sin[:, None, None]) for kind, (cos, sin) in both.items()}

    def _qkv(self, w: GemmaBlocks, x: Array, turn: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x_norm, (cos, sin) = self._norm(x, w.attn_norm), turn
        q = lora.product("btd,dhgk->bthgk", x_norm, w.q).transpose(0, 2, 3, 1, 4)
        k = lora.product("btd,dhk->bthk", x_norm, w.k).transpose(0, 2, 1, 3)
        v = k if w.v is None else lora.product("btd,dhk->bthk", x_norm, w.v).transpose(0, 2, 1, 3)
        q, k, v = self._norm(q, w.q_norm), self._norm(k, w.k_norm), self._norm(v, None)
        return rotate(q, cos, sin), rotate(k, cos[:, 0], sin[:, 0]), v

    def _join(self, w: GemmaBlocks, x: Array, out: Array) -> Array:
        mixed = lora.product("bhgtk,hgkd->btd", out.astype(x.dtype), w.out)
        return x + self._norm(mixed, w.attn_post_norm)

    def _mlp(self, w: GemmaBlocks, x: Array) -> Array:
        """The plain MLP and the experts, side by side. The router reads the stream itself, normed without a weight."""
        plain = self._norm(self._gated(self._norm(x, w.mlp_norm), w.gate_up, w.down), w.mlp_post_norm)
        by = self._norm(x, None).astype(jnp.float32) * w.router_scale[None, None] * self.width**-0.5
        routed = self.experts.mix(w.experts, self._norm(x, w.expert_norm), gelu, by)
        return x + self._norm(plain + self._norm(routed, w.expert_post_norm), w.post_norm)

    def _gated(self, x: Array, gate_up: Array, down: Array) -> Array:
        gate, up = (lora.product("btd,df->btf", x, gate_up[i]) for i in (0, 1))
        return lora.product("btf,fd->btd", gelu(gate) * up, down)

    def _output(self, params: GemmaWeights, x: Array) -> Output:
        hidden = self._norm(x, params.norm)
        logits = lora.product("btd,vd->btv", hidden, params.embed, wide_einsum)
        return Output(logits=self.softcap * jnp.tanh(logits / self.softcap), hidden=hidden)

    def _no_delta(self, kind: str, shape: tuple[int, ...]) -> KVDelta:
        nothing = jnp.zeros((0, shape[0], self.heads(kind).count, shape[1], self.heads(kind).size), self.dtype)
        return KVDelta(k=nothing, v=nothing)
