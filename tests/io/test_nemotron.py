"""Folders of Nemotron-Labs-Diffusion: a Ministral 3 under other names, its blocks, and what it asks of a decode."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_values import check_odd_config
from safetensors.numpy import save_file
from tiny_checkpoints import SIZES, D, F, G, H, K, L, V, random_weights

from paradec.errors import InputError, WeightsError
from paradec.io.diffusion_config import read_diffusion, write_diffusion
from paradec.io.generation_config import read_policy
from paradec.io.hf import load_hf, save_hf
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope

MASK = V - 3
ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 8, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
CONFIG: dict[str, Any] = SIZES | {
    "model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"], "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 11, "mask_token_id": MASK, "block_size": 8,
    "dlm_paradigm": "bidirectional", "ar_loss_weight": 1.0, "dlm_loss_weight": None, "rope_parameters": ROPE,
}  # fmt: skip
LAYER = {  # spelled out here a second time, with the names that a Ministral 3 has for them
    "input_layernorm": (D,), "post_attention_layernorm": (D,),
    "self_attn.q_proj": (H * G * K, D), "self_attn.k_proj": (H * K, D), "self_attn.v_proj": (H * K, D),
    "self_attn.o_proj": (D, H * G * K), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
}  # fmt: skip
TENSORS = {
    "encoder.embed_tokens": ("model.embed_tokens", (V, D)), "encoder.norm": ("model.norm", (D,)),
    "diffusion_head": ("lm_head", (V, D)),
} | {f"encoder.layers.{i}.{n}": (f"model.layers.{i}.{n}", s) for i in range(L) for n, s in LAYER.items()}  # fmt: skip


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A folder; a change of `...` leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(published() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def plain() -> dict[str, np.ndarray]:
    return random_weights({f"{theirs}.weight": shape for theirs, shape in TENSORS.values()})


def published() -> dict[str, np.ndarray]:
    return {f"{name}.weight": plain()[f"{theirs}.weight"] for name, (theirs, _) in TENSORS.items()}


def test_weights_are_those_of_a_ministral(tmp_path: Path) -> None:
    """Whose logits are compared with transformers' elsewhere; the mask token alone is never said."""
    model, weights = load_hf(write(tmp_path / "a"))
    base, same = load_hf(write(tmp_path / "b", plain(), model_type="ministral3"))
    assert isinstance(model, NemotronDiffusion) and isinstance(base, Transformer) and model.base == base
    assert base.rope == Rope(1e6, "yarn", 16.0, 8, attention_factor=1.0, query_beta=0.1)
    jax.tree.map(np.testing.assert_array_equal, weights, same)
    token = jnp.asarray(np.random.default_rng(1).integers(V, size=(2, 40)), jnp.int32)
    said, wanted = (np.array(m.forward(jax.tree.map(jnp.asarray, weights), token).logits) for m in (model, base))
    assert (said[..., MASK] == -np.inf).all()
    said[..., MASK] = wanted[..., MASK]
    np.testing.assert_array_equal(said, wanted)


def test_what_the_config_says_and_leaves_unsaid(tmp_path: Path) -> None:
    model, _ = load_hf(write(tmp_path / "a"))
    assert (model.mask_id, model.block, model.grid, model.shift, model.causal_cache) == (MASK, 8, "prompt", False, True)
    assert model.max_length == 128
    silent = {k: v for k, v in CONFIG.items() if k not in ("mask_token_id", "block_size", "rope_parameters")}
    _, model = read_diffusion(silent | {"vocab_size": 131072})
    assert (model.mask_id, model.block) == (100, 32)
    assert model.base.rope == Rope(1e6, "yarn", 16.0, 16384, attention_factor=1.0, query_beta=0.1)
    _, model = read_diffusion(CONFIG, mask_id=5, block=16)
    assert (model.mask_id, model.block) == (5, 16)
    with pytest.raises(InputError, match="1 token or more; 0"):
        read_diffusion(CONFIG, block=0)


def test_every_tensor_has_a_place_and_every_place_a_tensor(tmp_path: Path) -> None:
    kept = published()
    for name in ("encoder.layers.1.self_attn.k_norm.weight", "vision.weight", "encoder.layers.2.mlp.up_proj.weight"):
        with pytest.raises(WeightsError, match="has no place"):
            load_hf(write(tmp_path / "more", kept | {name: np.ones(K, np.float32)}))
    with pytest.raises(WeightsError, match=r"lacks tensor 'diffusion_head\.weight'"):
        load_hf(write(tmp_path / "less", {n: x for n, x in kept.items() if "head" not in n}))
    with pytest.raises(WeightsError, match="and 20 more"):
        load_hf(write(tmp_path / "plain", plain()))


def test_a_folder_is_written_as_it_is_read(tmp_path: Path) -> None:
    model, weights = load_hf(write(tmp_path / "a"))
    save_hf(tmp_path / "b", model, weights)
    again, same = load_hf(tmp_path / "b")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, weights, same)
    without = dataclasses.replace(model.base, rope=dataclasses.replace(model.base.rope, query_beta=0.0))
    with pytest.raises(InputError, match="queries grow"):
        write_diffusion(dataclasses.replace(model, base=without))


def test_odd_values(tmp_path: Path) -> None:
    check_odd_config(write(tmp_path), "rope_scaling", "sliding_window")


@pytest.mark.parametrize(
    ("said", "rule", "options"),
    [
        ({}, "ar", {}),
        ({"temperature": 0.7}, "ar", {}),
        ({"max_denoising_steps": 8}, "threshold", {"tau": 0.9, "max_steps": 8}),
        ({"diffusion_confidence_threshold": 0.6}, "threshold", {"tau": 0.6, "max_steps": 32}),
        ({"diffusion_selection_policy": "low_confidence"}, "quota", {"steps": 32}),
        (
            {"diffusion_selection_policy": "leftmost", "max_denoising_steps": 4},
            "quota", {"steps": 4, "score": "position"},
        ),
    ],
)  # fmt: skip
def test_what_it_asks_of_a_decode(said: dict[str, Any], rule: str, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert read_policy(tmp_path, 32) == (rule, options)


@pytest.mark.parametrize(
    "said",
    [
        {"diffusion_selection_policy": "spiral"}, {"diffusion_confidence_threshold": 1.5},
        {"diffusion_confidence_threshold": True}, {"max_denoising_steps": 0}, {"max_denoising_steps": 2.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_of_another_kind_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=next(iter(said))):
        read_policy(tmp_path, 32)
