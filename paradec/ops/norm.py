"""RMS and layer normalisation, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "*B D"], weight: Float[Array, "D"], eps: float, offset: float = 0.0
) -> Float[Array, "*B D"]:
    """`x / rms(x) * (offset + weight)`, computed in float32 and returned in x's dtype. Gemma's offset is 1.

    Source: RMSNorm (1910.07467).
    """
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    weight = weight.astype(jnp.float32) + offset
    return (wide * scale * weight.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"], gain: Float[Array, "D"], shift: Float[Array, "D"], eps: float
) -> Float[Array, "*B D"]:
    """`(x - mean) / deviation * gain + shift`, computed in float32 and returned in x's dtype.

    Source: layer normalization (1607.06450).
    """
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    gain, shift = (v.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,)) for v in (gain, shift))
    return (wide * gain + shift).astype(x.dtype)
