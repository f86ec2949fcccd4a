"""Nemotron-Labs-Diffusion: one set of weights that continues a text or denoises a block, on one causal cache.

A Ministral 3 that was trained on with the next-token loss and a masked-block loss at once. The prompt and all finished
text are read causally, and only those keys are kept. An open block is denoised on top of them, each of its rows seeing
the cache and the whole block, and its keys are not kept: a finished block is read once more, causally. So the cache
does not depend on how the text came about, and both engines run on it.

Sources: the Apache-2.0 code of vLLM, Megatron-Bridge, SGLang and AutoModel that serves, converts and trains these
models. Its causal pass is tested against `Ministral3` in transformers. Not verified against the released code, which
was not read: that the checkpoints hold no other tensors than the table in `io.hf` names, the sizes of the 3B and 14B
models, and the logits of a real checkpoint in the denoising pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.cache import KVCache, KVDelta
from paradec.models.transformer import Transformer, Weights
from paradec.types import Denoiser, Model, Output, Rows, Sizes, Stacks


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NemotronDiffusion(Model, Denoiser):
    """A `types.Model` and a `types.Denoiser` on the weights of `base`.

    The alignment differs between the passes: a causal row at position p predicts token p + 1, a row of an open block
    predicts the token at its own position, so there is no `shift`. The logit of the mask token is -inf in both: no
    text ever holds it, however it is decoded. Blocks of `block` tokens are counted from the prompt's end.
    """

    base: Transformer
    mask_id: int = 100
    block: int = 32
    kinds = ("prefix", "canvas")
    causal_cache = True
    lays_out = True

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be a denoiser."""
        if self.block < 1:
            raise InputError(f"A model with a causal cache denoises blocks of 1 token or more; {self.block} was given.")
        BlockDiffusion(self.base, self.mask_id, self.block, self.grid)  # raises for its mask token and its base

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    @property
    def width(self) -> int:
        return self.base.width

    @property
    def num_layers(self) -> int:
        return self.base.num_layers

    @property
    def max_length(self) -> int:
        return self.base.max_length

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def sizes(self) -> Sizes:
        """Those of the base."""
        return self.base.sizes()

    def stacks(self) -> Stacks:
        """Those of the base."""
        return self.base.stacks()

    def first_layers(self, count: int) -> NemotronDiffusion:
        """The same model with the first layers of its base."""
        return dataclasses.replace(self, base=self.base.first_layers(count))

    def specs(self) -> Weights:
        """The parameter tree of the base."""
        return self.base.specs()

    def laid_out(self, params: Weights) -> Weights:
        """The weights for a decode step on a CPU; see `Transformer.laid_out`."""
        return self.base.laid_out(params)

    def forward(self, params: Weights, token: Int[Array, "B T"], **facts: Any) -> Output:
        """The causal pass over whole texts, or, under another `mask`, what that mask says.

        The facts are those of `Transformer.forward`.
        """
        return self._without_mask(self.base.forward(params, token, **facts))

    def init_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache of the base, for both passes."""
        return self.base.init_cache(batch, slots)

    def init_delta(self, batch: int, rows: int) -> KVDelta:
        """An empty delta of the base."""
        return self.base.init_delta(batch, rows)

    def extend(
        self,
        params: Weights,
        cache: KVCache,
        rows: Rows,
        pending: KVDelta | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, KVDelta]:
        """Rows that continue the cached text, or, with `rows.place`, rows of a canvas; the cache is only read.

        Which pass a row of a canvas belongs to is in what it sees (`Place.sees`): its weights are the same in both.
        """
        out, delta = self.base.extend(params, cache, rows, pending, taps, live)
        return self._without_mask(out), delta

    def commit(self, cache: KVCache, delta: KVDelta, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> KVCache:
        """The cache with delta rows `path[:count]` appended; see `types.Model`."""
        return self.base.commit(cache, delta, path, count)

    def store(
        self, cache: KVCache, delta: KVDelta, start: Int[Array, "B"], count: Int[Array, "B"], length: Int[Array, "B"]
    ) -> KVCache:
        """The cache of a canvas with delta rows written; see `types.Denoiser`."""
        return self.base.store(cache, delta, start, count, length)

    def unembed(self, params: Weights) -> Float[Array, "V D"]:
        """The vocabulary head, the mask token's row included."""
        return self.base.unembed(params)

    def _without_mask(self, out: Output) -> Output:
        return out.replace(logits=out.logits.at[..., self.mask_id].set(-jnp.inf))
