"""The training step: what it adds up, what it leaves alone, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradec import mesh, params
from paradec.errors import InputError
from paradec.learn import step as learn
from paradec.learn.objectives.next_token import NextToken, TextBatch, cross_entropy
from paradec.learn.step import Loss, Plan, Share
from paradec.models import lora
from paradec.models.dit import DiT
from paradec.models.experts import Experts
from paradec.models.heads import ConfidenceFilter, MedusaHeads
from paradec.testing import tiny_recurrence, tiny_table, tiny_transformer

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step

PLAN = Plan(steps=50, warmup=5, learning_rate=3e-3, weight_decay=0.1)


def text(rows=8, length=17, seed=0, vocab=97):
    """Packed rows of two documents each, in which an uneven part is to be learned."""
    rng = np.random.default_rng(seed)
    segment = (np.arange(length)[None] >= rng.integers(3, length - 3, (rows, 1))).astype(np.int32)
    learn_ = rng.random((rows, length)) < np.linspace(0.1, 1, rows)[:, None]
    return TextBatch(
        token=jnp.asarray(rng.integers(vocab, size=(rows, length)), jnp.int32),
        learn=jnp.asarray(learn_),
        segment=jnp.asarray(segment),
    )


def start(plan=PLAN, pick=lambda name: True, seed=0):
    model, weights = tiny_transformer(seed)
    trainable, frozen = params.partition(weights, pick)
    return NextToken(model), learn.init(plan, trainable, jax.random.key(7)), frozen


def run(plan=PLAN, turns=3, pick=lambda name: True, batch=None):
    objective, state, frozen = start(plan, pick)
    seen = []
    for _ in range(turns):
        state, metrics = learn.step(plan, objective, state, frozen, text() if batch is None else batch)
        seen.append(jax.device_get(metrics))
    return state, seen


def close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0)


@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_add_up_to_the_batch(micro):
    """Masks are uneven, so a mean of means would be another number."""
    whole, a = run()
    parts, b = run(dataclasses.replace(PLAN, micro=micro))
    close(whole.trainable, parts.trainable, 1e-5)
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=2e-5)


def test_the_loss_is_the_mean_over_what_is_learned():
    objective, state, frozen = start()
    batch, law_of = text(), jax.jit(lambda w, t: jax.nn.log_softmax(objective.model.forward(w, t).logits[0]))
    total = count = hits = 0.0
    for b in range(8):
        for s in (0, 1):  # each document on its own: nothing of the other may be seen
            at = np.flatnonzero(np.asarray(batch.segment[b]) == s)
            law = np.asarray(law_of(state.trainable, np.asarray(batch.token)[b : b + 1, at[0] : at[-1] + 1]))
            for i, t in enumerate(at[1:]):
                if batch.learn[b, t]:
                    token = int(batch.token[b, t])
                    total, count, hits = total - law[i, token], count + 1, hits + (law[i].argmax() == token)
    _, metrics = learn.step(PLAN, objective, state, frozen, batch)
    assert metrics["weight"] == count
    np.testing.assert_allclose(metrics["loss"], total / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], hits / count, rtol=1e-6)


def test_it_learns_one_batch_by_heart():
    plan = dataclasses.replace(PLAN, learning_rate=2e-2, weight_decay=0.0)
    _, seen = run(plan, 50)
    assert seen[0]["loss"] > 4 and seen[-1]["loss"] < 0.5


def test_frozen_leaves_stay_and_have_no_optimiser():
    objective, state, frozen = start(pick=lambda name: name.startswith("blocks/mlp") or name == "blocks/down")
    trained = [x.shape for x in jax.tree.leaves(state.trainable)]
    assert len(trained) == 2
    moments = [x.shape for x in jax.tree.leaves(state.optimiser) if x.ndim]
    assert sorted(moments) == sorted(trained * 2)
    before = jax.device_get(frozen)
    state, _ = learn.step(PLAN, objective, state, frozen, text())
    close(before, frozen, 0)
    _, weights = tiny_transformer()
    assert np.abs(state.trainable.blocks.down - weights.blocks.down).max() > 1e-5


def test_it_is_adamw_with_a_clip():
    """Against optax by hand, on the gradient of the mean loss."""
    plan = dataclasses.replace(PLAN, clip=0.05)
    objective, state, frozen = start(plan)
    batch, weights = text(), jax.tree.map(jnp.copy, state.trainable)
    mean = lambda w: (lambda loss: loss.total / loss.weight)(objective(w, frozen, batch, jax.random.key(0)))
    gradient = jax.jit(jax.grad(mean))(weights)
    norm = optax.global_norm(gradient)
    assert norm > plan.clip
    rate = plan.learning_rate / plan.warmup

    def moved(path, w, g):
        matrix = not params.name(path).endswith("norm")
        g = g * plan.clip / norm
        m, v = (1 - plan.beta1) * g / (1 - plan.beta1), (1 - plan.beta2) * g**2 / (1 - plan.beta2)
        return w - rate * (m / (jnp.sqrt(v) + 1e-8) + (plan.weight_decay if matrix else 0) * w)

    state, metrics = learn.step(plan, objective, state, frozen, batch)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    right = jax.tree.map_with_path(moved, weights, gradient)
    for w, x, g in zip(*map(jax.tree.leaves, (right, state.trainable, gradient)), strict=True):
        firm = np.abs(g) * plan.clip / norm > 1e-6  # below, the sign of a gradient is rounding
        np.testing.assert_allclose(np.where(firm, x, 0), np.where(firm, w, 0), atol=1e-6)


MOE = Experts(count=4, width=8, top_k=2, bias=True, shared=8, leading=1)
DIT = DiT(vocab_size=9, width=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=16)
NORMS = {"norm", "blocks/attn_norm", "blocks/mlp_norm"}
FAMILIES = {
    "llama": (tiny_transformer()[0], NORMS),
    "qwen2": (tiny_transformer(qkv_bias=True)[0], NORMS | {"blocks/qkv_bias"}),
    "qwen3": (tiny_transformer(qk_norm=True)[0], NORMS | {"blocks/q_norm", "blocks/k_norm"}),
    "gemma": (
        tiny_transformer(post_norms=True, unit_norm=True)[0],
        NORMS | {"blocks/attn_post_norm", "blocks/mlp_post_norm"},
    ),
    "moe": (
        tiny_transformer(experts=MOE)[0],
        NORMS | {"blocks/experts/bias", "leading/attn_norm", "leading/mlp_norm"},
    ),
    "dit": (DIT, NORMS | {"blocks/modulation", "blocks/up_bias", "blocks/down_bias", "modulation", "head_bias"}),
    "recurrence": (tiny_recurrence()[0], {"norm", "layers/0/norm", "layers/0/mlp_norm"}),
    "heads": (MedusaHeads(num_heads=2, width=4, num_layers=2, vocab_size=9), {"bias"}),
    "filter": (ConfidenceFilter(4, 8), {"bias", "out_bias"}),
    "table": (tiny_table()[0], set()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_decay_and_vectors_do_not(family):
    """Whatever they are stacked by; embeddings, vocabulary heads and routers are matrices."""
    model, vectors = FAMILIES[family]
    leaves = jax.tree.leaves_with_path(learn.decays(PLAN, params.abstract(model.specs())))
    decays = {params.name(path): decay for path, decay in leaves}
    assert {name for name, decay in decays.items() if not decay} == vectors
    specs = jax.tree.leaves_with_path(model.specs(), is_leaf=params.is_spec)
    dense = {params.name(path): spec.dense is not None for path, spec in specs}
    assert dense == decays or not any(dense.values())  # where a model says what its matrices are, it says the same


def test_adapters_decay_and_names_can_be_spared():
    model, weights = tiny_transformer()
    tree = lora.adapt(weights, model.specs(), jax.random.key(0), 2, pick=lambda name: name.startswith("blocks/"))
    trainable, _ = params.partition(tree, lambda name: lora.trained(name) or name in ("norm", "embed"))
    named = lambda plan: {params.name(p): x for p, x in jax.tree.leaves_with_path(learn.decays(plan, trainable))}
    assert [name for name, decay in named(PLAN).items() if not decay] == ["norm"] and len(named(PLAN)) == 10
    spare = named(dataclasses.replace(PLAN, spared=(*PLAN.spared, "embed")))
    assert [name for name, decay in spare.items() if not decay] == ["embed", "norm"]


def test_a_step_that_is_not_finite_changes_nothing():
    objective, state, frozen = start(dataclasses.replace(PLAN, average=0.9))
    before = jax.device_get((state.trainable, state.optimiser, state.average))
    broken = state.replace(trainable=state.trainable.replace(norm=state.trainable.norm.at[0].set(jnp.inf)))
    plan = dataclasses.replace(PLAN, average=0.9)
    after, metrics = learn.step(plan, objective, broken, frozen, text())
    assert metrics["finite"] == 0 and after.step == 1 and np.isinf(after.trainable.norm[0])
    close(before[1:], (after.optimiser, after.average), 0)
    assert run(plan, 1)[1][0]["finite"] == 1


def test_the_average_follows_the_weights():
    plan = dataclasses.replace(PLAN, average=0.75)
    objective, state, frozen = start(plan)
    average = jax.device_get(state.trainable)
    for _ in range(3):
        state, _ = learn.step(plan, objective, state, frozen, text())
        average = jax.tree.map(lambda a, w: 0.75 * a + 0.25 * np.asarray(w), average, state.trainable)
    close(average, state.average, 1e-6)


def test_half_precision_keeps_a_float32_master():
    half, a = run(dataclasses.replace(PLAN, compute="bfloat16"), 5)
    _, b = run(turns=5)
    assert {x.dtype for x in jax.tree.leaves((half.trainable, half.optimiser)) if x.ndim} == {np.dtype("float32")}
    gaps = [abs(x["loss"] - y["loss"]) for x, y in zip(a, b, strict=True)]
    assert 0 < max(gaps) < 0.02


def test_noise_depends_on_key_step_and_micro_batch():

    def noisy(trainable, frozen, batch, key):
        noise = Share(jax.random.uniform(key), jnp.float32(1))
        return Loss(jnp.sum(trainable["w"]) * 0.0, jnp.float32(1), {"noise": noise})

    def noise(plan, key, turns):
        state = learn.init(plan, {"w": jnp.ones(2)}, jax.random.key(key))
        for _ in range(turns):
            state, metrics = learn.step(plan, noisy, state, None, jnp.zeros((2, 1)))
        return float(metrics["noise"])

    one, two = PLAN, dataclasses.replace(PLAN, micro=2)
    seen = [noise(one, 0, 1), noise(one, 0, 2), noise(one, 1, 1), noise(two, 0, 1) * 2 - noise(one, 0, 1)]
    assert len({round(x, 6) for x in seen}) == 4 and noise(one, 0, 1) == seen[0]


@pytest.mark.parametrize("rules", [mesh.TENSOR, mesh.FSDP], ids=["tensor", "fsdp"])
def test_eight_devices_equal_one(rules):
    alone, a = run(turns=4)
    objective, state, frozen = start()
    place = mesh.make_mesh(4, 2)
    there = params.shardings(objective.model.specs(), place, rules)
    with mesh.use(place, rules):
        spread = jax.device_put(state.trainable, there)
        state = learn.init(PLAN, spread, jax.random.key(7))
        batch = jax.device_put(text(), mesh.batch_sharding(place, rules))
        for m in a:
            state, metrics = learn.step(PLAN, objective, state, frozen, batch)
            np.testing.assert_allclose(metrics["loss"], m["loss"], atol=1e-5)
    close(alone.trainable, state.trainable, 1e-5)
    kept = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state.trainable, there)
    assert all(jax.tree.leaves(kept))


@pytest.mark.parametrize("decay", learn.DECAYS)
def test_schedules(decay):
    plan = Plan(steps=100, warmup=10, learning_rate=1.0, decay=decay, floor=0.1)
    rate = np.array([float(learn.schedule(plan)(i)) for i in range(101)])
    assert rate[0] == pytest.approx(0.1) and (np.diff(rate[:10]) > 0).all() and rate[9:11] == pytest.approx([1, 1])
    assert (np.diff(rate[10:]) <= 1e-7).all()
    middle = {"cosine": 0.55, "linear": 0.55, "constant": 1.0, "wsd": 1.0}[decay]
    end = 1.0 if decay == "constant" else 0.1
    assert rate[55] == pytest.approx(middle, abs=0.01) and rate[100] == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("decay", learn.DECAYS)
@pytest.mark.parametrize(
    ("steps", "warmup"), [(100, 0), (100, 1), (100, 85), (100, 99), (4, 1), (1, 0), (5, 5), (0, 0)]
)
def test_a_schedule_ends_at_its_floor_however_long_it_rises(decay, steps, warmup):
    plan = Plan(steps=steps, warmup=warmup, learning_rate=2.0, decay=decay, floor=0.1)
    rate = np.array([float(learn.schedule(plan)(i)) for i in range(steps + 1)])
    assert rate[warmup:-1].min(initial=9) > 0.2, "a step before the end is at the floor already"
    assert rate[warmup:].max() == pytest.approx(2.0) and (np.diff(rate[warmup:]) <= 1e-6).all()
    assert (np.diff(rate[:warmup]) > 0).all() and (warmup == 0 or rate[warmup - 1] == pytest.approx(2.0))
    if warmup < steps:
        assert rate[-1] == pytest.approx(2.0 if decay == "constant" else 0.2)


def test_a_skipped_step_does_not_put_the_schedule_off():
    """The gradient is 1 everywhere, so Adam moves every weight by just the rate."""
    line = lambda weights, frozen, batch, key: Loss(jnp.sum(weights["w"]) * batch[0], jnp.float32(1), {})
    plan = Plan(steps=9, warmup=6, learning_rate=1.0, weight_decay=0.0, clip=0.0)
    state, moved, said = learn.init(plan, {"w": jnp.zeros(3)}, jax.random.key(0)), [], []
    for factor in (1.0, np.inf, 1.0, 1.0):
        before = float(state.trainable["w"][0])
        state, metrics = learn.step(plan, line, state, None, jnp.full(1, factor, jnp.float32))
        moved.append(before - float(state.trainable["w"][0]))
        said.append(float(metrics["learning_rate"]) * float(metrics["finite"]))
    np.testing.assert_allclose(said, [1 / 6, 0, 3 / 6, 4 / 6], rtol=1e-5)
    np.testing.assert_allclose(moved, said, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"decay": "cosin"}, "cosine"),
        ({"warmup": 60}, r"steps \(50\)"),
        ({"micro": 0}, "micro"),
        ({"average": 1.0}, "off"),
    ],
)
def test_a_plan_that_cannot_be(change, hint):
    with pytest.raises(InputError, match=hint):
        dataclasses.replace(PLAN, **change)


def test_rows_that_do_not_split():
    with pytest.raises(InputError, match="8 rows does not split into 3"):
        run(dataclasses.replace(PLAN, micro=3), 1)


def test_any_model_learns():
    """A table, whose best loss is the entropy of the text's bigrams."""
    model, weights = tiny_table(vocab_size=6, order=1)
    batch = TextBatch(token=jnp.asarray(np.arange(60).reshape(4, 15) % 6, jnp.int32), learn=jnp.ones((4, 15), bool))
    plan = Plan(steps=60, warmup=1, learning_rate=0.3, weight_decay=0.0, decay="constant")
    trainable, frozen = params.partition(weights, lambda name: True)
    state = learn.init(plan, trainable, jax.random.key(0))
    for _ in range(60):
        state, metrics = learn.step(plan, NextToken(model), state, frozen, batch)
    assert metrics["loss"] < 0.01 and metrics["accuracy"] == 1


def test_cross_entropy_is_in_nats():
    loss, right = cross_entropy(jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.array([1]))
    np.testing.assert_allclose((loss[0], right[0]), (np.log(4), 0), rtol=1e-6)
