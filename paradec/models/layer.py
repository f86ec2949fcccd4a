"""The pieces of a transformer as free functions, which architectures put together.

Weights are those of one layer, as a scan over a stack or `laid_out.in_turn` hands them out, plain or with an adapter
(`lora.Adapted`). H counts key/value heads, G queries per key head, J is half a head size, R counts rotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from paradec.mesh import constrain
from paradec.models import lora
from paradec.ops.product import wide_einsum
from paradec.ops.rope import Rope, angles, query_growth, rotate

Weight = Array | lora.Adapted
Turn = tuple[Array, ...]
"""Cosines and sines, and the growth of queries where there is one. Of all of a model's rotations they are
"R B 1 1 T J", of one layer's "B 1 1 T J"."""


# Before the layers and after them.


def embedded(
    table: Weight,
    token: Int[Array, "B T"],
    embed: Float[Array, "B T D"] | None = None,
    aux: Bool[Array, "B T"] | None = None,
    scale: float = 1.0,
) -> Float[Array, "B T D"]:
    """Each token's row of the table (or, where `aux`, its row of `embed`) times `scale`."""
    x = lora.changed(table, lambda table: table[token], lambda a, b: a[token] @ b)
    if embed is not None:
        x = jnp.where(aux[..., None], embed.astype(x.dtype), x)
    x = x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)
    return constrain(x, ("batch", None, None))


def vocabulary_logits(hidden: Float[Array, "B T D"], table: Weight) -> Float[Array, "B T V"]:
    """Float32 logits over the rows of the table, "V D"."""
    return lora.product("btd,vd->btv", hidden, table, wide_einsum)


# Rotary embedding.


def turns(ropes: Sequence[Rope], position: Int[Array, "B T"], head_dim: int) -> Turn:
    """Cosines and sines of each rotation, "R B 1 1 T J": once a call, not once a layer.

    Where queries grow with their position, the factor on them, "R B 1 1 T 1", comes third.
    """
    tables: list[Turn] = [angles(rope, position, head_dim) for rope in ropes]
    if any(rope.query_beta for rope in ropes):
        tables = [(*t, query_growth(r, position)[..., None]) for r, t in zip(ropes, tables, strict=True)]
    return tuple(jnp.stack(same)[:, :, None, None] for same in zip(*tables, strict=True))


def turn_of(turns: Turn, slide: Bool[Array, ""]) -> Turn:
    """One layer's: of two rotations the first, or the second where the layer slides."""
    return tuple(t[0] if len(t) == 1 else jnp.where(slide, t[1], t[0]) for t in turns)


def rotated(
    q: Float[Array, "B H G T K"], k: Float[Array, "B H 1 T K"], turn: Turn
) -> tuple[Float[Array, "B H G T K"], Float[Array, "B H T K"]]:
    """Queries and keys, rotated by the angles of their positions; of a turn with a third part, queries times that."""
    cos, sin, *growth = turn
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)[:, :, 0]
    if growth:
        q = (q.astype(jnp.float32) * growth[0]).astype(q.dtype)
    return q, k


# Attention.


def queries_keys_values(
    x: Float[Array, "B T D"], w: Weight, bias: Float[Array, "H Q K"] | None = None
) -> tuple[Float[Array, "B H G T K"], Float[Array, "B H 1 T K"], Float[Array, "B H T K"]]:
    """The three projections in one product. `w` is "D H G+2 K": per key head its G queries, its key, its value."""
    # Written with heads last and transposed after: asked for directly, XLA would transpose the weights instead.
    qkv = lora.product("btd,dhgk->bthgk", x, w)
    if bias is not None:
        qkv = qkv + bias[None, None]
    qkv = qkv.transpose(0, 2, 3, 1, 4)
    return qkv[:, :, :-2], qkv[:, :, -2:-1], qkv[:, :, -1]


def attention_output(out: Float[Array, "B H G T K"], w: Weight, dtype: Any) -> Float[Array, "B T D"]:
    """What the heads found, in the width of the model. `w` is "H G K D", or laid out one matrix, "H*G*K D"."""
    if lora.removed(w).ndim == 4:
        return lora.product("bhgtk,hgkd->btd", out.astype(dtype), w)
    B, _, _, T, _ = out.shape  # laid out: a CPU would transpose the weight, so the activations are
    return lora.product("bti,id->btd", out.astype(dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, -1), w)


# MLPs.


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by its tanh approximation (1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": jax.nn.silu, "gelu_tanh": gelu_tanh}


def gated_mlp(
    x: Float[Array, "B T D"],
    gate_up: Weight | tuple[Weight, Weight],
    down: Weight,
    activation: Callable[[Array], Array],
) -> Float[Array, "B T D"]:
    """`(activation(x gate) * (x up)) down` (GLU variants, 2002.05202). `gate_up` is "2 D F", or laid out a pair."""
    # Two products, and the pair of matrices in front: as one product, or with the pair inside, a CPU transposes
    # the weights and a TPU lays them out anew in every call.
    gate, up = (lora.product("btd,df->btf", x, gate_up[i]) for i in (0, 1))
    return lora.product("btf,fd->btd", activation(gate) * up, down)


def biased_mlp(
    x: Float[Array, "B T D"],
    up: Weight,
    up_bias: Float[Array, "F"],
    down: Weight,
    down_bias: Float[Array, "D"],
    activation: Callable[[Array], Array],
) -> Float[Array, "B T D"]:
    """`activation(x up + up_bias) down + down_bias`."""
    inner = lora.product("btd,df->btf", x, up) + up_bias[None, None]
    return lora.product("btf,fd->btd", activation(inner), down) + down_bias[None, None]


# Residuals.


def residual(
    x: Float[Array, "B T D"], change: Float[Array, "B T D"], norm: Callable[[Array], Array] | None = None
) -> Float[Array, "B T D"]:
    """`x + change`, or `x + norm(change)` in models that norm what a part of a layer returns (Gemma)."""
    return x + (change if norm is None else norm(change))


def gated_residual(
    x: Float[Array, "B T D"], change: Float[Array, "B T D"], gate: Float[Array, "D"]
) -> Float[Array, "B T D"]:
    """`x + change * gate`: adaLN-zero's (2212.09748), whose gates start at 0."""
    return x + change * gate[None, None]
