"""Elman's recurrence (Cognitive Science 14, 1990): the simplest with a recurrent matrix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from paradec.models.cells.headwise import HeadwiseCell
from paradec.ops.recurrent import Gates, States


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Elman(HeadwiseCell):
    """`h' = tanh(R h + Wx + b)`."""

    names = ("h",)
    states = 1
    gates = Gates(1, 1, 1)

    def pointwise(self, states: States, raw: States) -> States:
        """h after one step."""
        return (jnp.tanh(raw[0]),)
