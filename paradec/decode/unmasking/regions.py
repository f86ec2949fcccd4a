"""Where blocks end: everything at once, or blocks of one size."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from paradec import struct
from paradec.decode.seams import Region
from paradec.decode.view import View


@struct.dataclass
class Everything(Region):
    """One block that holds the whole answer."""

    fixed = True

    reach: int = struct.field(pytree_node=False, default=0)

    def __call__(self, view: View) -> Int[Array, "B"]:
        return view.limit


@struct.dataclass
class FixedBlocks(Region):
    """Blocks of `size` positions, counted from the prompt's end (LLaDA) or, with grid "text", from position 0
    (Fast-dLLM v2, SDAR), where a prompt that ends inside a block leaves it a shorter first one."""

    fixed = True

    size: int = struct.field(pytree_node=False, default=32)
    grid: str = struct.field(pytree_node=False, default="prompt")

    @property
    def reach(self) -> int:
        return self.size

    def __call__(self, view: View) -> Int[Array, "B"]:
        first = view.prompt if self.grid == "prompt" else jnp.zeros_like(view.prompt)
        return (view.block_start - first) // self.size * self.size + self.size + first
