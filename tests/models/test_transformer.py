"""The transformer against its own forward: caches, trees, pending rows, masks. Other models by the same laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.models.cache import BLOCK
from paradec.ops.mask import Block, Causal, Facts, Full, Given, Prefix, Segment, Window
from paradec.ops.rope import Rope
from paradec.testing import model_laws, tiny_recurrence, tiny_table, tiny_transformer
from paradec.types import Rows

V, B, T = 97, 3, 12
SLIDING = dict(window=5, sliding=(True, False), local_rope=Rope(theta=100.0))
GEMMA = dict(
    qk_norm=True, post_norms=True, unit_norm=True, embed_scale=32**0.5, activation="gelu_tanh", query_scale=None
)
QWEN = dict(qkv_bias=True, num_kv_heads=4, tied=True, rope=Rope(kind="linear", factor=4.0))


def tokens(length=T, vocab=V):
    return jnp.asarray(np.random.default_rng(0).integers(vocab, size=(B, length)), jnp.int32)


def started(**overrides):
    """A tiny transformer whose norms and biases are not at their neutral start."""
    model, weights = tiny_transformer(**overrides)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(np.float32), weights)


@pytest.fixture(scope="module")
def plain():
    """The tiny transformer, its weights and its jitted forward."""
    model, weights = started()
    return model, weights, jax.jit(model.forward)


SPLITS = {
    "chain": ({}, True),
    "trees": ({}, False),
    "sliding windows in trees": (GEMMA | SLIDING, False),
    "biases and as many key heads": (QWEN, False),
}


@pytest.mark.parametrize(("options", "chain"), SPLITS.values(), ids=SPLITS)
def test_any_ragged_split_into_calls_is_one_forward(options, chain):
    """Past the attention block, too: texts are longer than 128 tokens."""
    plan = model_laws.plan(0, calls=36, batch=B, most=8, nodes=12)
    assert (plan.count.sum(0) > BLOCK).any() and (plan.count == 0).any()
    model_laws.cache(*started(**options), tokens(180), plan, chain=chain)


@pytest.mark.parametrize("make", [tiny_recurrence, tiny_table], ids=["recurrence", "table"])
@pytest.mark.parametrize("chain", [True, False], ids=["chain", "trees"])
def test_the_other_models_obey_the_same_law(make, chain):
    plan = model_laws.plan(1, calls=8, batch=B, most=5, nodes=9)
    model_laws.cache(*make(vocab_size=7), tokens(40, 7), plan, chain=chain)


TREE = np.asarray([[0, 0, 0, 1, 3, 2], [0, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 5]])
MODELS = {
    "transformer": tiny_transformer,
    "sliding transformer": lambda: started(window=2),
    "recurrence": tiny_recurrence,
    "table": lambda: tiny_table(vocab_size=V),
}


@pytest.mark.parametrize("name", ["transformer", "recurrence", "table"])
def test_count_zero_changes_nothing(name):
    model_laws.untouched(*MODELS[name](), tokens())


PENDING = [("transformer", None), ("sliding transformer", TREE)]
PENDING += [("recurrence", TREE), ("table", TREE), ("table", None)]


@pytest.mark.parametrize(
    ("name", "parent"), PENDING, ids=lambda x: x if isinstance(x, str) else "chain" if x is None else "tree"
)
def test_rows_on_pending_rows_are_rows_of_one_call(name, parent):
    model_laws.pending(*MODELS[name](), tokens(), parent)


AT, SEGMENT = np.arange(T), np.asarray([0] * 5 + [1] * 4 + [2] * 3)
FACTS = Facts(position=jnp.asarray(AT[None]), segment=jnp.asarray(SEGMENT[None]))
MASKS = {
    "causal": Causal(),
    "full": Full(),
    "block": Block(4),
    "prefix": Causal() | Prefix(jnp.full(1, 5)),
    "window": Causal() & Window(3),
    "documents": Causal() & Segment(),
}
RELATIONS = np.stack([np.asarray(mask(FACTS, FACTS))[0] for mask in MASKS.values()])


def test_gradients_stay_inside_the_mask(plain):
    """Every mask is a row of one batch; so is a relation that is no mask of ours."""
    odd = np.random.default_rng(0).random((1, T, T)) < 0.2
    see = np.concatenate([RELATIONS, odd | np.eye(T, dtype=bool)])
    model_laws.causality(*plain[:2], see, mask=Given(jnp.asarray(see)))
    leaky = np.concatenate([RELATIONS[::-1], odd])
    with pytest.raises(AssertionError, match="which the mask forbids"):
        model_laws.causality(*plain[:2], see & leaky, mask=Given(jnp.asarray(see)))
    with pytest.raises(AssertionError, match="which the mask allows"):
        model_laws.causality(*plain[:2], see | leaky, mask=Given(jnp.asarray(see & ~leaky)))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_object_is_its_relation(plain, name):
    """`forward` gives masks the positions and segments that they mean."""
    _, weights, forward = plain
    see = jnp.asarray(RELATIONS[[list(MASKS).index(name)]])
    options = dict(segment=FACTS.segment) if name == "documents" else dict(mask=MASKS[name])
    got = forward(weights, tokens()[:1], **options).logits
    np.testing.assert_allclose(got, forward(weights, tokens()[:1], mask=Given(see)).logits, atol=1e-5)


def test_padding_is_not_read(plain):
    _, weights, forward = plain
    valid = jnp.asarray(AT < 9)[None] | jnp.zeros((B, 1), bool)
    out = [forward(weights, tokens().at[:, 9:].add(more) % V, mask=Full(), valid=valid).logits for more in (0, 1)]
    np.testing.assert_array_equal(out[0][:, :9], out[1][:, :9])
    assert (out[0][:, 9:] != out[1][:, 9:]).any()


def test_a_packed_document_is_the_document_alone():
    model, weights = started(**SLIDING)
    forward = jax.jit(model.forward)
    segment, position = jnp.asarray([[0] * 5 + [1] * 7] * B), jnp.asarray([[*range(5), *range(7)]] * B)
    packed = forward(weights, tokens(), segment=segment, position=position).logits
    alone = forward(weights, jnp.roll(tokens(), -5, axis=1)).logits
    np.testing.assert_allclose(packed[:, 5:], alone[:, :7], atol=1e-4)


def test_auxiliary_rows_read_their_embedding():
    """`embed` replaces the token where `aux`, and is scaled like any embedding; elsewhere it is not looked at."""
    model, weights = started(embed_scale=2.0)
    rows, cache, aux = Rows.chain(tokens()), model.init_cache(B, 8), jnp.asarray([AT % 3 == 1] * B)
    embed = jnp.where(aux[..., None], weights.embed[tokens()], 1e3)
    fed = rows.replace(token=jnp.where(aux, 0, tokens()), embed=embed, aux=aux)
    want, got = (jax.jit(model.extend)(weights, cache, r)[0].logits for r in (rows, fed))
    np.testing.assert_array_equal(got, want)


def test_rows_that_are_not_live_do_not_lengthen_the_read(plain):
    """Beside a finished row of 200 tokens a live one of 3 reads one block; the finished row's outputs are junk."""
    model, weights, _ = plain
    cache = model_laws.prefill(model, weights, tokens(200), jnp.asarray([200, 3, 4]))
    call = jax.jit(lambda live: model.extend(weights, cache, Rows.chain(tokens(2)), live=live)[0].logits)
    every, some = call(jnp.asarray([True, True, True])), call(jnp.asarray([False, True, True]))
    np.testing.assert_allclose(some[1:], every[1:], atol=1e-5)
    assert (jnp.abs(some[0] - every[0]) > 1e-3).any()


def test_bfloat16_runs_and_stays_near(plain):
    """Weights, cache and activations in bfloat16; logits in float32."""
    half, rounded = tiny_transformer(dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(rounded)} == {"bfloat16"}

    @jax.jit
    def both(weights, text):
        _, delta = half.extend(weights, half.init_cache(B, T), Rows.chain(text[:, :6]))
        cache = half.commit(half.init_cache(B, T), delta, None, jnp.full(B, 6))
        return half.forward(weights, text), half.extend(weights, cache, Rows.chain(text[:, 6:]))[0], cache

    whole, rest, cache = both(rounded, tokens())
    assert (whole.logits.dtype, whole.hidden.dtype) == (jnp.float32, jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(cache)} == {"bfloat16", "int32"}
    exact = plain[2](tiny_transformer()[1], tokens()).logits
    for logits, want in ((whole.logits, exact), (rest.logits, exact[:, 6:])):
        assert float(jnp.std(logits - want) / jnp.std(want)) < 0.05


def test_remat_changes_no_gradient(plain):
    model, weights, _ = plain

    def slopes(remat):
        return jax.jit(jax.grad(lambda w: jnp.sum(model.forward(w, tokens(), remat=remat).logits ** 2)))(weights)

    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2 * float(jnp.abs(b).max()))
    jax.tree.map(near, slopes(True), slopes(False))
