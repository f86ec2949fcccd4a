"""A label for every token: what is asked for counts, each at its own place, and the last of a row once more."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from paradec.data.chain import HeldOut, batches
from paradec.data.tracking import Tracking
from paradec.learn.objectives.labels import LabelBatch, Labels, label_batch
from paradec.types import Output


@dataclasses.dataclass(frozen=True)
class Table:
    """The logits of position t are a row of the weights of their own: whatever stands in the tokens."""

    def forward(self, params, token):
        logits = jnp.broadcast_to(params[None], (token.shape[0], *params.shape))
        return Output(logits=logits, hidden=logits)


def test_loss_and_accuracies():
    logits = jnp.asarray([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
    label = jnp.asarray([[0, 1, 2, 0], [1, 1, 0, 0], [2, 2, 2, 2]], jnp.int32)
    learn = jnp.asarray([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    batch = LabelBatch(jnp.zeros_like(label), label, learn)
    loss = jax.jit(Labels(Table()))(logits, None, batch, jax.random.key(0))
    each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(4)[None], np.asarray(label)]
    np.testing.assert_allclose(loss.total, each[np.asarray(learn)].sum(), rtol=1e-6)
    assert float(loss.weight) == 6
    means = loss.means()
    np.testing.assert_allclose(means["accuracy"], 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(means["final"], 1 / 2, rtol=1e-6)  # of the rows that ask for a label at all


def test_batches_of_words():
    source = Tracking("s3", length=6, rows=20)
    batch = next(iter(batches(source, 8, make=label_batch)))
    assert isinstance(batch, LabelBatch) and batch.token.shape == (8, 6)
    np.testing.assert_array_equal(source.solved(batch.token[3]), batch.label[3])
    held = list(HeldOut(source.test, 8, label_batch))
    assert [int(b.learn.sum()) for b in held] == [192, 192, 96] and held[0].token.shape == (8, 24)
