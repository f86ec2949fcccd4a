"""Rotary position embedding with positions as arrays, half-split layout, and the published context-length scalings."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies as configuration. `kind` is "default", "linear", "llama3", "yarn" or "proportional"; the rest
    follow it.

    Sources: RoFormer (2104.09864); linear interpolation (2306.15595); the llama3 piecewise rule as published with the
    Llama 3.1 weights; YaRN (2309.00071), whose attention temperature multiplies cos and sin. "proportional" (Gemma 4)
    pairs the two halves of the whole head and spaces the frequencies as if all pairs turned, but only the first
    `fraction` of them do. `query_beta` is the scaling of Llama 4 and Ministral 3, see `query_growth`.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0  # llama3, yarn: context length before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: round the ramp's ends to whole dimensions
    fraction: float = 1.0  # of a head's dimensions: these, from the first on, turn, and the others stay (LLaDA2: half)
    query_beta: float = 0.0  # Ministral 3: queries grow with the logarithm of their position; 0: they do not

    def reach(self, declared: int) -> int:
        """How many positions a model reads that declares so many: YaRN's are `factor` times those of before, if more.

        Files that had YaRN added to them keep the length that the model was trained with.
        """
        longer = self.kind == "yarn" and self.factor * self.original_length > declared
        return min(int(self.factor * self.original_length), 2**31 - 1) if longer else declared

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """Angular frequencies (radians per position, one for two turning dimensions) and the factor on cos and sin."""
        if self.kind == "proportional":
            inv = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / self.factor
            turns = np.arange(head_dim // 2) < int(self.fraction * head_dim // 2)
            return np.where(turns, inv, 0.0).astype(np.float32), 1.0
        head_dim = int(head_dim * self.fraction)
        half = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        inv = 1.0 / self.theta**half
        if self.kind == "linear":
            inv = inv / self.factor
        elif self.kind == "llama3":
            inv = self._llama3(inv)
        elif self.kind == "yarn":
            inv = self._yarn(inv, head_dim)
            factor = self.attention_factor
            if factor is None:
                factor = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
            return inv.astype(np.float32), float(factor)
        return inv.astype(np.float32), 1.0

    def _llama3(self, inv: np.ndarray) -> np.ndarray:
        wavelength = 2 * math.pi / inv
        low = self.original_length / self.low_freq_factor
        high = self.original_length / self.high_freq_factor
        smooth = (self.original_length / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - smooth) * inv / self.factor + smooth * inv
        return np.where(wavelength > low, inv / self.factor, np.where(wavelength < high, inv, between))

    def _yarn(self, inv: np.ndarray, head_dim: int) -> np.ndarray:
        def dimension(rotations: float) -> float:
            turns = self.original_length / (rotations * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 1e-3), 0, 1)
        return inv / self.factor * ramp + inv * (1 - ramp)


def angles(
    rope: Rope, position: Int[Array, "*B"], head_dim: int
) -> tuple[Float[Array, "*B K2"], Float[Array, "*B K2"]]:
    """Cosines and sines (float32) for each position, already carrying YaRN's factor."""
    inv, factor = rope.frequencies(head_dim)
    angle = position[..., None].astype(jnp.float32) * inv.reshape((1,) * position.ndim + (-1,))
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def query_growth(rope: Rope, position: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The factor (float32) on a rotated query: 1 + query_beta ln(1 + floor(position / original_length)).

    Keys are not scaled. It depends on the position in the text, never on the row of a call or batch, so it is 1 within
    the context that the model had before it was lengthened. Source: the code of Llama 4 and Ministral 3 in
    transformers, which calls it the llama 4 scaling.
    """
    if not rope.query_beta:
        return jnp.ones(position.shape, jnp.float32)
    whole = (position // rope.original_length).astype(jnp.float32)
    return 1.0 + rope.query_beta * jnp.log1p(whole)


def rotate(x: Float[Array, "..."], cos: Float[Array, "..."], sin: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` with its two halves rotated in float32; cos and sin broadcast against `x[..., :K/2]`.

    Where they are shorter, only the dimensions that they turn are halved, and those behind stay as they are.
    """
    if (turning := 2 * cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :turning], cos, sin), x[..., turning:]], axis=-1)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
