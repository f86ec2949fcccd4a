"""DiffusionGemma's two passes: the published code's numbers on the fixture, and what holds whatever the weights."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.types import Place, Rows
from tests.diffusion_gemma import fixture

PROMPT, CANVAS, DRAFT = [2, 11, 23, 37, 5, 48, 19], [7, 7, 40, 63, 1, 30], [35, 10, 34, 4, 8, 35]
# Of vocabulary 0 to 7, from the published code, and the sum over all logits of the call.
ENCODED = [-1.168226, -1.146953, 1.611582, -0.263216, -0.577584, -0.422816, 0.569015, -0.920270], -19.4829
FIRST = [0.005351, 0.716055, -1.017360, 0.292611, 0.992651, 0.437701, -1.498402, 1.438153], -13.7796
SECOND = [-0.301625, 1.002269, 0.189201, 0.759330, 0.157399, -1.143167, -1.018913, -0.186970], 16.3850
AFTER = [-0.554604, -0.450845, 1.378130, -0.684010, 2.372881, 0.249059, -0.734347, 0.452421], None
THIRD = [1.195871, 0.284180, 1.286946, 0.447298, 0.218188, 1.235291, -1.403617, 2.204427], 7.4406


def is_row(logits: Any, row: int, wanted: tuple[list[float], float | None]) -> None:
    found = np.asarray(logits)
    np.testing.assert_allclose(found[0, row, :8], wanted[0], atol=2e-4)
    if wanted[1] is not None:
        assert abs(found.sum() - wanted[1]) < 5e-3


extend = jax.jit(lambda model, weights, cache, rows: model.extend(weights, cache, rows), static_argnums=0)


class Passes:
    """The calls of one model, as a decode makes them, on a cache of 32 slots."""

    def __init__(self, model: DiffusionGemma, weights: Any, rows: int = 1):
        self.model, self.weights = model, weights
        self.cache = model.init_cache(rows, 32)

    def call(self, token: Any, start: int, block_start: int, sees: Any, condition: Any = None):
        token = jnp.asarray(token, jnp.int32).reshape(self.cache.length.shape[0], -1)
        position = jnp.broadcast_to(start + jnp.arange(token.shape[1])[None], token.shape)
        place = Place(
            position=position, sees=jnp.broadcast_to(jnp.asarray(sees), token.shape), fresh=jnp.ones(token.shape, bool),
            block_start=jnp.full(token.shape[0], block_start),
        )  # fmt: skip
        out, delta = extend(self.model, self.weights, self.cache, Rows.canvas(token, place, condition=condition))
        return out.logits, delta

    def read(self, token: Any) -> Any:
        """The causal pass over text that follows what is stored, which stores it."""
        start, size = int(self.cache.length[0]), len(token)
        logits, delta = self.call(token, start, start + size, start + np.arange(size) + 1)
        count = jnp.full_like(self.cache.length, size)
        self.cache = self.model.store(self.cache, delta, self.cache.length, count, self.cache.length + size)
        return logits

    def canvas(self, token: Any, condition: Any = None) -> Any:
        """The logits of a canvas behind what is stored."""
        start = int(self.cache.length[0])
        return self.call(token, start, start, start + len(token), condition)[0]


@cache
def begun(changes: tuple[tuple[str, Any], ...] = ()) -> tuple[Passes, Any]:
    """The prompt read, and what the first canvas says."""
    model, weights = fixture()
    passes = Passes(dataclasses.replace(model, **dict(changes)), weights)
    passes.read(PROMPT)
    return passes, passes.canvas(CANVAS)


def test_the_numbers_of_the_published_code():
    model, weights = fixture()
    passes = Passes(model, weights)
    is_row(passes.read(PROMPT), -1, ENCODED)
    first = passes.canvas(CANVAS)
    is_row(first, 0, FIRST)
    is_row(passes.canvas(CANVAS, model.soften(weights, first / 0.8)), 0, SECOND)
    is_row(passes.read(DRAFT), -1, AFTER)
    is_row(passes.canvas(CANVAS), 0, THIRD)


def test_the_causal_pass_in_pieces_is_the_whole():
    model, weights = fixture()
    text = np.random.default_rng(0).integers(64, size=19).tolist()
    whole = jax.jit(model.forward)(weights, jnp.asarray([text])).logits
    for pieces in ([6, 7, 6], [7, 6, 6]):
        passes, at, found = Passes(model, weights), 0, []
        for size in pieces:
            found.append(np.asarray(passes.read(text[at : at + size])))
            at += size
        np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=2e-5)


def test_both_passes_in_one_call_are_both_alone():
    """The call that opens a block: finished text, causally, beside the canvas that sees it."""
    model, weights = fixture()
    alone = Passes(model, weights)
    alone.read(PROMPT)
    text, canvas = alone.read(DRAFT), alone.canvas(CANVAS)
    together = Passes(model, weights)
    together.read(PROMPT)
    sees = np.concatenate([7 + np.arange(6) + 1, np.full(6, 19)])
    both, delta = together.call([*DRAFT, *CANVAS], 7, 13, sees, None)
    np.testing.assert_allclose(both[:, :6], text, atol=2e-5)
    np.testing.assert_allclose(both[:, 6:], canvas, atol=2e-5)
    stored = model.store(together.cache, delta, together.cache.length, jnp.asarray([6]), jnp.asarray([13]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), stored, alone.cache)


def test_the_last_of_the_canvas_reaches_the_first():
    passes, first = begun()
    other = passes.canvas([*CANVAS[:-1], 31])
    assert np.abs(np.asarray(other - first))[0, 0].max() > 1e-3


def test_nothing_told_is_zeros_told():
    passes, first = begun()
    told = passes.canvas(CANVAS, jnp.zeros((1, 6, passes.model.width)))
    np.testing.assert_allclose(told, first, atol=1e-5)


@jax.tree_util.register_static
class Unrolled(DiffusionGemma):
    def period(self):
        return self.num_layers


def as_kind(kind, model):
    return kind(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})


def test_a_long_pattern_is_the_same_layers_one_by_one():
    """Two repeats of (slides, slides, sees all), against the same layers as a pattern that nothing repeats."""
    model, weights = fixture()
    double = lambda tree: jax.tree.map(lambda a: jnp.concatenate([a, a * 1.1]), tree)
    twice = weights.replace(local=double(weights.local), full=double(weights.full))
    model = dataclasses.replace(model, sliding=(True, True, False) * 2)
    assert model.period() == 3

    plain = as_kind(Unrolled, model)
    made = [Passes(m, twice).call(PROMPT, 0, 0, 7) for m in (model, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *made)
    delta = made[0][1]
    assert delta.local.k.shape[0] == 4 and delta.full.k.shape[0] == 2


# Mutants: what is easily got wrong, each seen by a number of the table.


@jax.tree_util.register_static
class WindowInside(DiffusionGemma):
    """Sliding layers cut the canvas too, from each row's own position."""

    def _anchor(self, place):
        return place.position


@jax.tree_util.register_static
class NormSkipped(DiffusionGemma):
    """With nothing to tell, the canvas' input is the bare embedding."""

    def _told(self, params, x, condition):
        return x if condition is None else super()._told(params, x, condition)


@jax.tree_util.register_static
class KeysNormed(DiffusionGemma):
    """Values of full layers are made of what their keys became."""

    def _qkv(self, w, x, turn):
        q, k, v = super()._qkv(w, x, turn)
        return q, k, v if w.v is not None else self._norm(k, None)


def swapped():
    model, weights = fixture()
    swap = lambda w: w.replace(canvas_scalar=w.causal_scalar, causal_scalar=w.canvas_scalar)
    return model, weights.replace(local=swap(weights.local), full=swap(weights.full))


@pytest.mark.parametrize("mutant", [WindowInside, NormSkipped, KeysNormed, "scalars", "canvas kept"])
def test_mutants_are_seen(mutant):
    model, weights = swapped() if mutant == "scalars" else fixture()
    model = model if isinstance(mutant, str) else as_kind(mutant, model)
    passes = Passes(model, weights)
    read = passes.read(PROMPT)
    if mutant == "canvas kept":  # and the next one stands behind it, as the engine would ask
        passes.read(CANVAS)
    if mutant in (KeysNormed, "scalars"):
        with pytest.raises(AssertionError):
            is_row(read, -1, ENCODED)
    with pytest.raises(AssertionError):
        is_row(passes.canvas(CANVAS), 0, FIRST)
