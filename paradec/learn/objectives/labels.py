"""A label for every token: state tracking, and whatever else is asked of a position about what stands up to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PyTree

from paradec import params, struct
from paradec.learn.objectives.next_token import LIMITS, cross_entropy, solved
from paradec.learn.step import Loss, Share


@struct.dataclass
class LabelBatch:
    """Rows of tokens with what is to be said at each. `learn[b, t]` says whether label t is asked for."""

    token: Int32[Array, "B T"]
    label: Int32[Array, "B T"]
    learn: Bool[Array, "B T"]


def label_batch(rows: dict[str, np.ndarray]) -> LabelBatch:
    """Stacked rows as the objective reads them: the `make` of `data.chain.batches`."""
    return LabelBatch(
        token=rows["token"].astype(np.int32), label=rows["label"].astype(np.int32), learn=rows["learn"].astype(bool)
    )


@dataclasses.dataclass(frozen=True)
class Labels:
    """The cross-entropy of every label that is asked for, by the model's row at its own token.

    This is not next-token prediction of symbols and answers in turn: there each answer would stand before the next
    symbol, and the next answer would follow from the two, so nothing had to be remembered. A label is never an input.
    Reports `accuracy` of all labels asked for, and `final`, that of each row's last one.
    """

    model: Any
    limits: ClassVar[Mapping[str, tuple[float, float]]] = LIMITS
    remat: bool = False  # recompute each layer in the backward pass: less memory, a third more work

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: LabelBatch, key: jax.Array) -> Loss:
        facts: dict[str, Any] = {"remat": True} if self.remat else {}
        out = self.model.forward(params.merge(trainable, frozen), batch.token, **facts)
        loss, right = cross_entropy(out.logits, batch.label)
        weight = batch.learn.astype(jnp.float32)
        behind = jnp.cumsum(weight[:, ::-1], axis=1)[:, ::-1]  # labels asked for from here on
        last = jnp.where(behind == 1, weight, 0)
        total = lambda x: jnp.sum(x, dtype=jnp.float32)
        shares = {
            "accuracy": Share(total(right * weight), total(weight)),
            "final": Share(total(right * last), total(last)),
        }
        return Loss(total(loss * weight), total(weight), shares | solved(out))
