"""Structured masks against the relations they name."""

import jax.numpy as jnp
import numpy as np
import pytest

from paradec.ops.mask import Block, Causal, Facts, Full, Given, Prefix, Segment, Window, ancestors

POSITION = jnp.asarray([[0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 3, 0, 1, 9, 2, 5]])  # the second row jumps and repeats
FACTS = Facts(position=POSITION, segment=jnp.asarray([[0, 0, 0, 1, 1, 1, 2, 2]] * 2))
Q, K = np.asarray(POSITION)[:, :, None], np.asarray(POSITION)[:, None, :]

RELATIONS = {
    "full": (Full(), Q == Q + 0 * K),
    "causal": (Causal(), K <= Q),
    "window": (Window(2), Q - K < 2),
    "window of a traced size": (Window(jnp.asarray(3)), Q - K < 3),
    "block": (Block(3), K // 3 <= Q // 3),
    "block of one": (Block(1), K <= Q),
    "prefix": (Prefix(jnp.asarray([2, 4])), (K < np.asarray([2, 4])[:, None, None]) & (Q == Q)),
    "segment": (Segment(), np.asarray(FACTS.segment)[:, :, None] == np.asarray(FACTS.segment)[:, None]),
    "given": (Given(jnp.asarray(K == Q)), K == Q),
    "and, or": (Causal() & Window(2) | Prefix(jnp.asarray([2, 4])), (K <= Q) & (Q - K < 2) | (K < [[[2]], [[4]]])),
}


@pytest.mark.parametrize(("mask", "want"), RELATIONS.values(), ids=RELATIONS)
def test_a_mask_is_its_relation(mask, want):
    got = mask(FACTS, FACTS)
    assert got.shape == (2, 8, 8) and got.dtype == bool
    np.testing.assert_array_equal(got, want)


def test_a_mask_of_pieces_is_a_piece_of_the_mask():
    cut = lambda part: Facts(position=POSITION[:, part], segment=FACTS.segment[:, part])
    for mask in (Causal() & Segment(), Block(3) | Window(2), Full() & Causal()):
        piece = mask(cut(slice(2, 5)), cut(slice(1, 7)))
        np.testing.assert_array_equal(piece, mask(FACTS, FACTS)[:, 2:5, 1:7])


def test_segments_must_be_there():
    with pytest.raises(ValueError, match="pass segment="):
        Segment()(Facts(position=POSITION), Facts(position=POSITION))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_ancestors_is_the_closure_of_parent(n):
    rng = np.random.default_rng(n)
    parent = np.asarray([[i if rng.random() < 0.2 else rng.integers(i + 1) for i in range(n)] for _ in range(4)])
    parent[0] = np.maximum(np.arange(n) - 1, 0)  # the deepest tree there is
    see = np.zeros((4, n, n), bool)
    for b in range(4):
        for i in range(n):
            j = i
            see[b, i, i] = True
            while parent[b, j] != j:
                j = parent[b, j]
                see[b, i, j] = True
    np.testing.assert_array_equal(ancestors(jnp.asarray(parent)), see)
