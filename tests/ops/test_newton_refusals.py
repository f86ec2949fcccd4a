"""Cells that are not what they declare, and what `solve` refuses, by its sentences."""

import jax
import jax.numpy as jnp
import pytest

from paradec.errors import InputError, UnknownName
from paradec.ops.jacobian import check_cell
from paradec.ops.newton import solve
from tests.ops.newton_cases import CELLS, GRU, B, T, case

WRONG_STRUCTURES = {
    "diagonal": (lambda w, h, x: jnp.tanh(h + jnp.roll(h, 1, axis=-1) + x), jnp.zeros(3), "depends on number [012] "),
    "block": (
        lambda w, h, x: (h[0] + x, jnp.tanh(h[1] + jnp.flip(h[0], axis=-1))), (jnp.zeros(2), jnp.zeros(2)),
        "array 1 of the state, number . depends on array 0 of the state",
    ),
    "dense": (lambda w, h, x: jnp.tanh(h - jnp.mean(h, axis=0, keepdims=True) + x), jnp.zeros((2, 3)), "another entry"),
}  # fmt: skip


@pytest.mark.parametrize("structure", WRONG_STRUCTURES)
def test_a_wrong_structure_is_found_and_named(structure):
    step, h, sentence = WRONG_STRUCTURES[structure]
    x = jax.tree.leaves(h)[0]
    with pytest.raises(InputError, match=sentence):
        check_cell(step, None, h, x, structure)


def test_our_cells_are_what_they_declare():
    for structure, step in CELLS.items():
        w, x, h0 = case(structure)
        check_cell(step, w, h0, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), structure)


def test_what_is_refused():
    w, x, h0 = case("diagonal")
    bad = {
        "must return a state like": dict(step=lambda w, h, x: h[..., :2]),
        "cast back": dict(step=lambda w, h, x: h.astype(jnp.bfloat16)),
        "pass h0": dict(structure="block", h0=None),
        "a tuple of 1 to 4": dict(structure="block"),
        "one of diagonal, block, dense": dict(structure="banded"),
        "segment must lead with time": dict(segment=jnp.zeros((T + 1, B), jnp.int32)),
        "valid must lead with time": dict(valid=jnp.ones((T, B + 1), bool)),
        "all of one length": dict(x=(x, x[1:])),
        "window must be at least 1": dict(window=0),
        "iterations must be at least 0": dict(iterations=-1),
        "There is no method": dict(method="picard"),
    }
    for sentence, change in bad.items():
        options = dict(step=GRU.step, params=w, x=x, h0=h0) | change
        with pytest.raises((InputError, UnknownName), match=sentence):
            solve(**options)
    with pytest.raises(InputError, match="not finite"):
        check_cell(lambda w, h, x: h / 0 * x, None, h0, h0, "diagonal")
