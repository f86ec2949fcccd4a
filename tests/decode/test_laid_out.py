"""Compiled steps on a CPU: none copies a weight or a cache, as every part of the layout is there to see to."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import composition, params
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.explain.hlo import Module, written
from paradec.models.transformer import Transformer
from paradec.types import Prompt

SHAPE = Transformer(640, width=192, num_layers=2, num_heads=9, num_kv_heads=3, head_dim=64, mlp_width=320)
DRAFT = dataclasses.replace(SHAPE, num_layers=1)
METHODS = {"ar": {}, "jacobi": {"window": 7}, "draft_model": {"draft": DRAFT, "num_draft": 3}}


def compiled_step(name, batch, form):
    """The text of `loop.run`, with the weights in this form, and the shapes of weights and caches."""
    method = composition.build(name, SHAPE, (), **METHODS[name])
    weights = {k: params.abstract(model.specs()) for k, model in method.models.items()}
    prompt = Prompt(jnp.zeros((batch, 16), jnp.int32), jnp.full(batch, 9))
    rest = (prompt, jnp.full(batch, 200), row_keys(0, range(batch)), sampling(batch))
    state = jax.eval_shape(lambda w: method.init(w, *rest, slots=256), weights)
    laid = {k: jax.eval_shape(form, w) for k, w in weights.items()}
    shapes = {x.shape for x in jax.tree.leaves(jax.eval_shape(SHAPE.laid_out, weights["target"])) if x.ndim > 1}
    caches = {x.shape for x in jax.tree.leaves((state.cache, state.carry)) if x.ndim == 5}
    return loop.run.lower(method, laid, state, np.int32(1)).compile().as_text(), shapes | caches


def copied(text, shapes):
    """Every instruction that makes as many numbers as a weight or a cache has out of another array."""
    sizes = {math.prod(shape) for shape in shapes}
    made = ("copy", "transpose", "slice", "dynamic-slice", "concatenate", "reshape", "convert", "pad")
    return [
        f"{i.opcode} {written(array)}"
        for _, i in Module(text) if i.opcode in made for array in i.arrays if math.prod(array[1]) in sizes
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("ar", 1),
        ("ar", 8),
        ("jacobi", 1),
        ("draft_model", 1),
    ],
)
def test_a_step_copies_no_weight_and_no_cache(name, batch):
    assert copied(*compiled_step(name, batch, SHAPE.laid_out)) == []


def test_layers_of_a_stack_are_copied():
    assert "dynamic-slice f32[1,192,3,5,64]" in copied(*compiled_step("ar", 1, lambda weights: weights))


def test_each_part_of_the_layout_is_needed(monkeypatch):
    """Gate and up as one array, the output projection as the stack has it, a cache that may be written at any time."""

    def half(weights):
        apart = lambda w: w.replace(gate_up=jnp.stack(w.gate_up), out=w.out.reshape(3, 3, 64, 192))
        laid = SHAPE.laid_out(weights)
        return laid.replace(blocks=tuple(map(apart, laid.blocks)))

    monkeypatch.setattr("paradec.models.backbone.held_back", lambda delta, x: delta)
    loop.run.clear_cache()
    found = copied(*compiled_step("ar", 1, half))
    loop.run.clear_cache()
    assert any(line.startswith("slice f32[1,192,320]") for line in found)
    assert "transpose f32[3,3,64,192]" in found and "copy f32[2,1,3,256,64]" in found
