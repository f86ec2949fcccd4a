"""The diffusion transformer against a slow forward from its published tensors; its reach, its streams, its caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import params
from paradec.composition import compose
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.dit import DiT, DiTBlocks, DiTWeights
from paradec.ops.mask import Block, Full
from paradec.ops.rope import Rope
from paradec.testing import model_laws
from paradec.types import Place, Rows
from tests.decode.canvases import LENGTHS, LIMITS, MASK, decode, differs, same
from tests.models.numpy_dit import D, H, K, L, V, condition, forward, linear, published

T, BLOCK = 16, 4
BASE = DiT(V, D, L, H, H, K, 4 * D, max_length=64)


def tree(tensors):
    """The published tensors as a parameter tree, by hand."""
    c = condition(tensors)
    layers = lambda name: np.stack([tensors[f"backbone.blocks.{i}.{name}"] for i in range(L)])
    turned = lambda name: layers(name).transpose(0, 2, 1)
    adaln = [linear(tensors, f"backbone.blocks.{i}.adaLN_modulation", c) for i in range(L)]
    end = "backbone.output_layer."
    blocks = DiTBlocks(
        attn_norm=layers("norm1.weight"), mlp_norm=layers("norm2.weight"),
        qkv=turned("attn_qkv.weight").reshape(L, D, 3, H, K).swapaxes(2, 3),
        out=turned("attn_out.weight").reshape(L, H, 1, K, D), modulation=np.stack(adaln).reshape(L, 2, 3, D),
        up=turned("mlp.0.weight"), up_bias=layers("mlp.0.bias"), down=turned("mlp.2.weight"),
        down_bias=layers("mlp.2.bias"),
    )  # fmt: skip
    weights = DiTWeights(
        embed=tensors["backbone.vocab_embed.embedding"], blocks=blocks, norm=tensors[end + "norm_final.weight"],
        modulation=linear(tensors, end + "adaLN_modulation", c).reshape(2, D), head=tensors[end + "linear.weight"],
        head_bias=tensors[end + "linear.bias"],
    )  # fmt: skip
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)


@pytest.fixture(scope="module")
def model():
    """Block diffusion on random weights, and tokens half of which are masks."""
    rng = np.random.default_rng(0)
    clean = jnp.asarray(rng.integers(MASK, size=(2, T)), jnp.int32)
    noisy = jnp.where(jnp.asarray(rng.random((2, T)) < 0.5), MASK, clean)
    return BlockDiffusion(BASE, mask_id=MASK, block=BLOCK), tree(published()), noisy, clean


@pytest.mark.parametrize("mask", [Full(), Block(BLOCK), Block(1)], ids=str)
def test_forward_is_the_slow_one(model, mask):
    _, weights, noisy, _ = model
    at = np.arange(T) // getattr(mask, "size", T)
    found = jax.jit(BASE.forward)(weights, noisy, mask=mask)
    for row in range(2):
        right = forward(published(), np.asarray(noisy[row]), at[:, None] >= at[None])
        np.testing.assert_allclose(found.logits[row], right, atol=1e-5)
    np.testing.assert_allclose(
        found.logits, found.hidden @ BASE.unembed(weights).T + weights.head_bias[None, None], atol=1e-5
    )
    late = forward(published(), np.asarray(noisy[0]), np.ones((T, T), bool), sigma=3.0)
    assert np.abs(late - found.logits[0]).max() > 0.1, "the noise level says nothing: any would pass"


def test_a_model_of_its_own_specs(model):
    """Shapes are those of the weights above; a fresh model says nothing and its layers add nothing."""
    fresh = params.init(BASE.specs(), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(lambda x: (x.shape, x.dtype), model[1])
    out = BASE.forward(fresh, model[3], taps=(L - 1,))
    np.testing.assert_array_equal(out.taps[0], fresh.embed[model[3]])
    assert not out.logits.any()
    narrow = DiT(V, D, L, H, H, K, 4 * D, dtype="bfloat16")
    out = narrow.forward(params.cast(model[1], jnp.bfloat16), model[2], mask=Full())
    assert out.logits.dtype == jnp.float32 and out.hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize("options", [{"window": 4}, {"tied": True, "qk_norm": True}, {"unit_norm": True}], ids=str)
def test_options_of_other_transformers(options):
    """A diffusion transformer has only the fields it reads."""
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        DiT(V, D, L, H, H, K, 4 * D, **options)
    DiT(V, D, L, H, H, K, 2 * D, norm_eps=1e-6, rope=Rope(theta=5e4), dtype="bfloat16")


# Who sees whom.


def test_gradients_stay_inside_the_blocks(model):
    at = np.arange(T) // BLOCK
    model_laws.causality(BASE, model[1], (at[:, None] >= at[None])[None], mask=Block(BLOCK))
    model_laws.causality(BASE, model[1], np.ones((1, T, T), bool), mask=Full())


def test_gradients_stay_inside_the_streams(model):
    """A noisy row depends on its own noisy block, and on the clean blocks before it: on nothing else."""
    target, weights, _, _ = model
    noisy, clean = jnp.arange(T)[None], T + jnp.arange(T)[None]  # a token of its own for every place

    def summary(embed):
        hidden = target.two_streams(weights.replace(embed=embed), noisy, clean).hidden[0]
        return hidden @ jnp.cos(jnp.arange(D, dtype=jnp.float32))

    pull = jax.vjp(summary, weights.embed)[1]
    slope = jax.jit(lambda: jax.lax.map(lambda one: jnp.abs(pull(one)[0][: 2 * T]).max(-1), jnp.eye(T)))()
    at = np.arange(T) // BLOCK
    allowed = np.concatenate([at[:, None] == at[None], at[:, None] > at[None]], axis=1)
    np.testing.assert_array_equal(np.asarray(slope) > 0, allowed)


def test_training_is_decoding_block_by_block(model):
    """The pass of two streams gives each block what a cache of the clean blocks before it gives the noisy block."""
    target, weights, noisy, clean = model
    want = target.two_streams(weights, noisy, clean).logits
    here = jnp.broadcast_to(jnp.arange(BLOCK)[None], (2, BLOCK))

    @jax.jit
    def read(cache, token, start):
        position = start + here
        place = Place(position=position, sees=jnp.full_like(position, start + BLOCK), fresh=position >= 0)
        rows = Rows.canvas(jax.lax.dynamic_slice_in_dim(token, start, BLOCK, axis=1), place, here)
        out, delta = target.extend(weights, cache, rows)
        end = jnp.full(2, start, jnp.int32) + BLOCK
        return out.logits, target.store(cache, delta, end - BLOCK, jnp.full_like(end, BLOCK), end)

    cache = target.init_cache(2, T)
    for start in range(0, T, BLOCK):
        found, _ = read(cache, noisy, start)
        np.testing.assert_allclose(found, want[:, start : start + BLOCK], atol=1e-5)
        _, cache = read(cache, clean, start)


# Decoding.


@pytest.mark.parametrize(("rule", "options"), [("quota", {"per_call": 2}), ("threshold", {"tau": 0.4})])
def test_the_block_cache_is_exact(rule, options):
    weights = {"target": tree(published(sharp=3.0))}
    target = BlockDiffusion(BASE, mask_id=MASK, block=8)
    right = decode(compose(target, rule, options, cache="none"), weights)
    found = decode(compose(target, rule, options, cache="block"), weights)
    same(right, found)
    assert (found.stats.queries < right.stats.queries).all()
    tokens = np.asarray(found.tokens)
    for row, limit in enumerate(LIMITS):
        assert len({*tokens[row, :limit].tolist()} - {MASK}) > 4 and MASK not in tokens[row, :limit]
    if rule == "threshold":
        whole = decode(compose(BlockDiffusion(BASE, mask_id=MASK), rule, options, block=8), weights)
        assert differs(right, whole), "full attention decodes alike: the blocks are not seen"
        assert (found.calls < LIMITS - LENGTHS).all() and len({*found.calls.tolist()}) > 1
