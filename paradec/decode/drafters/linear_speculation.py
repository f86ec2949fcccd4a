"""Linear self-speculation: a model of both kinds drafts a block by denoising it once, and verifies it causally."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32, PyTree

from paradec import struct
from paradec.decode.seams import ChainDrafter
from paradec.decode.trees import chain, last_token
from paradec.ops.argmax import argmax
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Place, Rows, Tree


@struct.dataclass
class LinearSpeculation(ChainDrafter):
    """A chain of C - 1 drafts from one denoising call on the target's own cache and weights.

    The block is the last token and C - 1 masks; all of it sees the cache and itself, and every mask is filled with the
    argmax of its row. The cache is read and never written: the call that verifies the chain, causally, computes the
    keys that are kept. So a step is two calls of the target, of C rows each, and commits 1 to C tokens, which are those
    of plain decoding at any temperature under the rule `Match`. With C = 1 it is plain decoding.

    `base` is the target, which must be a `types.Model` and a `types.Denoiser` with a causal cache and without shift.
    `block` is C; 0 is the model's own. Source: `linear_spec_generate` of Nemotron-Labs-Diffusion as SGLang's port has
    it, with its threshold at 0 (all masks filled at once); a LoRA that is on in the draft alone is not supported. Not
    verified against the released code, which was not read.
    """

    base: Any = struct.field(pytree_node=False)
    block: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def of(cls, target: Any, block: int = 0) -> LinearSpeculation:
        """The drafter for `target`. Raises `ValueError` for one that is not of both engines on one causal cache."""
        if not {"prefix", "canvas"} <= {*target.kinds} or not target.causal_cache:
            raise ValueError(
                "linear_speculation drafts with a target that also denoises on a causal cache; "
                f"a {type(target).__name__} does not."
            )
        return cls(target, block)

    @property
    def size(self) -> int:
        """C, the tokens of a block."""
        return self.block or self.base.block

    @property
    def depth(self) -> int:
        return self.size - 1

    @property
    def calls(self) -> int:
        """Calls of the target as a denoiser per step."""
        return 1 if self.depth else 0

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        if not self.depth:
            return chain(state, jnp.zeros((state.length.shape[0], 0), jnp.int32)), None
        return chain(state, self.denoised(params, state)), None

    def denoised(self, params: PyTree, state: DecodeState) -> Int32[Array, "B K"]:
        """The likeliest token at each of the K = C - 1 positions behind the text.

        The cache holds the text but its last token, so the block begins at that token's position, length - 1. With a
        text of 6 tokens and C = 4 the rows stand at positions 5 (the last token) to 8, all see the cache's slots 0 to 4
        and positions 5 to 8, and rows 1 to 3 are read.
        """
        B, C = state.length.shape[0], self.size
        start = state.length - 1
        masks = jnp.full((B, C - 1), self.base.mask_id, jnp.int32)
        token = jnp.concatenate([last_token(state)[:, None], masks], axis=1)
        position = start[:, None] + lax.iota(jnp.int32, C)[None]
        end = jnp.broadcast_to(start[:, None] + C, position.shape)
        place = Place(position=position, sees=end, fresh=jnp.ones(position.shape, bool), block_start=start)
        read = jnp.broadcast_to(1 + lax.iota(jnp.int32, C - 1)[None], masks.shape)
        rows = Rows.canvas(token, place, read)
        out, _ = self.base.extend(params["target"], state.cache, rows, live=~state.done)
        return argmax(out.logits)


SYSTEMS = (System(
    name="linear_speculation", title="Linear self-speculation (Nemotron-Labs-Diffusion)", slot="draft",
    family="self-speculation", make=LinearSpeculation.of, needs=("target",), exact_to=ExactTo("ar", "ar"),
    laws=EXACT,
    meanings={"block": "length of the block, the last token included; 0: the model's own"},
    cost="Two calls of `block` rows a step, both of the target.",
    proof="pytest tests/decode/test_linear_speculation.py",
),)  # fmt: skip
