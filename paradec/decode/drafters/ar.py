"""Plain autoregressive decoding: the empty draft. What every exact method is compared with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import PyTree

from paradec import struct
from paradec.decode.trees import chain
from paradec.types import DecodeState, Scored, Tree, Verdict


@struct.dataclass
class NoDraft:
    """A drafter of nothing: one token per call."""

    depth: int = struct.field(pytree_node=False, default=0)
    span: int = struct.field(pytree_node=False, default=0)
    nodes: int = struct.field(pytree_node=False, default=1)
    taps: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        return ()

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        return chain(state, jnp.zeros((state.tokens.shape[0], 0), jnp.int32)), None

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        return state.carry
