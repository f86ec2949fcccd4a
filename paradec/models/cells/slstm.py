"""The sLSTM (xLSTM, arXiv 2405.04517, equations 8-18): exponential input gates, a normaliser and a stabiliser."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from paradec.models.cells.headwise import HeadwiseCell
from paradec.ops.recurrent import Gates, States


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SLSTM(HeadwiseCell):
    """`c' = σ(f) c + exp(i) tanh(z)`, `n' = σ(f) n + exp(i)`, `h' = σ(o) c' / n'`, with c and n divided by exp(m).

    The stabiliser is `m' = max(log σ(f) + m, i)`, and i itself where n is 0: before the first step, element for
    element, as FlashRNN's CUDA kernel has it (its plain torch code asks it of the whole tensor). All states begin with
    0, m too: with m = -inf the gradient would be NaN. n is at least 1, which changes nothing after such a beginning.
    Gates i, f, z, o; `forget` is added to the bias of f.
    """

    forget: float = 1.0

    names = ("i", "f", "z", "o")
    states = 4  # h, c, n, m
    gates = Gates(4, 4, 4)

    @property
    def offset(self) -> tuple[float, ...]:
        """`forget` for f."""
        return (0.0, self.forget, 0.0, 0.0)

    def pointwise(self, states: States, raw: States) -> States:
        """h, c, n and m after one step."""
        (_, c, n, m), (i, f, z, o) = states, raw
        kept = log_sigmoid(f) + m
        m = jnp.where(n == 0, i, jnp.maximum(i, kept))
        # Both are at most 1, but for the forget gate of an empty element, which multiplies zeros: bounded, or inf * 0.
        new, old = jnp.exp(i - m), jnp.exp(jnp.minimum(kept - m, 0))
        c = old * c + new * jnp.tanh(z)
        n = old * n + new
        n = jnp.where(n < 1, 1, n)  # not maximum: while n is exactly 1, each step would halve its gradient
        return sigmoid(o) * c / n, c, n, m
