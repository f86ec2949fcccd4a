"""The name map: an axis line reads, writes and checks; whatever does not fit is an error that names the tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from paradec.errors import InputError, WeightsError
from paradec.io import names
from paradec.io.gguf import COMMON, INTERLEAVED
from paradec.io.hf import COMMON as HF_COMMON
from paradec.io.hf import LLAMA_NORMS
from paradec.io.names import Tensor, TensorEntry
from paradec.models.transformer import Transformer, Weights

MODEL = Transformer(
    vocab_size=13,
    width=6,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=5,
    tied=False,
    qkv_bias=True,
)
ENTRIES = HF_COMMON + LLAMA_NORMS


def random_weights(model: Transformer, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.standard_normal(s.shape, np.float32), model.specs(), is_leaf=lambda s: hasattr(s, "init")
    )


def lazily(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: Tensor(x.shape, "some.file", lambda x=x: x) for name, x in tensors.items()}


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("entries", [ENTRIES, COMMON + INTERLEAVED], ids=["hf", "gguf"])
def test_load_inverts_store(entries: list[TensorEntry]) -> None:
    weights = random_weights(MODEL)
    tensors = dict(names.store(MODEL, entries, weights))
    assert_same(names.load(MODEL, entries, lazily(tensors)), weights)


def test_axes_mean_what_einsum_means() -> None:
    """Projecting with a checkpoint's matrices and with the fused leaf gives the same queries, keys and values."""
    weights = random_weights(MODEL)
    tensors = dict(names.store(MODEL, ENTRIES, weights))
    x = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    fused = np.einsum("d,dhgk->hgk", x, weights.blocks.qkv[1])
    attention = "model.layers.1.self_attn."
    q, k, v = (tensors[f"{attention}{p}_proj.weight"] @ x for p in "qkv")
    np.testing.assert_allclose(fused[:, :-2].reshape(-1), q, rtol=1e-5, atol=1e-6)  # head h*G+g, as repeat_kv has it
    np.testing.assert_allclose(fused[:, -2].reshape(-1), k, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fused[:, -1].reshape(-1), v, rtol=1e-5, atol=1e-6)


def test_interleaved_rows() -> None:
    """A llama GGUF holds a head's rows as 0, K/2, 1, K/2 + 1, …"""
    entry = next(e for e in INTERLEAVED if e.name.endswith("attn_k.weight"))
    ours = np.arange(8).reshape(1, 2, 4).astype(np.float32)  # D=1, H=2, K=4
    size = names.sizes(MODEL) | {"D": 1}
    assert entry.write(ours, size)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(entry.read(entry.write(ours, size), size), ours)


def damaged(change: Callable[[dict[str, np.ndarray]], Any]) -> str:
    tensors = dict(names.store(MODEL, ENTRIES, random_weights(MODEL)))
    change(tensors)
    with pytest.raises(WeightsError) as error:
        names.load(MODEL, ENTRIES, lazily(tensors))
    return str(error.value)


def test_missing_names_the_nearest() -> None:
    message = damaged(
        lambda t: t.update({"model.layers.1.mlp.upp_proj.weight": t.pop("model.layers.1.mlp.up_proj.weight")})
    )
    assert "lacks tensor 'model.layers.1.mlp.up_proj.weight'" in message
    assert "'model.layers.1.mlp.upp_proj.weight'" in message


def test_unexpected_names_file() -> None:
    message = damaged(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((5, 6), np.float32)}))
    assert "'model.layers.2.mlp.up_proj.weight' in some.file has no place" in message


def test_a_leaf_the_model_lacks_is_unexpected() -> None:
    message = damaged(lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.zeros(4, np.float32)}))
    assert "q_norm.weight' in some.file has no place" in message


def test_shape_names_both() -> None:
    message = damaged(lambda t: t.update({"model.embed_tokens.weight": np.zeros((12, 6), np.float32)}))
    assert "(12, 6)" in message and "(13, 6)" in message and "embed_tokens" in message


def test_not_a_number() -> None:
    assert "NaN" in damaged(lambda t: t["model.norm.weight"].__setitem__(0, np.nan))


def test_nothing_is_read_before_everything_fits() -> None:
    def boom() -> np.ndarray:
        raise AssertionError("read too early")

    tensors = {
        n: t._replace(read=boom) for n, t in lazily(dict(names.store(MODEL, ENTRIES, random_weights(MODEL)))).items()
    }
    tensors["model.norm.weight"] = tensors["model.norm.weight"]._replace(shape=(7,))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        names.load(MODEL, ENTRIES, tensors)


@pytest.mark.parametrize("dtype", names.DTYPES)
def test_target_dtype(dtype: str) -> None:
    weights = random_weights(MODEL)
    tensors = lazily(dict(names.store(MODEL, ENTRIES, weights)))

    found = names.load(dataclasses.replace(MODEL, dtype=dtype), ENTRIES, tensors)
    assert {str(x.dtype) for x in jax.tree.leaves(found)} == {dtype}
    assert_same(found, jax.tree.map(lambda x: x.astype(jax.numpy.dtype(dtype)), weights))


def test_overflow_is_said_to_be_one() -> None:

    tensors = dict(names.store(MODEL, ENTRIES, random_weights(MODEL)))
    tensors["model.norm.weight"] = np.full(6, 1e6, np.float32)
    with pytest.raises(WeightsError, match="does not fit float16"):
        names.load(dataclasses.replace(MODEL, dtype="float16"), ENTRIES, lazily(tensors))


def test_zero_entries() -> None:
    """A tensor the architecture lacks is accepted when it is zero, refused otherwise, and written as zero."""
    entries = [*ENTRIES, TensorEntry("model.layers.{}.self_attn.o_proj.bias", "", "D -> D")]
    tensors = dict(names.store(MODEL, entries, random_weights(MODEL)))
    assert not tensors["model.layers.1.self_attn.o_proj.bias"].any()
    names.load(MODEL, entries, lazily(tensors))
    tensors["model.layers.1.self_attn.o_proj.bias"] = np.ones(6, np.float32)
    with pytest.raises(WeightsError, match=r"layers\.1\.self_attn\.o_proj\.bias.*is not zero"):
        names.load(MODEL, entries, lazily(tensors))


def test_an_absurd_layer_count_fails_at_once() -> None:

    with pytest.raises(WeightsError, match="layers and holds only"):
        names.load(dataclasses.replace(MODEL, num_layers=10**12), ENTRIES, {})


def test_unknown_dtype() -> None:
    with pytest.raises(InputError, match="int8"):
        names.check_dtype("int8")


def test_a_line_must_balance() -> None:
    with pytest.raises(ValueError, match="different axes"):
        TensorEntry("x", "embed", "V D -> V").shape({"V": 1, "D": 1})
