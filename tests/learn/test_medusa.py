"""Medusa-1 from hidden states to tokens per call, on a table whose text is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import params
from paradec.decode.drafters.medusa import Medusa
from paradec.decode.speculative import speculative
from paradec.learn import step as learn
from paradec.learn.objectives.medusa import HeadBatch, Medusa1, Medusa2, calibrate, targets
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.step import Plan
from paradec.models import lora
from paradec.models.heads import DraftHeads, MedusaHeads, ShortList
from paradec.models.ranked_tree import best_first, expected
from paradec.testing import laws, tiny_table, tiny_transformer
from paradec.types import Prompt, TextBatch

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step

VOCAB, ROWS, LENGTH = 12, 16, 24
HEADS = MedusaHeads(num_heads=2, width=VOCAB)
PLAN = Plan(steps=300, warmup=1, learning_rate=0.05, weight_decay=0.0, decay="constant", clip=0.0)


def world(noise=0.0, seed=0):
    """A table that walks around a ring, one step at a time or (with `noise`) sometimes two, and text it wrote."""
    model, weights = tiny_table(vocab_size=VOCAB, order=1)
    ring = np.append((np.arange(VOCAB) + 1) % VOCAB, 0)
    weights = weights.replace(logits=30 * jax.nn.one_hot(ring, VOCAB))
    rng = np.random.default_rng(seed)
    jump = 1 + (rng.random((ROWS, LENGTH)) < noise)
    token = jnp.asarray(np.cumsum(jump, axis=1) % VOCAB, jnp.int32)
    hidden = model.forward(weights, token).hidden
    return model, weights, HeadBatch(hidden=hidden, token=token, learn=jnp.ones((ROWS, LENGTH), bool))


def listing(tokens=range(VOCAB)):
    ids = jnp.asarray(sorted(tokens), jnp.int32)
    return ShortList(token=ids, table=jnp.eye(VOCAB)[ids])


def trained(batch, short, turns=300):
    state = learn.init(PLAN, params.init(HEADS.specs(), jax.random.key(0)), jax.random.key(0))
    for _ in range(turns):
        state, metrics = learn.step(PLAN, Medusa1(HEADS), state, short, batch)
    return state.trainable, metrics


def test_the_loss_is_that_of_the_formula():
    *_, batch = world(0.3)
    batch = batch.replace(learn=jnp.asarray(np.random.default_rng(1).random((ROWS, LENGTH)) < 0.6))
    short, weights = listing(range(0, VOCAB, 2)), params.init(HEADS.specs(), jax.random.key(0))
    got = jax.jit(Medusa1(HEADS, decay=0.5))(weights, short, batch, jax.random.key(0))
    total, count, hits = 0.0, [0, 0], [0, 0]
    token, wanted, hidden = (np.asarray(x) for x in (batch.token, batch.learn, batch.hidden))
    for k in (0, 1):
        for b in range(ROWS):
            for t in range(LENGTH - 2 - k):
                target = token[b, t + 2 + k]
                if wanted[b, t + 2 + k] and target % 2 == 0:
                    logits = hidden[b, t, ::2]  # a new head repeats the base
                    total += 0.5**k * (np.log(np.exp(logits).sum()) - logits[target // 2])
                    count[k] += 1
                    hits[k] += logits.argmax() == target // 2
    everything = [float(wanted[:, 2 + k :].sum()) for k in (0, 1)]
    np.testing.assert_allclose(got.total, total, rtol=1e-4)
    assert got.weight == count[0]
    for k in (0, 1):
        np.testing.assert_allclose(got.means()[f"head_{k}"], hits[k] / everything[k], rtol=1e-5)


def test_a_target_is_two_ahead_and_more():
    *_, batch = world(0.5)
    for k in (0, 1, 3):
        index, listed, counts = (np.asarray(x).reshape(ROWS, LENGTH) for x in targets(batch, listing().token, k))
        np.testing.assert_array_equal(index[:, : -2 - k], batch.token[:, 2 + k :])
        assert listed.all() and counts[:, : -2 - k].all() and not counts[:, -2 - k :].any()


def test_from_hidden_states_to_tokens_per_call():
    """Trained, calibrated, grown into a tree and decoded: the formula's tokens per call are those of the decode."""
    model, weights, batch = world()
    heads, metrics = trained(batch, listing())
    assert metrics["head_0"] == metrics["head_1"] == 1
    hits, counts = calibrate(HEADS, heads, listing(), batch, 3)
    accuracy = np.asarray(hits / counts[:, None])
    np.testing.assert_array_equal(counts, [ROWS * (LENGTH - 2), ROWS * (LENGTH - 3)])
    np.testing.assert_array_equal(accuracy, [[1, 0, 0], [1, 0, 0]])
    tree = best_first(accuracy, 10)
    assert tree == ((0,), (0, 0)) and expected(accuracy, tree) == 3
    method = speculative(model, Medusa(heads=HEADS, tree=tree), eos=(-1,))
    prompt = Prompt(token=jnp.asarray([[3, 4, 5]], jnp.int32), length=jnp.asarray([3], jnp.int32))
    all_params = {"target": weights, "heads": DraftHeads(heads, listing())}
    state = laws.decode(all_params, method, prompt, limit=[3 + 39])
    laws.exact(model, all_params, method, state)
    assert state.calls.tolist() == [13]


def test_accuracies_are_those_of_the_text():
    """A walk that jumps two steps in a quarter of cases: two ahead lies 2, 3 or 4 steps on, by the binomial law."""
    *_, batch = world(0.25)
    heads, _ = trained(batch, listing())
    *_, other = world(0.25, seed=1)
    hits, counts = calibrate(HEADS, heads, listing(), other, 4)
    accuracy = np.asarray(hits / counts[:, None])
    np.testing.assert_allclose(accuracy[0, :3], [0.5625, 0.375, 0.0625], atol=0.08)
    np.testing.assert_allclose(accuracy[1], [0.4219, 0.4219, 0.1406, 0.0156], atol=0.1)
    assert (accuracy.sum(1) <= 1).all()


def test_a_short_list_learns_what_it_lists():
    *_, batch = world()
    heads, metrics = trained(batch, listing(range(0, VOCAB, 2)), 200)
    assert metrics["head_0"] == pytest.approx(0.5, abs=0.03), "half of the targets cannot be drafted"
    hits, counts = calibrate(HEADS, heads, listing(range(0, VOCAB, 2)), batch, 1)
    np.testing.assert_allclose(hits[:, 0] / counts, 0.5, atol=0.03)


def text_world(seed=0, rows=8, length=20):
    """A tiny transformer and packed text of two documents a row, of which a part is to be learned."""
    model, weights = tiny_transformer(vocab_size=32)
    rng = np.random.default_rng(seed)
    segment = (np.arange(length)[None] >= rng.integers(6, 14, (rows, 1))).astype(np.int32) + 1
    batch = TextBatch(
        token=jnp.asarray(rng.integers(32, size=(rows, length)), jnp.int32),
        learn=jnp.asarray(rng.random((rows, length)) < 0.7),
        segment=jnp.asarray(segment),
    )
    heads = MedusaHeads(num_heads=2, width=model.width)
    return model, weights, heads, params.init(heads.specs(), jax.random.key(1)), batch


def joint(adapted=None, loud=0.0, **options):
    model, weights, heads, own, batch = text_world()
    base = lora.adapt(weights, model.specs(), jax.random.key(2), 2, pick=lambda n: n.startswith("blocks/"))
    base = jax.tree.map_with_path(lambda p, x: x + loud if params.name(p).endswith("/b") else x, base)
    trainable, frozen = params.partition(base, lora.trained)
    short = jnp.arange(0, 32, 2)
    objective = Medusa2(model, heads, **options)
    gap = jax.tree.map(lambda x: None, own)
    return objective, {"base": trainable, "heads": own}, {"base": frozen, "heads": gap, "short": short}, batch, base


def test_both_losses_are_those_of_their_formulas():
    objective, trainable, frozen, batch, base = joint(loud=0.05, decay=0.5, weight=0.3)
    got = jax.jit(objective)(trainable, frozen, batch, jax.random.key(0))
    model = objective.model
    whole = lora.merged(base)
    plain = jax.jit(NextToken(model))(whole, jax.tree.map(lambda x: None, whole), batch, jax.random.key(0))
    np.testing.assert_allclose(got.weight, plain.weight)
    np.testing.assert_allclose(got.sums["base"].sum, plain.total, rtol=1e-4)
    hidden = jax.jit(model.forward)(whole, batch.token, segment=batch.segment).hidden
    read = HeadBatch(hidden=hidden, token=batch.token, learn=batch.learn, segment=batch.segment)
    short = ShortList(token=frozen["short"], table=model.unembed(whole)[frozen["short"]])
    first = jax.jit(Medusa1(objective.heads, 0.5))(trainable["heads"], short, read, jax.random.key(0))
    wanted = plain.total + 0.3 * plain.weight * first.total / first.weight
    np.testing.assert_allclose(got.total, wanted, rtol=1e-4)


def test_heads_do_not_look_into_the_next_document():
    *_, batch = text_world()
    hidden = jnp.zeros((*batch.token.shape, 4))
    read = HeadBatch(hidden=hidden, token=batch.token, learn=batch.learn, segment=batch.segment)
    every = ShortList(token=jnp.arange(32), table=jnp.eye(32, 4))
    for k in (0, 1):
        _, _, learn = targets(read, every.token, k)
        learn = np.asarray(learn).reshape(batch.token.shape)
        segment, wanted = np.asarray(batch.segment), np.asarray(batch.learn)
        for b, t in np.ndindex(learn.shape):
            ahead = t + 2 + k
            inside = ahead < learn.shape[1] and segment[b, ahead] == segment[b, t]
            assert learn[b, t] == (inside and wanted[b, min(ahead, learn.shape[1] - 1)])


def test_self_distillation_holds_the_base_where_it_was():
    """Its loss is least, and its gradient 0, where the adapters change nothing; with text it is not."""
    pull = {}
    for distil in (True, False):
        objective, trainable, frozen, batch, _ = joint(weight=0.0, distil=distil)
        total = lambda t, o=objective, f=frozen, b=batch: o(t, f, b, jax.random.key(0)).total
        gradient = jax.jit(jax.grad(total))(trainable)["base"]
        pull[distil] = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
        louder = joint(loud=0.05, weight=0.0, distil=distil)
        assert not distil or louder[0](*louder[1:4], jax.random.key(0)).total > total(trainable)
    assert pull[True] < 1e-3 < 1e-1 < pull[False]


@pytest.mark.parametrize(("rise", "half"), [("constant", 1.0), ("linear", 0.5), ("sine", 2**-0.5)])
def test_the_share_of_the_heads_rises(rise, half):
    objective, trainable, frozen, batch, _ = joint(rise=rise, steps=10)
    share = [float(objective.at(jnp.int32(step)).share) for step in (4, 9, 20)]
    np.testing.assert_allclose(share, [half, 1, 1], rtol=1e-6)
    plan = Plan(steps=10, warmup=0, faster=(("heads", 4.0),))
    state = learn.init(plan, trainable, jax.random.key(0))
    state, metrics = learn.step(plan, objective, state, frozen, batch)
    base, total = (float(metrics[name]) for name in ("base", "loss"))
    whole = dataclasses.replace(objective, rise="constant")(trainable, frozen, batch, jax.random.key(0))
    full = float((whole.total - whole.sums["base"].sum) / whole.weight)
    np.testing.assert_allclose(total - base, full * float(objective.at(jnp.int32(0)).share), rtol=1e-4)


def test_some_weights_may_learn_faster():
    objective, trainable, frozen, batch, _ = joint()
    moved = {}
    for factor in (1.0, 4.0):
        plan = Plan(steps=10, warmup=0, clip=0.0, weight_decay=0.0, faster=(("heads", factor),))
        state = learn.init(plan, trainable, jax.random.key(0))
        state, _ = learn.step(plan, objective, state, frozen, batch)
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.trainable, trainable)
        moved[factor] = float(change["heads"].linear), float(change["base"].blocks.qkv.b)
    np.testing.assert_allclose(moved[4.0][0], 4 * moved[1.0][0], rtol=1e-3)
    np.testing.assert_allclose(moved[4.0][1], moved[1.0][1], rtol=1e-3)
