"""The layer of GLA: its published numbers, and its ragged passes on chains and trees are its forward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError
from paradec.models import gla as module
from paradec.models.gla import GLA, GLAWeights
from paradec.models.recurrent import RecurrentLM
from paradec.ops.mask import Facts
from paradec.testing import model_laws as laws
from paradec.testing.tiny import drawn
from paradec.types import Rows

FULL = GLA(
    4,
    num_kv_heads=2,
    expand_k=0.75,
    gate_normaliser=0.5,
    clamp_min=-3.0,
    conv_size=4,
    implementation="chunk",
    chunk=8,
    sub_chunk=4,
)
BARE = GLA(2, output_gate=False, norm_weight=False, gate_rank=3, implementation="recurrent")
PATTERN = (FULL, BARE)  # one model: its programs compile once


def fill(shape, c, s=0.5):
    return np.asarray(s * np.sin(1.3 * np.arange(np.prod(shape)) + c), np.float32).reshape(shape)


def token(rows, T):
    return jnp.asarray(np.random.default_rng(1).integers(97, size=(rows, T)))


@pytest.fixture(scope="module")
def made():
    model = RecurrentLM(97, 32, PATTERN, repeats=1, mlp_width=0, tied=False)
    weights = drawn(model.specs(), 0)
    rng = np.random.default_rng(3)  # of gates, which are drawn as zeros, too
    layers = tuple(
        each.replace(mixer=each.mixer.replace(gate_bias=rng.normal(size=each.mixer.gate_bias.shape).astype(np.float32)))
        for each in weights.layers
    )
    return model, jax.device_put(weights.replace(layers=layers))


def test_fixture():
    """Numbers of an implementation in float64, on one layer of width 8 with two heads."""
    w = GLAWeights(
        q=fill((8, 4), 0.1).reshape(8, 2, 1, 2), k=fill((8, 4), 0.2).reshape(8, 2, 2),
        v=fill((8, 8), 0.3).reshape(8, 2, 4), out_gate=fill((8, 8), 0.4).reshape(8, 2, 1, 4),
        gate_down=fill((8, 16), 0.5), gate_up=fill((16, 4), 0.6).reshape(16, 2, 2),
        gate_bias=fill((4,), 0.7, 1).reshape(2, 2), head_norm=np.ones(4, np.float32),
        out=fill((8, 8), 0.8).reshape(2, 1, 4, 8), q_conv=None, k_conv=None, v_conv=None,
    )  # fmt: skip
    x, position = jnp.asarray(fill((1, 5, 8), 0.9, 1)), jnp.arange(5)[None]
    y, info = jax.jit(GLA(2, norm_eps=1e-5).forward)(jax.device_put(w), x, Facts(position))
    assert info is None
    first = [0.049377, 0.118989, 0.014282, -0.111348, -0.073853, 0.071837, 0.112286, -0.011764]
    last = [0.059279, 0.225183, 0.061193, -0.192445, -0.164151, 0.104625, 0.220125, 0.013142]
    np.testing.assert_allclose(y[0, [0, 4]], [first, last], atol=2e-6)


def test_every_option_by_hand(made):
    """Shared keys, a convolution and SiLU on all three, gates that are bounded; step by step in float64."""
    w = {k: np.asarray(v[0], np.float64) for k, v in vars(made[1].layers[0].mixer).items()}
    x = fill((1, 9, 32), 0.1, 2)
    silu = lambda a: a / (1 + np.exp(-a))

    def convolved(name):
        a = np.einsum("td,d...->t...", x[0].astype(np.float64), w[name])
        past = np.concatenate([np.zeros((3, *a.shape[1:])), a])
        return silu(sum(w[f"{name}_conv"][i] * past[i : i + 9] for i in range(4)))

    q, k, v = map(convolved, "qkv")
    raw = np.einsum("td,dr,rhk->thk", x[0], w["gate_down"], w["gate_up"]) + w["gate_bias"]
    unbounded = -np.log1p(np.exp(-raw)) / 0.5
    g = np.maximum(unbounded, -3.0)
    assert 0.1 < (g == -3).mean() < 0.9, "the bound should matter"
    S, y = np.zeros((2, 6, 8)), []
    for t in range(9):
        S = np.exp(g[t])[..., None] * S + k[t][..., None] * v[t][:, None]
        o = 6**-0.5 * np.einsum("hgk,hkv->hgv", q[t], S)
        o = o / np.sqrt((o * o).mean(-1, keepdims=True) + 1e-6) * w["head_norm"]
        y.append(np.einsum("hgv,hgvd->d", o * silu(np.einsum("d,dhgv->hgv", x[0, t], w["out_gate"])), w["out"]))
    one = jax.tree.map(lambda a: a[0], made[1].layers[0].mixer)
    got, _ = jax.jit(FULL.forward)(one, jnp.asarray(x), Facts(jnp.arange(9)[None]))
    np.testing.assert_allclose(got[0], y, atol=1e-5)


@pytest.mark.parametrize("chain", [True, False])
def test_ragged_calls_are_one_forward(made, chain):
    laws.cache(*made, token(3, 16), laws.plan(0, 4, 3, 3, 7), chain=chain)


def test_refused_and_pending_rows(made):
    laws.untouched(*made, token(3, 16))
    laws.pending(*made, token(3, 16), laws.plan(0, 1, 3, 3, 7).parent[0])


@pytest.mark.parametrize("pairs", [4, 64])
def test_pending_rows_of_chains(made, monkeypatch, pairs):
    """Of short ones, and of those beyond `PAIRS` rows, which are computed as sequences."""
    monkeypatch.setattr(module, "PAIRS", pairs)
    laws.pending(*made, token(3, 16), None)


def test_documents_are_apart_and_padding_changes_nothing(made):
    """Two packed documents, the second behind padding, are two texts; one behind padding is itself."""
    text, weights, run = token(1, 12), made[1], jax.jit(made[0].forward)
    segment, valid = jnp.asarray([[0] * 5 + [1] * 7]), jnp.ones((1, 12), bool).at[0, 5:7].set(False)
    packed = run(weights, text, segment=segment, valid=valid).logits
    for part in (slice(0, 5), slice(7, 12)):
        alone = run(weights, text[:, part]).logits
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-5)
    behind = run(weights, text, segment=0 * segment, valid=jnp.arange(12)[None] >= 7).logits
    np.testing.assert_allclose(behind[:, 7:], alone, atol=2e-5)


def test_every_weight_learns(made):
    weights = made[1].layers[0].mixer
    one = jax.tree.map(lambda x: x[0], weights)
    x = jnp.asarray(fill((2, 20, 32), 0.1, 2))
    facts = Facts(jnp.broadcast_to(jnp.arange(20)[None], (2, 20)))
    slope = jax.jit(jax.grad(lambda w: jnp.sum(jnp.cos(FULL.forward(w, x, facts)[0]))))(one)
    for path, leaf in jax.tree.leaves_with_path(slope):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-5, path


def test_memory_is_of_one_size_and_states_are_wide():
    """A delta has no states in it: factors of rows alone."""
    narrow = RecurrentLM(97, 32, PATTERN, repeats=1, mlp_width=0, tied=False, dtype="bfloat16")
    states = narrow.init_cache(2, 64).states
    assert [s.matrix.shape for s in states] == [(1, 2, 2, 6, 8), (1, 2, 2, 8, 16)]
    assert {s.matrix.dtype for s in states} == {jnp.dtype("float32")} and states[0].tail.dtype == jnp.bfloat16
    shapes = lambda slots: [x.shape for x in jax.tree.leaves(narrow.init_cache(2, slots))]
    assert shapes(8) == shapes(4096)
    assert all(x.shape[:3] == (1, 2, 8) and x.ndim <= 5 for x in jax.tree.leaves(narrow.init_delta(2, 8)))
    cache, rows = narrow.init_cache(2, 64), Rows.chain(token(2, 8))
    out, delta = jax.eval_shape(narrow.extend, drawn(narrow.specs(), 0), cache, rows)
    alike = lambda a, b: jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), a, b)
    assert all(jax.tree.leaves(alike(delta, narrow.init_delta(2, 8)))) and out.hidden.dtype == jnp.bfloat16
    assert all(jax.tree.leaves(alike(jax.eval_shape(narrow.commit, cache, delta, None, rows.depth[:, 0]), cache)))


def test_what_makes_no_layer():
    for options, words in (
        (dict(num_heads=4, num_kv_heads=3), r"num_heads must be a multiple of num_kv_heads \(3\)"),
        (dict(num_heads=4, clamp_min=0.5), "clamp_min must be at most 0"),
        (dict(num_heads=4, conv_size=1), "conv_size must be 0"),
        (dict(num_heads=4, chunk=24), "chunk must be a multiple of 16"),
        (dict(num_heads=4, gate_normaliser=0.0), "gate_normaliser must be above 0"),
        (dict(num_heads=4, implementation="fused"), "implementation must be one of auto"),
    ):
        with pytest.raises(InputError, match=words):
            GLA(**options)
    with pytest.raises(InputError, match="expand_k = 0.5 makes 5 of a width of 10, which 4 heads do not divide"):
        GLA(4).specs(1, 10, "float32", 1.0)
