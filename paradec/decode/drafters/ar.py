"""Plain autoregressive decoding: the empty draft. What every exact method is compared with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import PyTree

from paradec import struct
from paradec.decode.seams import ChainDrafter
from paradec.decode.trees import chain
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Tree


@struct.dataclass
class NoDraft(ChainDrafter):
    """A drafter of nothing: one token per call."""

    depth = 0

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        return chain(state, jnp.zeros((state.tokens.shape[0], 0), jnp.int32)), None


SYSTEMS = (System(
    name="ar", title="Plain autoregressive decoding", slot="draft", family="baseline", make=NoDraft,
    exact_to=ExactTo("ar", "ar"), laws=EXACT,
    cost="One call of one row for every token.", proof="pytest tests/decode/test_laws.py -k ar",
),)  # fmt: skip
