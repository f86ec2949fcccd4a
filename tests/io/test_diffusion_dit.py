"""Folders of MDLM and BD3-LM: their tensors in their places, the noise level folded in, and what no file says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_values import check_odd_config
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

import paradec
from paradec import params
from paradec.errors import InputError, WeightsError
from paradec.io.checkpoint_laws import check_reach
from paradec.io.diffusion_config import read_diffusion
from paradec.io.hf import load_hf, save_hf
from paradec.io.tokenizer import Tokenizer as Words
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.dit import DiT
from tests.models.numpy_dit import C, D, H, K, L, Tensors, V, condition, forward, published, shapes

MASK, END = V - 1, "<|endoftext|>"
SIZES = {
    "vocab_size": V, "model_length": 64, "hidden_dim": D, "cond_dim": C, "n_blocks": L, "n_heads": H, "dropout": 0.1,
    "mask_token_id": MASK, "time_conditioning": False,
}  # fmt: skip
CONFIGS = {
    "mdlm": SIZES | {"architectures": ["MDLM"]},
    "bd3lm": SIZES | {"adaln": True, "attn_backend": "flex", "block_size": 4, "causal": False, "cross_attn": True},
}


def write(folder: Path, family: str, change: Callable[[Tensors], Tensors] = dict, **changes: Any) -> Path:
    """A folder of a family; a change of `...` leaves the key out. BD3-LM has buffers beside the weights."""
    folder.mkdir(exist_ok=True)
    config = CONFIGS[family] | {"model_type": family} | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    noise = {f"sampling_eps_{end}": np.float32([0.5]) for end in ("min", "max")} if family == "bd3lm" else {}
    save_file(change(published() | noise), folder / "model.safetensors")
    return folder


def load(folder: Path, **options: Any) -> tuple[BlockDiffusion, Any]:
    model, weights = load_hf(folder, **options)
    assert isinstance(model, BlockDiffusion) and isinstance(model.base, DiT)
    return model, jax.tree.map(jnp.asarray, weights)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: x for n, x in tensors.items() if n not in names}


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_the_published_tensors(family: str, tmp_path: Path) -> None:
    model, weights = load(write(tmp_path, family))
    block = np.arange(14) // (model.block or 14)
    token = np.random.default_rng(1).integers(V, size=14)
    found = model.forward(weights, jnp.asarray(token[None], jnp.int32)).logits
    np.testing.assert_allclose(found[0], forward(published(), token, block[:, None] >= block[None]), atol=1e-5)
    check_reach(model, weights)


def test_what_the_config_leaves_unsaid(tmp_path: Path) -> None:
    mdlm, _ = load(write(tmp_path / "a", "mdlm"))
    bd3lm, _ = load(write(tmp_path / "b", "bd3lm"))
    assert (mdlm.block, bd3lm.block) == (0, 4)
    for model in (mdlm, bd3lm):
        assert (model.mask_id, model.grid, model.shift, model.max_length) == (MASK, "text", False, 64)
    assert load(write(tmp_path / "c", "bd3lm", cross_attn=False))[0].block == 0
    assert load(write(tmp_path / "d", "bd3lm", block_size=...), block=16)[0].block == 16
    with pytest.raises(WeightsError, match=r"no block_size.*pass block="):
        load(write(tmp_path / "e", "bd3lm", block_size=...))


def test_the_published_size() -> None:
    """mdlm-owt is 12 layers of width 768, which its class assumes; but for the width that embeds the noise level."""
    _, model = read_diffusion({"model_type": "mdlm", "cond_dim": 128})
    assert model == read_diffusion({"model_type": "mdlm", "cond_dim": 128, "vocab_size": 50258, "hidden_dim": 768})[1]
    assert (model.mask_id, model.vocab_size, model.base.num_layers, model.base.head_dim) == (50257, 50258, 12, 64)
    layer = 12 * 768**2 + 5 * 768 + 2 * 768 + 6 * 768  # matrices, biases, norms, modulation
    assert params.count(model.specs()) == 12 * layer + 2 * 50258 * 768 + 50258 + 3 * 768
    assert read_diffusion({"model_type": "bd3lm", "block_size": 4})[1].base.level_width == 129


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_written_model_is_read_back(dtype: str, tmp_path: Path) -> None:
    """To the same bits; and the files, read as the published code would, compute the same at any level."""
    for family in CONFIGS:
        model, weights = load(write(tmp_path / "first", family), dtype=dtype)
        save_hf(tmp_path / family, model, weights)
        again, read = load_hf(tmp_path / family)
        assert again == model
        jax.tree.map(np.testing.assert_array_equal, read, weights)
    written = load_file(tmp_path / "mdlm" / "model.safetensors")
    wanted = {name: shape for name, shape in shapes().items() if "inv_freq" not in name}
    assert {name: x.shape for name, x in written.items()} == wanted
    assert json.loads((tmp_path / "mdlm" / "config.json").read_text())["model_type"] == "mdlm"
    if dtype == "float32":
        token, see = np.arange(9), np.ones((9, 9), bool)
        right = forward(published(), token, see)
        np.testing.assert_allclose(forward(written, token, see), right, atol=1e-5)
        np.testing.assert_array_equal(forward(written, token, see), forward(written, token, see, sigma=2.0))
        assert np.abs(condition(published())).max() > 0.1 and not condition(written).any()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    base = DiT(V, D, L, H, H, K, 4 * D, max_length=64)
    weights = base.specs()  # as good as any: nothing is written
    other = dataclasses.replace(base, mlp_width=2 * D)
    with pytest.raises(InputError, match="MLPs are 4 times as wide"):
        save_hf(tmp_path, BlockDiffusion(other, mask_id=MASK), weights)
    with pytest.raises(InputError, match="a diffusion transformer has no shift"):
        save_hf(tmp_path, BlockDiffusion(base, mask_id=MASK, shift=True), weights)
    with pytest.raises(InputError, match="wrap it, BlockDiffusion"):
        save_hf(tmp_path, base, weights)
    assert not (tmp_path / "config.json").exists()


# What is refused.

BIAS, LEVEL = "backbone.blocks.1.adaLN_modulation.bias", "backbone.sigma_map.mlp.2.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(BIAS), f"lacks tensor '{BIAS}'"),
        (without(LEVEL), f"lacks tensor '{LEVEL}'"),
        (without("backbone.blocks.0.adaLN_modulation.weight"), "lacks tensor"),
        (lambda t: t | {LEVEL: t[LEVEL][:-1].copy()}, f"{LEVEL}.*shape.*asks for"),
        (lambda t: t | {LEVEL: t[LEVEL] * np.float32("nan")}, "adaLN_modulation.bias.*damaged"),
        (lambda t: t | {BIAS: t[BIAS] * np.float32("inf")}, f"{BIAS}.*damaged"),
        (lambda t: t | {"backbone.blocks.0.attn_qkv.bias": t[BIAS][: 3 * D].copy()}, "attn_qkv.bias.*has no place"),
        (lambda t: t | {"backbone.blocks.0.mlp.0.bias": np.zeros(D, np.float32)}, "mlp.0.bias.*shape"),
    ],
    ids=["bias", "level", "modulation", "shape", "nan", "infinity", "extra", "narrow"],
)
def test_damaged_tensors(change: Callable[[Tensors], Tensors], words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        load(write(tmp_path, "mdlm", change))


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mdlm", {"time_conditioning": True}, "noise level 0 only"),
        ("mdlm", {"block_size": 4}, "full attention only"),
        ("mdlm", {"mask_token_id": ...}, "mask token 50257 lies outside the vocabulary of 97"),
        ("mdlm", {"n_heads": 5}, "a multiple of 2"),
        ("mdlm", {"cond_dim": C + 1}, "sigma_map.*shape"),
        ("bd3lm", {"causal": True}, "see both ways"),
        ("bd3lm", {"adaln": False}, "adaln = False, which should be true"),
        ("bd3lm", {"block_size": 0}, "block_size = 0"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((WeightsError, InputError), match=words):
        load(write(tmp_path, family, **changes))


def test_any_value_in_config(tmp_path: Path) -> None:
    check_odd_config(write(tmp_path, "bd3lm"), "dtype", "num_experts", "quantization_config")


# Text.


def test_texts_begin_with_the_token_they_were_learned_with(tmp_path: Path) -> None:
    """As GPT-2's tokenizer does not have it, and as its tokenizer_config.json may deny."""
    write(tmp_path, "bd3lm")
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(MASK - 1)} | {END: MASK - 1}, unk_token="w0"))
    core.add_special_tokens([END])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    lm = paradec.load(str(tmp_path), progress=False)
    assert lm.encode("w7", raw=True) == [MASK - 1, 7] and lm.tokenizer.eos_ids == {MASK - 1}
    ask = dict(max_new_tokens=10, method_args={"cache": "block"}, ignore_eos=True, raw=True)
    (found,) = lm.generate("w7", method="threshold", **ask)
    assert len(found.token_ids) == 10 and MASK not in found.token_ids
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert Words.from_folder(tmp_path).encode("w7") == [7]
