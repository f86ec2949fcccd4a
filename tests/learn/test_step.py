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
from paradec.learn.step import Loss, Plan
from paradec.testing import tiny_table, tiny_transformer

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
    batch, forward = text(), jax.jit(objective.model.forward)
    total = count = hits = 0.0
    for b in range(8):
        for s in (0, 1):  # each document on its own: nothing of the other may be seen
            at = np.flatnonzero(np.asarray(batch.segment[b]) == s)
            logits = forward(state.trainable, batch.token[b : b + 1, at[0] : at[-1] + 1]).logits[0]
            law = np.asarray(jax.nn.log_softmax(logits))
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

    def moved(w, g):
        g = g * plan.clip / norm
        m, v = (1 - plan.beta1) * g / (1 - plan.beta1), (1 - plan.beta2) * g**2 / (1 - plan.beta2)
        return w - rate * (m / (jnp.sqrt(v) + 1e-8) + (plan.weight_decay if w.ndim > 1 else 0) * w)

    state, metrics = learn.step(plan, objective, state, frozen, batch)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    for w, x, g in zip(*map(jax.tree.leaves, (weights, state.trainable, gradient)), strict=True):
        firm = np.abs(g) * plan.clip / norm > 1e-6  # below, the sign of a gradient is rounding
        np.testing.assert_allclose(np.where(firm, x, 0), np.where(firm, moved(w, g), 0), atol=1e-6)


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
        return Loss(jnp.sum(trainable["w"]) * 0.0, jnp.float32(1), {"noise": jax.random.uniform(key)})

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
