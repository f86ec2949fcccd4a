"""Adapters: nothing at first, the same merged in a layer, before the layers or while decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import params
from paradec.errors import InputError
from paradec.models import lora
from paradec.ops.product import wide_einsum
from paradec.testing import tiny_transformer
from paradec.types import Rows

TOKEN = jnp.asarray(np.random.default_rng(0).integers(97, size=(2, 9)), jnp.int32)


def adapted(pick=lambda name: True, loud=True):
    model, weights = tiny_transformer()
    tree = lora.adapt(weights, model.specs(), jax.random.key(1), rank=3, alpha=6.0, pick=pick)
    if loud:
        change = lambda path, x: x + 0.05 if params.name(path).endswith("/b") else x
        tree = jax.tree.map_with_path(change, tree)
    return model, weights, tree


def test_a_new_adapter_changes_nothing():
    model, weights, tree = adapted(loud=False)
    run = jax.jit(model.forward)
    np.testing.assert_allclose(run(tree, TOKEN).logits, run(weights, TOKEN).logits, atol=1e-6)


def test_merged_in_a_layer_is_merged_before():
    model, weights, tree = adapted()
    run = jax.jit(model.forward)
    got, before, base = (run(w, TOKEN).logits for w in (tree, lora.merged(tree), weights))
    np.testing.assert_allclose(got, before, atol=1e-4)
    assert np.abs(got - base).max() > 0.1
    np.testing.assert_allclose(run(lora.removed(tree), TOKEN).logits, base, atol=0)


def test_decoding_sees_the_adapters():
    model, _, tree = adapted()
    out, _ = jax.jit(model.extend)(tree, model.init_cache(2, 16), Rows.chain(TOKEN))
    np.testing.assert_allclose(out.logits, jax.jit(model.forward)(tree, TOKEN).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("subscripts", "inputs", "shape"),
    [
        ("btd,dhgk->bthgk", (3, 5, 16), (16, 2, 3, 4)),
        ("bhgtk,hgkd->btd", (3, 2, 3, 5, 4), (2, 3, 4, 16)),
        ("btd,vd->btv", (3, 5, 16), (24, 16)),
    ],
)
def test_a_change_below_the_last_bit_of_a_bfloat16_weight_is_not_lost(subscripts, inputs, shape):
    """A tenth of it. The products that models make, on either side of the matrix."""
    keys = jax.random.split(jax.random.key(0), 4)
    stacked = {"btd,dhgk->bthgk": 1, "bhgtk,hgkd->btd": 3, "btd,vd->btv": 1}[subscripts]
    rows, columns = np.prod(shape[:stacked]), np.prod(shape[stacked:])
    weight = jax.random.normal(keys[0], shape).astype(jnp.bfloat16)
    a, b = jax.random.normal(keys[1], (rows, 2)), 2e-4 * jax.random.normal(keys[2], (2, columns))
    leaf = lora.Adapted(weight=weight, a=a, b=b, scale=2.0)
    x = jax.random.normal(keys[3], inputs).astype(jnp.bfloat16)
    there, gone = (lora.product(subscripts, x, w, wide_einsum) for w in (leaf, weight))
    wanted = np.einsum(subscripts, np.float64(x), 2.0 * (np.float64(a) @ np.float64(b)).reshape(shape))
    assert np.abs(there - gone - wanted).max() < 0.02 * np.abs(wanted).max()
    moved = np.asarray(leaf.merged() != weight).mean()
    assert moved < 0.2, "these changes are not small"


def test_the_change_is_the_product_of_the_formula():
    *_, tree = adapted()
    found = 0
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lora.is_adapted)
    for path, leaf in leaves:
        if not lora.is_adapted(leaf):
            continue
        found += 1
        name = params.name(path)
        stack = {"blocks/gate_up": 2}.get(name, 1 if name.startswith("blocks") else 0)
        shape = leaf.weight.shape
        w = np.asarray(leaf.weight).reshape(*shape[:stack], leaf.a.shape[-2], leaf.b.shape[-1])
        wanted = w + 2.0 * np.asarray(leaf.a) @ np.asarray(leaf.b)
        np.testing.assert_allclose(leaf.merged(), wanted.reshape(shape), atol=1e-5)
    assert found == 6  # embed, head, qkv, out, gate_up, down
    inputs = {params.name(p): leaf.a.shape[-2] for p, leaf in leaves if lora.is_adapted(leaf)}
    assert inputs["blocks/qkv"] == 32 and inputs["blocks/out"] == 32 and inputs["blocks/down"] == 48


def test_only_the_change_learns():
    model, _, tree = adapted(lambda name: name.startswith("blocks/"))
    trainable, frozen = params.partition(tree, lora.trained)
    assert {x.ndim for x in jax.tree.leaves(trainable)} == {3, 4} and len(jax.tree.leaves(trainable)) == 8
    loss = lambda t: jnp.sum(model.forward(params.merge(t, frozen), TOKEN).logits ** 2)
    gradient = jax.jit(jax.grad(loss))(trainable)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    assert params.count(trainable) < 0.4 * params.count(frozen)


def test_what_is_drawn_depends_on_the_name():
    _, _, some = adapted(lambda name: name == "blocks/qkv", loud=False)
    _, _, every = adapted(loud=False)
    np.testing.assert_array_equal(some.blocks.qkv.a, every.blocks.qkv.a)
    assert not lora.is_adapted(some.blocks.down)


@pytest.mark.parametrize(("rank", "pick", "words"), [(0, "blocks", "at least 1"), (2, "nowhere", "No dense leaf")])
def test_adapters_that_cannot_be(rank, pick, words):
    model, weights = tiny_transformer()
    with pytest.raises(InputError, match=words):
        lora.adapt(weights, model.specs(), jax.random.key(0), rank, pick=lambda name: name.startswith(pick))
