"""A transformer as a denoiser: the weights of an autoregressive model, seeing both ways inside a block or everywhere.

Masked diffusion (LLaDA, Dream, MDLM) is one block that holds the whole canvas. Block diffusion (BD3-LM, arXiv
2503.09573; SDAR; Fast-dLLM v2, 2509.26328) sees its own block and those before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from paradec.errors import InputError
from paradec.models.backbone import Backbone
from paradec.models.cache import KVCache, KVDelta
from paradec.ops.attention import attend_two_stream, pair, unpair
from paradec.ops.mask import Block, Facts, Full, Mask
from paradec.types import Denoiser, Output, Rows, Sizes, Stacks


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BlockDiffusion(Denoiser):
    """A `types.Denoiser` on the weights of `base`.

    `block` 0 sees the whole canvas. Blocks are counted from position 0 (`grid="text"`) or from the prompt's end
    (`grid="prompt"`). With `shift` row p predicts token p + 1, as in the autoregressive model that it came from.
    """

    shadow_rows = True

    base: Backbone
    mask_id: int
    block: int = 0
    grid: str = "text"
    shift: bool = False
    causal_cache = False
    conditioned = 0

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be a denoiser."""
        if not 0 <= self.mask_id < self.base.vocab_size:
            raise InputError(
                f"The mask token {self.mask_id} lies outside the vocabulary of {self.base.vocab_size} tokens; take it "
                "from the checkpoint's config (mask_token_id), not from its base model's tokenizer."
            )
        if self.base.window:
            raise InputError("A model with sliding windows cannot be a denoiser: its layers would miss the canvas.")
        if self.block < 0 or self.grid not in ("text", "prompt"):
            raise InputError(f"block must be 0 or more and grid text or prompt; {self.block}, {self.grid} were given.")

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    @property
    def max_length(self) -> int:
        return self.base.max_length

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def specs(self) -> PyTree:
        """The parameter tree of the base."""
        return self.base.specs()

    def sizes(self) -> Sizes:
        """Those of the base."""
        return self.base.sizes()

    def stacks(self) -> Stacks:
        """Those of the base."""
        return self.base.stacks()

    def forward(self, params: PyTree, token: Int[Array, "B T"], **facts: Any) -> Output:
        """Whole canvases at once, in the model's own alignment; blocks are counted from position 0.

        The facts are those of `Backbone.forward`.
        """
        mask = Block(self.block) if self.block else Full()
        return self.base.forward(params, token, **{"mask": mask} | facts)

    def two_streams(
        self,
        params: PyTree,
        noisy: Int[Array, "B T"],
        clean: Int[Array, "B T"],
        *,
        valid: Bool[Array, "B T"] | None = None,
        remat: bool = False,
    ) -> Output:
        """The training pass of block diffusion: every block's noisy tokens, given the clean blocks before them.

        Outputs are those of the noisy rows, as if each block were decoded with the others in a cache. Both streams
        have positions 0 to T - 1. Raises `ValueError` unless T is a multiple of `block`. Source: BD3-LM, 2503.09573,
        section 3.
        """

        def attention(q: Array, k: Array, v: Array, mask: Mask, facts: Facts, scale: float) -> Array:
            return attend_two_stream(q, k, v, self.block, jax.tree.map(first, facts), scale)

        first = lambda x: unpair(x)[0]
        both, seen = pair(noisy, clean), None if valid is None else pair(valid, valid)
        return self.base.forward(params, both, mask=Full(), valid=seen, remat=remat, attention=attention, read=first)

    def aligned(self, output: Array) -> Array:
        """Rows of a whole canvas moved so that row p predicts token p; a shifted model says nothing of position 0."""
        return jnp.roll(output, 1, axis=1) if self.shift else output

    def init_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache of the base."""
        return self.base.init_cache(batch, slots)

    def extend(
        self, params: PyTree, cache: KVCache, rows: Rows, *, live: Bool[Array, "B"] | None = None
    ) -> tuple[Output, KVDelta]:
        """Compute rows of a canvas; see `types.Denoiser`."""
        return self.base.extend(params, cache, rows, live=live)

    def store(
        self, cache: KVCache, delta: KVDelta, start: Int[Array, "B"], count: Int[Array, "B"], length: Int[Array, "B"]
    ) -> KVCache:
        """The cache with delta rows written; see `types.Denoiser`."""
        return self.base.store(cache, delta, start, count, length)
