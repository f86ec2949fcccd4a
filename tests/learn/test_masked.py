"""Masked and block diffusion: what is hidden, what it counts, and who sees whom in the pass of two streams."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import params
from paradec.data import chain
from paradec.errors import InputError
from paradec.learn import step as learn
from paradec.learn.objectives.masked import Masked, Noise, StreamView
from paradec.models.posterior import JointTable, JointTexts
from paradec.ops.attention import attend, attend_two_stream
from paradec.ops.mask import Facts
from paradec.types import Output, TextBatch
from tests.decode.canvases import MASK, denoiser

T, BLOCK = 16, 4


def dense(length, block):
    """The mask of both streams as it is published: noisy rows first."""
    b = np.tile(np.arange(length) // block, 2)
    clean = np.arange(2 * length) >= length
    own = (b[:, None] == b) & (clean[:, None] == clean)
    before = clean & ~clean[:, None] & (b[:, None] > b)
    causal = clean & clean[:, None] & (b[:, None] >= b)
    return own | before | causal


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("chunk", [16, 8])
def test_two_streams_are_the_dense_mask(block, chunk):
    B, H, G, K = 2, 2, 3, 8
    see = dense(T, block)
    assert see.sum() == T * T + T * block
    keys = jax.random.split(jax.random.key(0), 3)
    shape = lambda *mid: (2 * B, H, *mid, T, K)
    q, k, v = (jax.random.normal(key, s) for key, s in zip(keys, (shape(G), shape(), shape()), strict=True))
    position = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    valid = jnp.ones((B, T), bool).at[1, 13:].set(False)
    two = jax.jit(attend_two_stream, static_argnums=(3, 5, 6))
    found = two(q, k, v, block, Facts(position=position, valid=valid), 0.3, chunk)
    long = lambda x: jnp.concatenate([x[0::2], x[1::2]], axis=-2)
    seen = jnp.asarray(see)[None] & jnp.concatenate([valid, valid], axis=1)[:, None]
    right = jax.jit(attend, static_argnums=4)(long(q), long(k), long(v), seen, 0.3).out
    real = np.asarray(valid)[:, None, None, :, None]
    for half, rows in ((found[0::2], right[..., :T, :]), (found[1::2], right[..., T:, :])):
        np.testing.assert_allclose(np.where(real, half, 0), np.where(real, rows, 0), atol=2e-6)


@pytest.fixture(scope="module")
def streams():
    model, tree = denoiser(2, block=BLOCK)
    rng = np.random.default_rng(0)
    clean = jnp.asarray(rng.integers(MASK, size=(2, T)), jnp.int32)
    noisy = jnp.where(jnp.asarray(rng.random((2, T)) < 0.5), MASK, clean)
    run = jax.jit(lambda noisy, clean: model.two_streams(tree["target"], noisy, clean).logits)
    return model, tree["target"], run, noisy, clean


def test_nothing_leaks(streams):
    _, _, run, noisy, clean = streams
    base = np.asarray(run(noisy, clean))
    moved = lambda a, b: np.flatnonzero(np.abs(np.asarray(run(a, b)) - base)[0].max(-1) > 1e-6).tolist()
    for j in (0, 5, 11, 15):
        block = j // BLOCK
        other = (int(clean[0, j]) + 1) % MASK
        assert moved(noisy, clean.at[0, j].set(other)) == list(range((block + 1) * BLOCK, T))
        assert moved(noisy.at[0, j].set(other), clean) == list(range(block * BLOCK, (block + 1) * BLOCK))


def test_training_is_decoding(streams):
    """Each block's logits are those of the clean blocks before it and the noisy block, block-causal."""
    model, weights, run, noisy, clean = streams
    found, forward = np.asarray(run(noisy, clean)), jax.jit(model.forward)
    for block in range(T // BLOCK):
        here = slice(block * BLOCK, (block + 1) * BLOCK)
        canvas = clean.at[:, here].set(noisy[:, here])
        right = forward(weights, canvas).logits
        np.testing.assert_allclose(found[:, here], right[:, here], atol=2e-5)


def test_one_block_is_plain_masked_diffusion():
    model, tree = denoiser(2, block=T)
    whole, _ = denoiser(2)
    rng = np.random.default_rng(1)
    clean = jnp.asarray(rng.integers(MASK, size=(2, T)), jnp.int32)
    noisy = jnp.where(jnp.asarray(rng.random((2, T)) < 0.5), MASK, clean)
    found = jax.jit(model.two_streams)(tree["target"], noisy, clean).logits
    np.testing.assert_allclose(found, jax.jit(whole.forward)(tree["target"], noisy).logits, atol=2e-5)
    with pytest.raises(ValueError, match="do not split into blocks of 5"):
        denoiser(2, block=5)[0].two_streams(tree["target"], noisy, clean)


def batch(rows=64, length=32, seed=0):
    rng = np.random.default_rng(seed)
    token = jnp.asarray(rng.integers(MASK, size=(rows, length)), jnp.int32)
    learn = jnp.asarray(rng.random((rows, length)) < 0.8)
    return TextBatch(token=token, learn=learn)


def views(noise, given):
    return jax.jit(noise.views, static_argnums=3)(jax.random.key(0), given.token, given.learn, MASK)


@pytest.mark.parametrize("block", [0, 8])
def test_what_is_hidden(block):
    given = batch()
    (view,) = views(Noise(block), given)
    hidden, share = np.asarray(view.hidden), 1 / np.asarray(view.weight)
    assert not (hidden & ~np.asarray(given.learn)).any()
    np.testing.assert_array_equal(np.asarray(view.token), np.where(hidden, MASK, given.token))
    parts = share.reshape(64, -1, block or 32)
    assert (parts == parts[..., :1]).all(), "a share changes inside its block"
    kinds = np.sort(parts[..., 0].ravel())
    assert np.abs(np.diff(kinds) - 1 / len(kinds)).max() < 1e-3, "shares are not stratified"
    learn = np.asarray(given.learn)
    assert abs((hidden.sum() - share[learn].sum()) / np.sqrt((share * (1 - share))[learn].sum())) < 4


def test_pairs_hide_everything_once():
    given = batch()
    one, other = views(Noise(8, pair=True), given)
    np.testing.assert_array_equal(np.asarray(one.hidden ^ other.hidden), np.asarray(given.learn))
    assert not np.asarray(one.hidden & other.hidden).any() and (np.asarray(one.weight) == 1).all()
    (clipped,) = views(Noise(8, low=0.6, high=0.9), given)
    assert (np.asarray(clipped.weight) == 1).all()
    share = np.asarray(clipped.hidden).sum() / np.asarray(given.learn).sum()
    assert 0.7 < share < 0.8
    for bad in ({"low": 0.0}, {"low": 0.9, "high": 0.5}, {"high": 1.1}, {"block": -1}):
        with pytest.raises(InputError, match="must be"):
            Noise(**bad)


class Exact(JointTable):
    """An exact table in a trained model's clothes."""

    mask_id, block, shift = 3, 0, False

    def forward(self, weights, token, **facts):
        law = jnp.maximum(self.marginals(weights, token), 1e-30)
        return Output(logits=jnp.log(jnp.pad(law, ((0, 0), (0, 0), (0, 1)))), hidden=law)

    def aligned(self, logits):
        return logits


def test_the_loss_of_an_exact_denoiser_is_the_likelihood():
    """Any order of revealing a text adds up to its log probability, so the expected 1 / t loss does (LLaDA, eq. 3)."""
    texts = np.asarray(list(itertools.product(range(3), repeat=4)))
    p = np.random.default_rng(0).dirichlet(np.full(len(texts), 0.5))
    table = JointTexts(text=jnp.asarray(texts), weight=jnp.asarray(p, jnp.float32))
    one, rows = texts[np.argsort(p)[-3]], 20_000
    token = jnp.broadcast_to(jnp.asarray(one, jnp.int32)[None], (rows, 4))
    given = TextBatch(token=token, learn=jnp.ones((rows, 4), bool))
    losses, masked = [], jax.jit(Masked(Exact(3)))
    for seed in range(5):
        loss = masked(*params.partition(table, lambda name: True), given, jax.random.key(seed))
        losses.append(float(loss.total) / rows)
    nats, spread = -math.log(p[np.argsort(p)[-3]]), np.std(losses, ddof=1) / math.sqrt(5)
    assert abs(np.mean(losses) - nats) < max(4 * spread, 0.03), f"{losses} nats, and the text has {nats}"


@pytest.mark.parametrize("options", [dict(block=4, shift=True), dict(shift=True), dict(block=4), dict()], ids=str)
def test_a_small_model_learns(options):
    """Overfits one batch: hidden tokens follow from those that are seen, and the mask is never proposed."""
    model, tree = denoiser(2, **options)
    rows = np.tile(np.arange(16)[None] % 7, (8, 1)) + 10 * np.arange(8)[:, None]
    given = TextBatch(token=jnp.asarray(rows, jnp.int32), learn=jnp.ones((8, 16), bool))
    plan = learn.Plan(steps=150, learning_rate=1e-2, warmup=5, weight_decay=0.0)
    objective = Masked(model, Noise(model.block))
    trainable, frozen = params.partition(tree["target"], lambda name: True)
    state = learn.init(plan, trainable, jax.random.key(0))
    losses, right = [], []
    for _ in range(150):
        state, metrics = learn.step(plan, objective, state, frozen, given)
        losses.append(float(metrics["loss"]))
        right.append(float(metrics["accuracy"]))
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:10]) and np.mean(right[-20:]) > 0.25


def test_rows_held_out_are_scored_as_if_alone():
    """What fills a short row is seen by nothing, though everything else is."""
    model, tree = denoiser(2)
    rng = np.random.default_rng(3)
    rows = [{"token": rng.integers(MASK, size=n).astype(np.int32), "learn": np.ones(n, bool)} for n in (9, 12)]
    (batch,) = chain.HeldOut(rows, 2, length=12)
    objective = Masked(model)
    views = lambda token: StreamView(jnp.asarray(token), jnp.ones(token.shape, bool), jnp.ones(token.shape))
    run = jax.jit(lambda token, batch: objective.logits(tree["target"], views(token), batch))
    found = run(batch.token, batch)
    alone = run(batch.token[:1, :9], TextBatch(token=batch.token[:1, :9], learn=batch.learn[:1, :9]))
    np.testing.assert_allclose(found[0, :9, :MASK], alone[0, :, :MASK], atol=2e-5)
