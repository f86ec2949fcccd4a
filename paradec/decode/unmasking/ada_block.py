"""AdaBlock: a block ends where the text does."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from paradec import struct
from paradec.decode.seams import Region
from paradec.decode.view import View, as_threshold, best
from paradec.errors import as_ids
from paradec.system import RULE, System


@struct.dataclass
class AdaBlock(Region):
    """A block ends with the most confident predicted delimiter within `ahead` positions, if its confidence is `tau`,
    else after `size` (arXiv 2509.26432).

    The block's own first call decides, with the logits as the model gave them, and goes on to commit positions in it.
    The paper looks a quarter of the answer ahead. `tau` above 1 is `FixedBlocks(size)`. Committed positions are no
    delimiters.
    """

    delimiter: Int32[Array, "E"]
    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.3))
    size: int = struct.field(pytree_node=False, default=32)
    ahead: int = struct.field(pytree_node=False, default=64)

    @classmethod
    def of(cls, delimiter: Iterable[int], tau: float = 0.3, size: int = 32, ahead: int = 64) -> AdaBlock:
        """The region from plain numbers; `delimiter` are token ids. Raises `ValueError` without any."""
        ids = as_ids("ada_block's delimiter", delimiter)
        if not ids or size < 1 or ahead < 1:
            raise ValueError("ada_block wants delimiter token ids, such as the newline's, and sizes of 1 or more.")
        return cls(jnp.asarray(ids, jnp.int32), as_threshold(tau), size, ahead)

    @property
    def reach(self) -> int:
        return max(self.size, self.ahead)

    def __call__(self, view: View) -> Int[Array, "B"]:
        begins = view.block_start[:, None]
        near = view.open & (view.position >= begins) & (view.position < begins + self.ahead)
        ends = near & jnp.isin(view.token, self.delimiter)
        pick = best(view.sure, ends & (view.confidence >= self.tau))
        past = jnp.max(jnp.where(pick, view.position + 1, 0), axis=-1)
        return jnp.where(pick.any(-1), past, view.block_start + self.size)


SYSTEMS = (System(
    name="ada_block", title="AdaBlock", slot="region", arxiv="2509.26432", make=AdaBlock.of, laws=RULE,
    meanings={"delimiter": "token ids that end a block, such as the newline's",
        "tau": "confidence that is enough; above 1 blocks of `size`",
        "size": "block length where there is no such delimiter", "ahead": "positions that are searched"},
    cost="Calls predict max(size, ahead) positions.", proof="pytest tests/decode/test_unmasking.py -k ada_block",
),)  # fmt: skip
