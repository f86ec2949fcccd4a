"""`sizes()` and `stacks()`: what every model says of itself is what its parameter tree and its outputs are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from paradec import params
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.dit import DiT
from paradec.models.experts import Experts
from paradec.models.posterior import HiddenMarkov, JointTable
from paradec.models.shapes import SHAPES
from paradec.models.tabular import ConditionalTable
from paradec.testing import tiny_recurrence, tiny_transformer
from paradec.testing.tiny import drawn
from paradec.types import Denoiser, Model, Rows, Sizes, Stacks

DIT = DiT(vocab_size=97, width=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, mlp_width=48)
MODELS = {
    "transformer": tiny_transformer()[0],
    "tied": tiny_transformer(tied=True, dtype="bfloat16", window=5)[0],
    "experts": tiny_transformer(experts=Experts(6, 12, 2))[0],
    "leading": tiny_transformer(num_layers=3, experts=Experts(6, 12, 2, shared=20, leading=1))[0],
    "dit": DIT,
    "denoiser": BlockDiffusion(DIT, mask_id=3, block=4),
    "recurrence": tiny_recurrence()[0],
    "tied recurrence": tiny_recurrence(tied=True)[0],
    "table": ConditionalTable(vocab_size=5, order=2),
    "chain": HiddenMarkov(vocab_size=5),
}


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=params.is_spec)


def fields(tree):
    return {field.name for field in dataclasses.fields(tree) if getattr(tree, field.name) is not None}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_stacks_are_the_fields_of_the_tree(model):
    """Every leaf of a stack leads with its layers, and no leaf outside of one has an axis of that name."""
    tree, stacks, sizes = model.specs(), model.stacks(), model.sizes()
    assert sum(depth for _, depth in stacks.layers) == sizes.num_layers
    for name, depth in stacks.layers:
        assert {(spec.axes[0], spec.shape[0]) for spec in leaves(getattr(tree, name))} == {("layers", depth)}
    others = fields(tree) - {name for name, _ in stacks.layers}
    assert "layers" not in {axis for name in others for spec in leaves(getattr(tree, name)) for axis in spec.axes}
    assert {*stacks.lookup} <= others and stacks.norm in {None, *others}
    if stacks.norm:
        assert getattr(tree, stacks.norm).shape == (sizes.width,)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if isinstance(model, Model)])
def test_rows_of_looked_up_tables_count_only_for_their_tokens(name):
    """No number of another token's row reaches the logits; a row of any other matrix does."""
    model = MODELS[name]
    weights, lookup = drawn(model.specs(), 0), model.stacks().lookup
    weights = weights.replace(head=weights.embed * 0.5) if "dit" in name else weights  # new ones are zeros
    read = jax.jit(lambda w: model.forward(w, jnp.zeros((1, 3), jnp.int32)).logits)
    tables = [key for key in ("embed", "head", "logits") if key in fields(weights)]
    for key in tables:
        broken = getattr(weights, key).at[-1].set(jnp.nan)
        assert bool(jnp.isnan(read(weights.replace(**{key: broken}))).any()) is (key not in lookup)
    assert tables and {*lookup} <= {*tables}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_sizes_are_those_of_outputs_and_caches(model):
    sizes = model.sizes()
    assert sizes.vocab_size == model.vocab_size and sizes.dtype == model.dtype
    if isinstance(model, HiddenMarkov):
        return
    base = model.base if isinstance(model, BlockDiffusion) else model
    call = lambda w: base.extend(w, base.init_cache(1, 8), Rows.chain(jnp.zeros((1, 2), jnp.int32)))
    out, delta = jax.eval_shape(call, params.abstract(model.specs()))
    assert out.hidden.shape[-1] == sizes.width and out.logits.shape[-1] == sizes.vocab_size
    if sizes.num_heads:
        assert delta.k.shape == (sizes.num_layers, 1, sizes.num_kv_heads, 2, sizes.head_dim)
        assert sizes.groups * sizes.num_kv_heads == sizes.num_heads
    else:
        assert sizes.groups == 0


def test_the_mlp_is_the_one_that_all_tokens_pass():
    """Which is what the second MLP matrix of the last stack is the size of; experts alone have none."""
    for name in ("transformer", "leading", "dit"):
        down = MODELS[name].specs().blocks.down
        assert down.shape[1] == MODELS[name].sizes().mlp_width
    assert MODELS["leading"].sizes().mlp_width == 20 and MODELS["experts"].sizes().mlp_width == 0


def test_a_denoiser_says_what_its_base_says():
    assert MODELS["denoiser"].sizes() == DIT.sizes() and MODELS["denoiser"].stacks() == DIT.stacks()
    assert JointTable(vocab_size=5).sizes() == HiddenMarkov(vocab_size=5).sizes() == Sizes(5, width=5)


def test_a_model_that_says_nothing_has_defaults():
    for kind in (Model, Denoiser):
        quiet = type("Quiet", (kind,), {"vocab_size": 7})()
        assert quiet.sizes() == Sizes(7) and quiet.stacks() == Stacks() and quiet.sizes().groups == 0


@pytest.mark.parametrize("name", ["transformer", "tied", "experts", "dit", "recurrence"])
def test_first_layers_have_the_tree_of_the_cut_stack(name):
    model = MODELS[name]
    ((stack, _),) = model.stacks().layers
    whole = params.abstract(model.specs())
    cut = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), getattr(whole, stack))
    assert params.abstract(model.first_layers(1).specs()) == whole.replace(**{stack: cut})


def test_shapes_say_their_published_sizes():
    found = {name: make().sizes() for name, make in SHAPES.items()}
    assert found["llama3-8b"] == Sizes(128_256, 4096, 32, 32, 8, 128, 14_336, "float32")
    assert found["smollm2-135m"].groups == 3
