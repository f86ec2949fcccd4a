"""A diffusion transformer (DiT): the network of MDLM (arXiv 2406.07524) and BD3-LM (2503.09573).

An embedding of the noise level modulates its norms and residuals (adaLN-zero, 2212.09748). The published language
models hold the level at 0 in training and sampling alike, so all it says is a constant of the checkpoint: six vectors
a layer and two at the end. `io` computes them once, and the network that made them is not kept. This is exact, spares
every call its weights, and takes nothing from training: at one level these vectors reach all that it could say.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from paradec import struct
from paradec.models import layer
from paradec.models.backbone import Backbone
from paradec.models.laid_out import matrix
from paradec.ops.norm import layer_norm
from paradec.ops.rope import Rope
from paradec.types import Output, Spec, Stacks


@struct.dataclass
class DiTBlocks:
    """The layer stack of a `DiT`: every leaf has a leading layer axis L. Names and axes are those of `Blocks`."""

    attn_norm: Float[Array, "L D"]
    qkv: Float[Array, "L D H G+2 K"]
    out: Float[Array, "L H G K D"]
    mlp_norm: Float[Array, "L D"]
    down: Float[Array, "L F D"]
    modulation: Float[Array, "L 2 3 D"]  # of attention, then of the MLP: the norm's shift and scale, the result's gate
    up: Float[Array, "L D F"]
    up_bias: Float[Array, "L F"]
    down_bias: Float[Array, "L D"]

    def apart(self) -> DiTBlocks:
        """One layer's weights laid out: the output projection as one matrix."""
        return self.replace(out=matrix(self.out))


@struct.dataclass
class DiTWeights:
    """The parameter tree of a `DiT`."""

    embed: Float[Array, "V D"]
    blocks: DiTBlocks | tuple[DiTBlocks, ...]  # one stack, or the layers one by one (see `Backbone.laid_out`)
    norm: Float[Array, "D"]
    head: Float[Array, "V D"]
    modulation: Float[Array, "2 D"]  # the last norm's shift and scale
    head_bias: Float[Array, "V"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DiT(Backbone):
    """A diffusion transformer's structure: modulated layer norms, gated residuals, plain MLPs, a bias on its logits."""

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
    query_scale: float | None = None  # factor on q·k; None: head_dim ** -0.5
    dtype: str = "float32"  # of weights, activations and cache; norms, softmax and logits are float32
    level_width: int = 128  # of the embedding of the noise level; matters to checkpoints alone

    def specs(self) -> DiTWeights:
        """The parameter tree, a `Spec` at every leaf. As published, gates and head start at zero."""
        L, D, F, V, K = self.num_layers, self.width, self.mlp_width, self.vocab_size, self.head_dim
        H, G = self.num_kv_heads, self.groups
        residual = (2 * L) ** -0.5  # keeps the residual stream's variance independent of depth

        def leaf(shape: tuple[int, ...], *axes: str | None, init: float | str = "zeros", dense=None) -> Spec:
            return Spec(shape, axes, init, self.dtype, dense)

        blocks = DiTBlocks(
            attn_norm=leaf((L, D), "layers", None, init="ones"),
            qkv=leaf((L, D, H, G + 2, K), "layers", "embed", "kv_heads", None, None, init=D**-0.5, dense=(1, 1)),
            out=leaf(
                (L, H, G, K, D), "layers", "kv_heads", None, None, "embed",
                init=(H * G * K) ** -0.5 * residual, dense=(1, 3),
            ),
            mlp_norm=leaf((L, D), "layers", None, init="ones"),
            down=leaf((L, F, D), "layers", "mlp", "embed", init=F**-0.5 * residual, dense=(1, 1)),
            modulation=leaf((L, 2, 3, D), "layers", None, None, None),
            up=leaf((L, D, F), "layers", "embed", "mlp", init=D**-0.5, dense=(1, 1)),
            up_bias=leaf((L, F), "layers", "mlp"),
            down_bias=leaf((L, D), "layers", None),
        )  # fmt: skip
        return DiTWeights(
            embed=leaf((V, D), "vocab", "embed", init=D**-0.5, dense=(0, 1)),
            blocks=blocks,
            norm=leaf((D,), None, init="ones"),
            head=leaf((V, D), "vocab", "embed", dense=(0, 1)),
            modulation=leaf((2, D), None, None),
            head_bias=leaf((V,), "vocab"),
        )

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""
        return Stacks(layers=(("blocks", self.num_layers),), lookup=("embed",), norm="norm")

    # The pieces of a layer.

    def _norm(self, x: Array, weight: Array, by: Array) -> Array:
        """A norm whose result is scaled by 1 + `by[1]`, plus `by[0]`: both in float32, in its gain and its shift."""
        weight, by = weight.astype(jnp.float32), by.astype(jnp.float32)
        return layer_norm(x, weight * (1 + by[1]), by[0], self.norm_eps)

    def _embed(self, params: DiTWeights, token: Array, embed: Array | None = None, aux: Array | None = None) -> Array:
        return layer.embedded(params.embed, token, embed, aux)

    def _angles(self, position: Array) -> layer.Turn:
        return layer.turns([self.rope], position, self.head_dim)

    def _qkv(self, w: DiTBlocks, x: Array, turn: layer.Turn, slide: Array) -> tuple[Array, Array, Array]:
        turn = layer.turn_of(turn, slide)
        q, k, v = layer.queries_keys_values(self._norm(x, w.attn_norm, w.modulation[0]), w.qkv)
        return *layer.rotated(q, k, turn), v

    def _join(self, w: DiTBlocks, x: Array, out: Array) -> Array:
        return layer.gated_residual(x, layer.attention_output(out, w.out, x.dtype), w.modulation[0, 2])

    def _mlp(self, w: DiTBlocks, x: Array) -> Array:
        x_norm = self._norm(x, w.mlp_norm, w.modulation[1])
        mixed = layer.biased_mlp(x_norm, w.up, w.up_bias, w.down, w.down_bias, layer.gelu_tanh)
        return layer.gated_residual(x, mixed, w.modulation[1, 2])

    def _output(self, params: DiTWeights, x: Array, every: Array | None, taps: tuple[int, ...]) -> Output:
        hidden = self._norm(x, params.norm, params.modulation)
        logits = layer.vocabulary_logits(hidden, params.head) + params.head_bias.astype(jnp.float32)[None, None]
        return Output(logits=logits, hidden=hidden, taps=tuple(every[i] for i in taps))
