"""Small trees on top of a model's hidden states."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from paradec import struct
from paradec.ops.product import wide_einsum
from paradec.types import Spec


@struct.dataclass
class HeadWeights:
    """The parameter tree of `MedusaHeads`: Q heads of R residual layers. `unembed` is None where the base's is used."""

    linear: Float[Array, "Q R D E"]  # E = D, the output side
    bias: Float[Array, "Q R E"]
    unembed: Float[Array, "Q V D"] | None


@struct.dataclass
class ShortList:
    """The tokens that drafting may choose from, and their rows of the vocabulary head.

    A draft is only a guess, so it need not come from the whole vocabulary: on a small model the heads would cost more
    than the model itself. Verification always uses all of it.
    """

    token: Int32[Array, "W"]
    table: Float[Array, "W D"]


@struct.dataclass
class DraftHeads:
    """What a decoder needs of heads: `params["heads"]`. Without a short list they choose from the whole vocabulary."""

    weights: HeadWeights
    short: ShortList | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MedusaHeads:
    """`num_heads` guesses from one hidden state: head k (from 0) reads the state of token t and guesses token t+2+k.

    Each is `num_layers` residual blocks z + silu(z A + b), then a vocabulary head: its own (`vocab_size` > 0, the first
    published layout) or the base model's (the second). A = b = 0 gives the base model's own logits. Source: Medusa,
    2401.10774, section 3.1.
    """

    num_heads: int
    width: int
    num_layers: int = 1
    vocab_size: int = 0  # of the heads' own vocabulary heads; 0: they use the base model's
    dtype: str = "float32"

    def specs(self) -> HeadWeights:
        """The parameter tree, a `Spec` at every leaf. New heads repeat the base model's own guess."""
        Q, R, D, V = self.num_heads, self.num_layers, self.width, self.vocab_size
        own = Spec((Q, V, D), (None, "vocab", "embed"), D**-0.5, self.dtype) if V else None
        return HeadWeights(
            linear=Spec((Q, R, D, D), (None, None, "embed", "mlp"), "zeros", self.dtype),
            bias=Spec((Q, R, D), (None, None, "mlp"), "zeros", self.dtype),
            unembed=own,
        )

    def hidden(self, weights: HeadWeights, state: Float[Array, "B D"]) -> Float[Array, "Q B D"]:
        """What each head's vocabulary head reads. `state` is the base's hidden state after its final norm."""
        z = jnp.broadcast_to(state.astype(weights.linear.dtype)[None], (self.num_heads, *state.shape))
        for layer in range(self.num_layers):
            z = z + jax.nn.silu(jnp.einsum("qbd,qde->qbe", z, weights.linear[:, layer]) + weights.bias[:, layer, None])
        return z

    def logits(
        self, weights: HeadWeights, state: Float[Array, "B D"], table: Float[Array, "W D"] | None
    ) -> Float[Array, "Q B W"]:
        """Every head's float32 logits over the rows of `table` (None: the heads' own)."""
        hidden = self.hidden(weights, state)
        if table is None:
            return wide_einsum("qbd,qvd->qbv", hidden, weights.unembed)
        return wide_einsum("qbd,vd->qbv", hidden, table.astype(hidden.dtype))


@struct.dataclass
class FilterWeights:
    """The parameter tree of a `ConfidenceFilter`; F is the hidden width."""

    into: Float[Array, "W F"]
    bias: Float[Array, "F"]
    out: Float[Array, "F W"]
    out_bias: Float[Array, "W"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ConfidenceFilter:
    """Two layers that read the confidences of a whole block and say of each position whether its token is final.

    Source: Learn2PD (arXiv 2509.25188): 32 inputs, about two thousand parameters; its activation is taken to be ReLU.
    """

    length: int = 32
    width: int = 32
    BEYOND: ClassVar[float] = 1.0
    """What stands for places outside the row."""

    def specs(self) -> FilterWeights:
        """The parameter tree, a `Spec` at every leaf."""
        W, F = self.length, self.width
        return FilterWeights(
            into=Spec((W, F), (None, None), W**-0.5), bias=Spec((F,), (None,), "zeros"),
            out=Spec((F, W), (None, None), F**-0.5), out_bias=Spec((W,), (None,), "zeros"),
        )  # fmt: skip

    def __call__(self, weights: FilterWeights, confidence: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        """Logits: above 0 is more likely final than not."""
        layer = lambda x, w, b: jnp.dot(x, w) + jnp.broadcast_to(b, (*x.shape[:-1], w.shape[1]))
        return layer(jax.nn.relu(layer(confidence, weights.into, weights.bias)), weights.out, weights.out_bias)
