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
from paradec.errors import InputError
from paradec.models import lora
from paradec.models.transformer import Blocks, Transformer, Weights
from paradec.ops.norm import layer_norm
from paradec.types import Output, Spec


@struct.dataclass(kw_only=True)
class DiTBlocks(Blocks):
    """The layer stack of a `DiT`. Of a transformer's leaves `gate_up` is None, and so are those of options."""

    modulation: Float[Array, "L 2 3 D"]  # of attention, then of the MLP: the norm's shift and scale, the result's gate
    up: Float[Array, "L D F"]
    up_bias: Float[Array, "L F"]
    down_bias: Float[Array, "L D"]


@struct.dataclass(kw_only=True)
class DiTWeights(Weights):
    """The parameter tree of a `DiT`."""

    modulation: Float[Array, "2 D"]  # the last norm's shift and scale
    head_bias: Float[Array, "V"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DiT(Transformer):
    """A diffusion transformer's structure: a `Transformer` with other norms, residuals, MLPs and a bias on its logits.

    Everything about attention and caches is inherited. Options of the transformer that `__post_init__` does not list
    must stay at their defaults.
    """

    tied: bool = False
    activation: str = "gelu_tanh"
    level_width: int = 128  # of the embedding of the noise level; matters to checkpoints alone

    def __post_init__(self) -> None:
        """Raise `InputError` for an option that only other transformers have."""
        own = {
            "vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_width", "max_length",
            "norm_eps", "rope", "query_scale", "dtype", "level_width",
        }  # fmt: skip
        fields = (f for f in dataclasses.fields(self) if f.name not in own)
        wrong = [f.name for f in fields if getattr(self, f.name) != f.default]
        if wrong:
            raise InputError(f"A diffusion transformer has no option {' and no '.join(wrong)}; leave it out.")

    def specs(self) -> DiTWeights:
        """The parameter tree, a `Spec` at every leaf. As published, gates and head start at zero."""
        L, D, F = self.num_layers, self.width, self.mlp_width
        plain = super().specs()

        def zeros(shape: tuple[int, ...], *axes: str | None) -> Spec:
            return Spec(shape, axes, "zeros", self.dtype)

        blocks = DiTBlocks(
            **vars(plain.blocks) | {"gate_up": None},
            modulation=zeros((L, 2, 3, D), "layers", None, None, None),
            up=Spec((L, D, F), ("layers", "embed", "mlp"), D**-0.5, self.dtype, (1, 1)),
            up_bias=zeros((L, F), "layers", "mlp"),
            down_bias=zeros((L, D), "layers", None),
        )
        parts = vars(plain) | {"blocks": blocks, "head": plain.head._replace(init="zeros")}
        return DiTWeights(**parts, modulation=zeros((2, D), None, None), head_bias=zeros((self.vocab_size,), "vocab"))

    # The pieces of a layer. A norm's weight and its modulation are one gain and one shift, "2 D".

    def _norm(self, x: Array, weight: Array) -> Array:
        return layer_norm(x, weight[0], weight[1], self.norm_eps)

    def _qkv(self, w: Blocks, x: Array, turn: tuple[Array, ...], slide: Array) -> tuple[Array, Array, Array]:
        return super()._qkv(w.replace(attn_norm=_modulated(w.attn_norm, w.modulation[0])), x, turn, slide)

    def _join(self, w: Blocks, x: Array, out: Array) -> Array:
        return x + self._mixed(w, out, x.dtype) * w.modulation[0, 2][None, None]

    def _mlp(self, w: Blocks, x: Array) -> Array:
        x_norm = self._norm(x, _modulated(w.mlp_norm, w.modulation[1]))
        up = lora.product("btd,df->btf", x_norm, w.up) + w.up_bias[None, None]
        mixed = lora.product("btf,fd->btd", jax.nn.gelu(up, approximate=True), w.down) + w.down_bias[None, None]
        return x + mixed * w.modulation[1, 2][None, None]

    def _output(self, params: Weights, x: Array, every: Array | None, taps: tuple[int, ...]) -> Output:
        norm = _modulated(params.norm, params.modulation)
        out = super()._output(params.replace(norm=norm), x, every, taps)
        return out.replace(logits=out.logits + params.head_bias.astype(jnp.float32)[None, None])


def _modulated(weight: Float[Array, "D"], by: Float[Array, "N D"]) -> Float[Array, "2 D"]:
    """Gain and shift, in float32, of a norm with this weight whose result is scaled by 1 + `by[1]`, plus `by[0]`."""
    weight, by = weight.astype(jnp.float32), by.astype(jnp.float32)
    return jnp.stack([weight * (1 + by[1]), by[0]])
