"""What every objective owes: packed documents know nothing of each other, parts add up to the batch, and in bfloat16
the products are bfloat16."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from paradec import params
from paradec.learn import flops
from paradec.learn import step as learn
from paradec.learn.objectives.learned_filter import FilterBatch, FilterLoss
from paradec.learn.objectives.masked import Masked, Noise
from paradec.learn.objectives.medusa import HeadBatch, Medusa1, Medusa2
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.step import Plan
from paradec.models import lora
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.experts import Experts
from paradec.models.heads import ConfidenceFilter, MedusaHeads, ShortList
from paradec.models.transformer import Transformer
from paradec.testing import tiny_transformer
from paradec.types import TextBatch

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step

VOCAB, ROWS, LENGTH = 32, 8, 16
MODEL, WEIGHTS = tiny_transformer(vocab_size=VOCAB)
HEADS = MedusaHeads(num_heads=2, width=MODEL.width)
ALL_HIDDEN = Noise(low=1.0, even=True)  # leaves nothing to chance


class Case(NamedTuple):
    """An objective with what it needs."""

    objective: Any
    trainable: PyTree
    frozen: PyTree


def everything(objective: Any, weights: PyTree = WEIGHTS) -> Case:
    return Case(objective, *params.partition(weights, lambda name: True))


def joint(distil: bool, model: Transformer = MODEL, weights: PyTree = WEIGHTS) -> Case:
    inside = lambda name: name.startswith("blocks/")
    base = lora.adapt(weights, model.specs(), jax.random.key(2), 2, pick=inside)
    trainable, frozen = params.partition(base, lora.trained)
    heads = MedusaHeads(num_heads=2, width=model.width)
    own = params.init(heads.specs(), jax.random.key(1))
    still = {"base": frozen, "heads": jax.tree.map(lambda x: None, own), "short": jnp.arange(0, model.vocab_size, 2)}
    return Case(Medusa2(model, heads, distil=distil), {"base": trainable, "heads": own}, still)


def denoise(shift: bool = False, block: int = 0) -> Case:
    return everything(Masked(BlockDiffusion(MODEL, VOCAB - 1, block, shift=shift), ALL_HIDDEN))


def text(seed: int = 0) -> TextBatch:
    """Packed rows of two documents; row by row more of them is to be learned."""
    rng = np.random.default_rng(seed)
    cut = rng.integers(4, LENGTH - 4, (ROWS, 1))
    place = np.arange(LENGTH)[None] * np.ones((ROWS, 1), int)
    return TextBatch(
        token=jnp.asarray(rng.integers(VOCAB - 1, size=(ROWS, LENGTH)), jnp.int32),
        learn=jnp.asarray(rng.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None]).at[0, 0].set(True),
        segment=jnp.asarray(1 + (place >= cut), jnp.int32),
        position=jnp.asarray(np.where(place >= cut, place - cut, place), jnp.int32),
    )


def whole(batch: TextBatch) -> TextBatch:
    return batch.replace(segment=None, position=None)


PACKED = {
    "next_token": lambda: everything(NextToken(MODEL)),
    "masked": denoise,
    "masked, shifted": lambda: denoise(shift=True),
    "medusa 2": lambda: joint(False),
    "medusa 2, distilled": lambda: joint(True),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_row_is_its_documents_apart(name):
    """Every document in a row of its own, among junk, teaches what it teaches in the packed one."""
    case, batch = PACKED[name](), text()
    junk = jnp.asarray(np.random.default_rng(9).integers(VOCAB - 1, size=(ROWS, LENGTH)), jnp.int32)
    alone = lambda n: batch.replace(
        token=jnp.where(batch.segment == n, batch.token, junk), learn=batch.learn & (batch.segment == n)
    )
    objective = case.objective
    if isinstance(objective, Medusa2):  # its ratio is the batch's
        objective = objective.over(case.frozen, batch)
    run = jax.jit(lambda rows: objective(case.trainable, case.frozen, rows, jax.random.key(0)))
    packed, one, other = (jax.device_get(run(rows)) for rows in (batch, alone(1), alone(2)))
    apart = jax.tree.map(np.add, one, other)
    for name, mean in apart.means().items():
        np.testing.assert_allclose(packed.means()[name], mean, rtol=1e-5)
    np.testing.assert_allclose(packed.total, apart.total, rtol=1e-5)
    assert packed.weight == apart.weight > 0


def filtered() -> tuple[Case, FilterBatch]:
    network, rng = ConfidenceFilter(4, 8), np.random.default_rng(0)
    weights = jax.tree.map(lambda x: 3 * x, params.init(network.specs(), jax.random.key(1)))
    asked = jnp.asarray(rng.random((ROWS, 4)) < np.linspace(0.2, 1, ROWS)[:, None])
    shown = jnp.asarray(rng.random((ROWS, 4)), jnp.float32)
    return Case(FilterLoss(network, 2.0, 0.5), weights, None), FilterBatch(shown, shown > 0.5, asked)


def heads_alone() -> tuple[Case, HeadBatch]:
    short = ShortList(jnp.arange(0, VOCAB, 2), WEIGHTS.embed[::2])
    batch = text()
    hidden = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, MODEL.width))
    case = Case(Medusa1(HEADS), params.init(HEADS.specs(), jax.random.key(1)), short)
    return case, HeadBatch(hidden=hidden, token=batch.token, learn=batch.learn, segment=batch.segment)


ADDED = {
    "masked": lambda: (denoise(), whole(text())),
    "medusa 2": lambda: (joint(False), text()),
    "medusa 1": heads_alone,
    "filter": filtered,
}


@pytest.mark.parametrize("name", ADDED)
def test_micro_batches_add_up_to_the_batch(name):
    """Loss, gradient and every other mean, with as different weights in the parts as can be."""
    (objective, trainable, frozen), batch = ADDED[name]()
    run = jax.jit(learn.accumulate, static_argnums=(0, 1))
    key = jax.random.key(0)
    (gradient, once), (added, parts) = (run(Plan(micro=n), objective, trainable, frozen, batch, key) for n in (1, 4))
    assert set(once.means()) == set(parts.means()) > {"loss"}
    for what, mean in once.means().items():
        np.testing.assert_allclose(parts.means()[what], mean, rtol=2e-5, err_msg=what)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(x).max() + 1e-7)


SHAPE = Transformer(
    vocab_size=500, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=128, qkv_bias=True
)
MOE = dataclasses.replace(SHAPE, experts=Experts(count=4, width=32, top_k=2))


def recipe(name: str) -> tuple[Case, Any]:
    """What `train/` runs."""
    zeros = lambda model: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params.abstract(model.specs()))
    adapted = joint(True, SHAPE, zeros(SHAPE))
    match name:
        case "moe":
            case = everything(NextToken(MOE), zeros(MOE))
        case "masked" | "block":
            block = 4 if name == "block" else 0
            case = everything(Masked(BlockDiffusion(SHAPE, 499, block)), zeros(SHAPE))
        case "lora":
            case = Case(NextToken(SHAPE), adapted.trainable["base"], adapted.frozen["base"])
        case "medusa2":
            case = adapted
        case _:
            case = everything(NextToken(SHAPE, remat=name == "remat"), zeros(SHAPE))
    return case, whole(text())


RECIPES = ["full", "remat", "moe", "masked", "block", "lora", "medusa2", "medusa1"]


@pytest.mark.parametrize("name", RECIPES)
def test_in_bfloat16_every_product_is(name):
    """Forward and backward, and what is frozen too; routers alone, and the sum of a token's experts, are float32."""
    (objective, trainable, frozen), batch = heads_alone() if name == "medusa1" else recipe(name)
    step = lambda t, f, b: learn.accumulate(Plan(compute="bfloat16"), objective, t, f, b, jax.random.key(0))
    found = flops.by_type(step, trainable, frozen, batch)
    routers = 3 * 2 * 2 * ROWS * (LENGTH - 1) * 64 * (4 + 2) if name == "moe" else 0
    assert found.pop("float32", 0) == routers and found["bfloat16"] > 20 * routers
    assert set(found) == {"bfloat16"}
    if name == "lora":  # and so the compiler is told
        said = jax.jit(step).lower(trainable, frozen, batch).as_text()
        types = re.findall(r"stablehlo\.dot_general .* : \(tensor<[^>]*x(\w+)>, tensor<[^>]*x(\w+)>\)", said)
        assert len(types) > 20 and set(types) == {("bf16", "bf16")}
