"""Extremely greedy parallel decoding: the best any rule could do on the way to a known text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, best
from paradec.system import RULE, System


@struct.dataclass
class Oracle(Select):
    """Commits every position whose proposal is the reference's token; where none is, the most confident one is given
    it.

    Source: Learn2PD (arXiv 2509.25188), where its traces teach the filter. The final text is always the reference.
    Deviation: where all proposals are wrong the published code copies the whole block, this rule one token.
    """

    reference: Int32[Array, "B S"]

    @classmethod
    def of(cls, reference: Any) -> Oracle:
        """The rule for one reference text a row, token ids B S. Raises `ValueError` for anything else."""
        what = "oracle's reference is a text a row: an array of token ids with two axes."
        try:
            given = reference if isinstance(reference, jax.Array) else np.asarray(reference)
        except ValueError:  # rows of unlike lengths
            raise ValueError(what) from None
        if given.ndim != 2 or 0 in given.shape or not jnp.issubdtype(given.dtype, jnp.integer):
            raise ValueError(what)
        if isinstance(given, np.ndarray) and not 0 <= given.min() <= given.max() < 2**31:
            raise ValueError(f"{what[:-1]}, each 0 or more and below 2**31.")
        return cls(jnp.asarray(given, jnp.int32))

    def __call__(self, view: View, carry: PyTree) -> Choice:
        at = jnp.minimum(view.position, self.reference.shape[1] - 1)
        right = jnp.take_along_axis(self.reference, at, axis=1)
        same = view.eligible & (view.token == right)
        stuck = ~same.any(-1, keepdims=True)
        given = best(view.sure, view.eligible) & stuck
        return Choice(same | given, token=jnp.where(view.open, right, view.current))


SYSTEMS = (System(
    name="oracle", title="Extremely greedy parallel decoding", slot="select", arxiv="2509.25188", make=Oracle.of,
    laws=RULE,
    meanings={"reference": "the text, token ids B S"},
    cost="A text that is known beforehand: a bound, not a method.",
    proof="pytest tests/decode/test_unmasking.py -k oracle",
),)  # fmt: skip
