"""Rotary embedding: what rotation must do, and the published scalings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.ops.rope import Rope, angles, query_growth, rotate

K = 16
LLAMA3 = Rope(500_000.0, "llama3", factor=8.0, original_length=8192, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = Rope(10_000.0, "yarn", factor=4.0, original_length=4096)
ROPES = [Rope(), Rope(1e6), Rope(kind="linear", factor=2.0), LLAMA3, YARN]


def turned(x, position, rope=Rope()):
    return rotate(x, *angles(rope, jnp.asarray(position), x.shape[-1]))


@pytest.mark.parametrize("rope", ROPES, ids=lambda r: f"{r.kind} {r.theta:g}")
def test_scores_depend_on_the_distance_alone(rope):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, K))
    score = lambda m, n: float((turned(q, [m], rope) * turned(k, [n], rope)).sum())
    for m, n, shift in ((5, 2, 100), (3, 3, 40), (0, 9, 7)):
        assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(6, 2), abs=1e-3)


def test_rotation_keeps_norms_and_position_zero():
    x = jax.random.normal(jax.random.key(1), (3, K))
    np.testing.assert_allclose(jnp.linalg.norm(turned(x, [1, 50, 900]), axis=1), jnp.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(turned(x, [0, 0, 0]), x)


def test_the_layout_is_half_split():
    """Dimension i is paired with i + K/2 and turns by position * theta^(-2i/K): the layout of Hugging Face weights."""
    for i in range(K // 2):
        x = jnp.zeros((1, K)).at[0, i].set(1.0)
        angle = 7 * 10_000.0 ** (-2 * i / K)
        want = np.zeros(K)
        want[i], want[i + K // 2] = np.cos(angle), np.sin(angle)
        np.testing.assert_allclose(turned(x, [7])[0], want, atol=1e-6)


def test_linear_scaling_divides_positions():
    x = jax.random.normal(jax.random.key(2), (4, K))
    scaled = turned(x, [0, 4, 8, 400], Rope(kind="linear", factor=4.0))
    np.testing.assert_allclose(scaled, turned(x, [0, 1, 2, 100]), atol=1e-5)


def test_llama3_keeps_fast_dimensions_and_slows_slow_ones():
    plain, _ = Rope(500_000.0).frequencies(128)
    scaled, factor = LLAMA3.frequencies(128)
    wavelength = 2 * np.pi / plain
    fast, slow = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(scaled[fast], plain[fast])
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = (scaled / plain)[~fast & ~slow]
    assert len(between) > 3 and (np.diff(between) < 0).all() and (between > 1 / 8).all() and (between < 1).all()
    assert factor == 1.0


def test_yarn_keeps_fast_dimensions_and_slows_slow_ones():
    plain, _ = Rope().frequencies(128)
    scaled, factor = YARN.frequencies(128)
    turns = 4096 * plain / (2 * np.pi)  # rotations within the original context
    np.testing.assert_allclose(scaled[turns > 40], plain[turns > 40], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 0.9], plain[turns < 0.9] / 4, rtol=1e-6)
    assert factor == pytest.approx(0.1 * np.log(4) + 1)
    cos, _ = angles(YARN, jnp.zeros((1,), jnp.int32), 128)
    np.testing.assert_allclose(cos, factor, rtol=1e-6)


def test_queries_grow_with_the_logarithm_of_their_position():
    """1 + beta ln(1 + floor(p / n)): 1 below n, then a step at every multiple of it; without beta always 1."""
    rope = Rope(1e6, "yarn", factor=16.0, original_length=16384, query_beta=0.1)
    position = jnp.asarray([0, 1, 16383, 16384, 32767, 32768, 262143])
    want = 1 + 0.1 * np.log([1, 1, 1, 2, 2, 3, 16])
    np.testing.assert_allclose(query_growth(rope, position), want, rtol=1e-6)
    assert (query_growth(Rope(), position) == 1).all()


def test_positions_may_have_any_shape_and_bfloat16_turns_in_float32():
    cos, sin = angles(Rope(), jnp.zeros((2, 3, 4), jnp.int32), K)
    assert cos.shape == sin.shape == (2, 3, 4, K // 2)
    x = jax.random.normal(jax.random.key(3), (1, K)).astype(jnp.bfloat16)
    got = turned(x, [3000])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, turned(x.astype(jnp.float32), [3000]).astype(jnp.bfloat16))


@pytest.mark.oracle
@pytest.mark.parametrize("rope", ROPES, ids=lambda r: f"{r.kind} {r.theta:g}")
def test_frequencies_are_those_of_transformers(rope):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    facts = dict(rope_type=rope.kind, rope_theta=rope.theta, factor=rope.factor)
    if rope.original_length:
        facts |= dict(original_max_position_embeddings=rope.original_length)
    if rope.kind == "llama3":
        facts |= dict(low_freq_factor=rope.low_freq_factor, high_freq_factor=rope.high_freq_factor)
    config = transformers.LlamaConfig(
        hidden_size=128 * 4, num_attention_heads=4, head_dim=128, max_position_embeddings=32768, rope_parameters=facts
    )
    if rope.kind == "default":
        want, factor = 1.0 / rope.theta ** (np.arange(0, 128, 2) / 128), 1.0
    else:
        want, factor = ROPE_INIT_FUNCTIONS[rope.kind](config, "cpu")
    got = rope.frequencies(128)
    np.testing.assert_allclose(got[0], np.asarray(want), rtol=1e-5)
    assert got[1] == pytest.approx(factor)
