"""Experts against a loop over tokens, and what a router owes: choice by bias, weights without it, nothing dropped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError
from paradec.learn import flops
from paradec.models import lora
from paradec.models.experts import Experts, ExpertWeights
from paradec.ops.norm import rms_norm
from paradec.ops.rope import Rope, angles, rotate
from paradec.params import is_spec
from paradec.testing import model_laws, tiny_transformer

X, D, R, T = 8, 6, 5, 40
ROUTERS = {
    "raw softmax": Experts(X, R, 3),
    "normalised softmax": Experts(X, R, 2, normalise=True),
    "one expert": Experts(X, R, 1, score="sigmoid"),
    "all experts": Experts(X, R, X, normalise=True),
    "LLaDA2": Experts(X, R, 3, "sigmoid", True, 2.5, True, groups=4, top_groups=2),
    "biased softmax": Experts(X, R, 3, scale=0.5, bias=True),
}


def weights(experts, seed=0):
    """One layer's, with scores far apart, and tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    bias = 0.5 * draw(X) if experts.bias else None
    return ExpertWeights(2 * draw(D, X), bias, draw(2, X, D, R), draw(X, R, D)), draw(2, T // 2, D)


def slow(experts, w, x):
    """What a token gets, by loops, in float64: experts and their weights, and the sum of their outputs."""
    w = jax.tree.map(lambda a: np.asarray(a, np.float64), w)
    logits = np.asarray(x, np.float64) @ w.router
    score = np.exp(logits) / np.exp(logits).sum() if experts.score == "softmax" else 1 / (1 + np.exp(-logits))
    merit, size = score + (0 if w.bias is None else w.bias), X // experts.groups
    worth = [sum(sorted(merit[g * size : (g + 1) * size])[-2:]) for g in range(experts.groups)]
    groups = np.argsort(worth)[::-1][: experts.top_groups]
    chosen = sorted((e for e in range(X) if e // size in groups), key=lambda e: -merit[e])[: experts.top_k]
    total = sum(score[e] for e in chosen) if experts.normalise else 1.0
    out = np.zeros(D)
    for e in chosen:
        gate, up = x @ w.gate_up[0, e], x @ w.gate_up[1, e]
        out += experts.scale * score[e] / total * ((gate / (1 + np.exp(-gate)) * up) @ w.down[e])
    return chosen, experts.scale * score[chosen] / total, out


@jax.jit
def all_of(trees, x):
    """Of each router: its choice, its weights, its mixture, and the gradient of a function of the mixture."""

    def one(experts, w):
        flat = x.reshape(-1, D)
        loss = lambda w, x: jnp.sum(jnp.sin(experts.mix(w, x, jax.nn.silu)))
        return *experts.route(w, flat), experts.mix(w, x, jax.nn.silu), jax.grad(loss, (0, 1))(w, x)

    return {name: one(ROUTERS[name], w) for name, w in trees.items()}


@pytest.fixture(scope="module")
def run():
    """All routers in one program."""
    trees = {name: weights(experts)[0] for name, experts in ROUTERS.items()}
    x = weights(ROUTERS["LLaDA2"])[1]
    return trees, x, all_of(trees, x)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_loop_over_tokens(run, name):
    trees, x, found = run
    chosen, weight, mixed, _ = found[name]
    for t, token in enumerate(x.reshape(-1, D)):
        want = slow(ROUTERS[name], trees[name], np.asarray(token, np.float64))
        assert chosen[t].tolist() == want[0]
        np.testing.assert_allclose(weight[t], want[1], rtol=1e-5)
        np.testing.assert_allclose(mixed.reshape(-1, D)[t], want[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["raw softmax", "LLaDA2"])
def test_gradients_are_those_of_differences(run, name):
    """A step along the gradient changes the loss by its square, in weights and tokens alike; the bias has none."""
    trees, x, found = run
    experts, w, slope = ROUTERS[name], trees[name], found[name][3]
    loss = lambda w, x: sum(np.sin(slow(experts, w, np.asarray(t, np.float64))[2]).sum() for t in x.reshape(-1, D))
    square = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope))
    far = 1e-3 / square**0.5
    move = lambda sign: jax.tree.map(lambda a, g: np.asarray(a, np.float64) + sign * far * np.asarray(g), (w, x), slope)
    assert (loss(*move(1)) - loss(*move(-1))) / (2 * far) == pytest.approx(square, rel=1e-3)
    assert experts.bias is (slope[0].bias is not None)
    assert slope[0].bias is None or not slope[0].bias.any()


def test_permuted_experts_are_the_same_experts(run):
    """Whole groups and the experts inside them, with the router's columns and the biases."""
    trees, x, found = run
    order = np.asarray([5, 4, 0, 1, 6, 7, 3, 2])
    moved = {
        name: ExpertWeights(
            w.router[:, order], None if w.bias is None else w.bias[order], w.gate_up[:, order], w.down[order]
        )
        for name, w in trees.items()
    }
    for name, (chosen, weight, mixed, _) in all_of(moved, x).items():
        np.testing.assert_array_equal(order[chosen], found[name][0])
        np.testing.assert_allclose(weight, found[name][1], rtol=1e-6)
        np.testing.assert_allclose(mixed, found[name][2], atol=1e-5)


def test_the_bias_steers_the_choice_alone(run):
    trees, x, found = run
    bias = lambda change: {name: w.replace(bias=change(w.bias)) for name, w in trees.items() if w.bias is not None}
    alike, lifted = all_of(bias(lambda b: b + 3), x), all_of(bias(lambda b: b.at[6].add(9)), x)
    for name in alike:
        for a, b in zip(alike[name][:3], found[name][:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        assert (lifted[name][0][:, 0] == 6).all() and not (found[name][0][:, 0] == 6).all()
        assert (lifted[name][1] <= ROUTERS[name].scale).all(), "a lifted bias reached a weight"


def test_nothing_is_dropped_and_no_token_sees_another(run):
    """All tokens to one expert, as many as there are; and each as it is beside other tokens."""
    trees, x, found = run
    experts, w = ROUTERS["one expert"], trees["one expert"]
    one = w.replace(router=w.router.at[:, 3].set(0), bias=jnp.zeros(X).at[3].set(9))
    out = dataclasses.replace(experts, bias=True).mix(one, x, jax.nn.silu)
    gate, up = x @ w.gate_up[0, 3], x @ w.gate_up[1, 3]
    np.testing.assert_allclose(out, 0.5 * (jax.nn.silu(gate) * up) @ w.down[3], atol=1e-5)
    few = ROUTERS["LLaDA2"].mix(trees["LLaDA2"], x[:1, 3:5], jax.nn.silu)
    np.testing.assert_allclose(few, found["LLaDA2"][2][:1, 3:5], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 9}, "1 to 8 of the 8 experts here, not 9"), ({"top_k": 0}, "not 0"),
        ({"groups": 3}, "8 experts do not divide into 3 groups"), ({"groups": 4, "top_groups": 5}, "1 to 4 groups"),
        ({"groups": 4, "top_k": 3}, "1 to 2 of the 8"), ({"groups": 8, "top_groups": 8}, "groups of 1"),
        ({"score": "relu"}, "softmax or sigmoid"),
    ],
)  # fmt: skip
def test_routers_that_cannot_be(change, words):
    with pytest.raises(InputError, match=words):
        Experts(**{"count": X, "width": R, "top_k": 2} | change)


# In a model.

MIXED = Experts(6, 12, 2, "sigmoid", True, 2.5, True, groups=3, top_groups=2, shared=20, leading=2)


@pytest.fixture(scope="module")
def model():
    """Two plain layers, then two with experts; half of every head rotates."""
    transformer, tree = tiny_transformer(num_layers=4, experts=MIXED, rope=Rope(fraction=0.5), qk_norm=True)
    rng = np.random.default_rng(0)
    loud = lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(np.float32)
    return transformer, jax.tree.map(loud, tree)


def test_its_cached_passes_are_its_forward(model):
    """Layers of both kinds read and fill their own part of the cache."""
    token = jnp.asarray(np.random.default_rng(0).integers(97, size=(2, 24)), jnp.int32)
    model_laws.cache(*model, token, model_laws.plan(0, calls=5, batch=2, most=5, nodes=8), chain=False)


def test_its_layers_stand_in_order(model):
    """Other experts change what comes out of the layers that have them, and nothing before."""
    transformer, tree = model
    run = jax.jit(lambda w: transformer.forward(w, jnp.arange(9)[None], taps=(0, 1, 2, 3)))
    out, other = run(tree), run(tree.replace(blocks=tree.blocks.replace(down=tree.blocks.down + 1)))
    moved = [float(jnp.abs(a - b).max()) > 0 for a, b in zip(out.taps, other.taps, strict=True)]
    assert moved == [False, False, True, True]
    np.testing.assert_allclose(out.hidden, rms_norm(out.taps[3], tree.norm, transformer.norm_eps), atol=1e-6)


def test_its_shapes_and_adapters(model):
    transformer, tree = model
    specs = transformer.specs()
    assert jax.tree.structure(tree) == jax.tree.structure(jax.tree.map(lambda s: 0, specs, is_leaf=is_spec))
    assert tree.leading.gate_up.shape == (2, 2, 32, 48) and tree.blocks.gate_up.shape == (2, 2, 32, 20)
    pick = lambda name: name.startswith("blocks/experts")
    shapes = {"router": (2, 32, 6), "gate_up": (2, 2, 6, 32, 12), "down": (2, 6, 12, 32)}
    adapted = lora.adapt(tree, specs, jax.random.key(0), rank=2, pick=pick).blocks.experts
    for name, shape in shapes.items():
        leaf = getattr(adapted, name)
        assert leaf.a.shape == (*shape[:-1], 2) and leaf.b.shape == (*shape[:-2], 2, shape[-1])
    assert specs.blocks.experts.router.dtype == "float32"


def test_mapped_over_batches_it_is_the_mixture_of_each():
    experts, (w, x) = ROUTERS["LLaDA2"], weights(ROUTERS["LLaDA2"])
    mix = jax.jit(lambda x: experts.mix(w, x, jax.nn.silu))
    many = jnp.stack([x, -x, 2 * x])
    np.testing.assert_allclose(jax.vmap(mix)(many), jnp.stack([mix(each) for each in many]), rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="not over their weights"):
        jax.vmap(lambda w: experts.mix(w, x, jax.nn.silu))(jax.tree.map(lambda a: a[None], w))


def test_operations_count_the_experts_that_run():
    """Not those that a token passes by."""
    experts, (w, x) = ROUTERS["LLaDA2"], weights(ROUTERS["LLaDA2"])
    mix = lambda w, x: experts.mix(w, x, jax.nn.silu)
    forward = flops.count(mix, w, x)
    routed, router, summed = 2 * T * 3 * 3 * D * R, 2 * T * D * X, 2 * T * 3 * D
    assert forward == routed + router + summed
    backward = flops.count(jax.grad(lambda w, x: jnp.sum(mix(w, x)), (0, 1)), w, x)
    assert backward == pytest.approx(3 * forward, rel=0.1)


def test_a_rope_turns_its_fraction():
    """The dimensions behind stay; those in front turn as a smaller head would."""
    x, place = jax.random.normal(jax.random.key(0), (3, 8)), jnp.asarray([0, 4, 900])
    half = rotate(x, *angles(Rope(fraction=0.5), place, 8))
    np.testing.assert_array_equal(half[:, 4:], x[:, 4:])
    np.testing.assert_allclose(half[:, :4], rotate(x[:, :4], *angles(Rope(), place, 4)), rtol=1e-6)
