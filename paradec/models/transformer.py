"""One decoder stack: Llama, SmolLM2, Mistral, Ministral 3, Qwen2, Qwen3, Gemma 3, mixtures of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from paradec import struct
from paradec.models import layer
from paradec.models.backbone import Backbone
from paradec.models.experts import Experts, ExpertWeights
from paradec.models.laid_out import matrix, pair
from paradec.ops.norm import rms_norm
from paradec.ops.rope import Rope
from paradec.types import Output, Sizes, Spec, Stacks


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

    def apart(self) -> Blocks:
        """One layer's weights laid out: the pairs of gate and up apart, the output projection as one matrix."""
        experts = None if self.experts is None else self.experts.replace(gate_up=pair(self.experts.gate_up))
        return self.replace(out=matrix(self.out), gate_up=pair(self.gate_up), experts=experts)


@struct.dataclass
class Weights:
    """The parameter tree of a `Transformer`. `head` is None where it is tied to `embed`.

    `leading` are the layers before the first with experts, where there are any: their MLPs have another shape.
    """

    embed: Float[Array, "V D"]
    blocks: Blocks | tuple[Blocks, ...]  # one stack, or the layers one by one (see `Backbone.laid_out`)
    norm: Float[Array, "D"]
    head: Float[Array, "V D"] | None
    leading: Blocks | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Transformer(Backbone):
    """A decoder's structure. Two equal ones never recompile; its weights are a `Weights` tree that you pass along."""

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

    def slides(self) -> np.ndarray:
        """Which layers attend through the sliding window: bool "L"."""
        if not self.window:
            return np.zeros(self.num_layers, bool)
        return np.asarray(self.sliding or (True,) * self.num_layers)

    def sizes(self) -> Sizes:
        """The numbers that formulas need. Beside experts the MLP that all tokens pass is the shared one."""
        shared = self.mlp_width if self.experts is None else self.experts.shared
        return dataclasses.replace(super().sizes(), mlp_width=shared)

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""
        leading = self.experts.leading if self.experts else 0
        before = (("leading", leading),) if leading else ()
        lookup = () if self.tied else ("embed",)
        return Stacks(layers=(*before, ("blocks", self.num_layers - leading)), lookup=lookup, norm="norm")

    def first_layers(self, count: int) -> Transformer:
        """The structure of the first `count` layers alone, of a model whose layers are all in one stack."""
        return dataclasses.replace(self, num_layers=count, sliding=self.sliding[:count])

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

    # The pieces of a layer.

    def _norm(self, x: Array, weight: Array) -> Array:
        return rms_norm(x, weight, self.norm_eps, offset=1.0 if self.unit_norm else 0.0)

    def _post_norm(self, weight: Array | None) -> Callable[[Array], Array] | None:
        return None if weight is None else lambda x: self._norm(x, weight)

    def _embed(self, params: Weights, token: Array, embed: Array | None = None, aux: Array | None = None) -> Array:
        return layer.embedded(params.embed, token, embed, aux, self.embed_scale)

    def _angles(self, position: Array) -> layer.Turn:
        ropes = [self.rope] if self.local_rope is None else [self.rope, self.local_rope]
        return layer.turns(ropes, position, self.head_dim)

    def _qkv(self, w: Blocks, x: Array, turn: layer.Turn, slide: Array) -> tuple[Array, Array, Array]:
        turn = layer.turn_of(turn, slide)
        q, k, v = layer.queries_keys_values(self._norm(x, w.attn_norm), w.qkv, w.qkv_bias)
        if self.qk_norm:
            q, k = self._norm(q, w.q_norm), self._norm(k, w.k_norm)
        return *layer.rotated(q, k, turn), v

    def _join(self, w: Blocks, x: Array, out: Array) -> Array:
        mixed = layer.attention_output(out, w.out, x.dtype)
        return layer.residual(x, mixed, self._post_norm(w.attn_post_norm))

    def _mlp(self, w: Blocks, x: Array) -> Array:
        x_norm, activation = self._norm(x, w.mlp_norm), layer.ACTIVATIONS[self.activation]
        mixed = None if w.gate_up is None else layer.gated_mlp(x_norm, w.gate_up, w.down, activation)
        if w.experts is not None:
            routed = self.experts.mix(w.experts, x_norm, activation)
            mixed = routed if mixed is None else routed + mixed
        return layer.residual(x, mixed, self._post_norm(w.mlp_post_norm))

    def _output(self, params: Weights, x: Array, every: Array | None, taps: tuple[int, ...]) -> Output:
        hidden = self._norm(x, params.norm)
        logits = layer.vocabulary_logits(hidden, params.embed if params.head is None else params.head)
        return Output(logits=logits, hidden=hidden, taps=tuple(every[i] for i in taps))
