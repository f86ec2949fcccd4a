"""One fact stated twice in a config.json: every spelling of it means to us what it means to transformers.

One tiny model of each family is saved once; then only its config.json changes. Either both compute the same logits, or
both refuse, or the case is in `STRICTER`: what transformers passes over without a word there, we say in a sentence.
Diffusion models, which transformers does not have, must read each spelling as the plain family that they are built on.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import ParadecError
from paradec.io.diffusion_config import FAMILIES as DIFFUSION
from paradec.io.hf import load_hf
from paradec.io.hf_config import read_config
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.transformer import Transformer, Weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

LAYERS, LENGTH = 2, 40
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"sliding_window": 7}, "ministral3": {}, "qwen2": {}, "qwen3": {},
    "gemma3_text": {"sliding_window": 7, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}  # fmt: skip
FAMILIES = (*OWN, "gemma3")
FULL, SLIDING = "full_attention", "sliding_attention"

PLAIN = {"rope_type": "default", "rope_theta": 500.0}
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
NESTED = {FULL: {"rope_theta": 700.0, **LINEAR}, SLIDING: {"rope_type": "default", "rope_theta": 90.0}}

ROPE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "theta": {"rope_theta": 500.0},
    "parameters": {"rope_parameters": PLAIN},
    "parameters and theta": {"rope_parameters": PLAIN, "rope_theta": 90.0},
    "parameters without theta": {"rope_parameters": {"rope_type": "default"}, "rope_theta": 90.0},
    "local theta": {"rope_theta": 500.0, "rope_local_base_freq": 40.0},
    "scaling beside parameters": {"rope_parameters": PLAIN, "rope_scaling": YARN},
    "scaling beside parameters and theta": {"rope_parameters": PLAIN, "rope_scaling": YARN, "rope_theta": 90.0},
    "scaling with theta beside parameters": {"rope_parameters": PLAIN, "rope_scaling": YARN | {"rope_theta": 90.0}},
    "empty scaling beside parameters": {"rope_parameters": PLAIN, "rope_scaling": {}},
    "null scaling beside parameters": {"rope_parameters": YARN | {"rope_theta": 90.0}, "rope_scaling": None},
    "null parameters beside scaling": {"rope_parameters": None, "rope_scaling": LINEAR, "rope_theta": 90.0},
    "type": {"rope_scaling": LINEAR},
    "type and rope_type": {"rope_scaling": LINEAR | {"rope_type": "default"}, "rope_theta": 90.0},
    "rope_type and type": {"rope_scaling": YARN | {"type": "linear"}},
    "default with factor": {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3 by default length": {"rope_scaling": {k: LLAMA3[k] for k in [*LLAMA3][:-1]}},
    "llama3, length at the top": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
    "yarn by default length": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, length at the top": {"rope_scaling": YARN, "original_max_position_embeddings": 32},
    "yarn, length at the top only": {
        "rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32,
    },
    "yarn without factor": {"rope_scaling": {k: v for k, v in YARN.items() if k != "factor"}},
    "yarn with null factor": {"rope_scaling": YARN | {"factor": None}},
    "yarn with attention factor": {"rope_scaling": YARN | {"attention_factor": 1.5}},
    "yarn with mscale": {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "yarn with one mscale": {"rope_scaling": YARN | {"mscale": 0.5}},
    "yarn not truncated": {"rope_scaling": YARN | {"truncate": False}},
    "yarn with null truncate": {"rope_scaling": YARN | {"truncate": None}},
    "yarn with betas": {"rope_scaling": YARN | {"beta_fast": 4, "beta_slow": 0.5}},
    "yarn with betas exchanged": {"rope_scaling": YARN | {"beta_fast": 0.5, "beta_slow": 8}},
    "yarn below one": {"rope_scaling": YARN | {"factor": 0.5}},
    "nested": {"rope_parameters": NESTED},
    "nested and thetas": {"rope_parameters": NESTED, "rope_theta": 90.0, "rope_local_base_freq": 40.0},
    "nested without thetas": {"rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default"}}, "rope_theta": 90.0},
    "nested, length at the top": {"rope_parameters": {FULL: YARN}, "original_max_position_embeddings": 32},
    "nested, null": {"rope_parameters": {FULL: YARN, SLIDING: None}},
    "nested, full alone": {"rope_parameters": {FULL: LINEAR | {"rope_theta": 90.0}}},
    "nested, sliding alone": {"rope_parameters": {SLIDING: PLAIN}},
    "nested, not truncated": {"rope_parameters": {FULL: YARN | {"truncate": False}}},
    "scaling beside nested": {"rope_parameters": NESTED, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "scaling beside sliding alone": {"rope_parameters": {SLIDING: PLAIN}, "rope_scaling": LINEAR},
    "nested scaling": {"rope_scaling": NESTED},
    "unknown type": {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "partial, default": {"partial_rotary_factor": 0.5},
    "partial, linear": {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR},
    "list": {"rope_scaling": [1]},
    "text": {"rope_parameters": "yarn"},
    "growth": {"rope_scaling": YARN | {"llama_4_scaling_beta": 0.7}},
    "growth of nothing": {"rope_scaling": YARN | {"llama_4_scaling_beta": 0.0}},
    "growth, length at the top": {
        "rope_scaling": YARN | {"llama_4_scaling_beta": 0.7}, "original_max_position_embeddings": 32,
    },
    "growth without a length": {"rope_scaling": {"rope_type": "default", "llama_4_scaling_beta": 0.7}},
    "growth of a text": {"rope_scaling": YARN | {"llama_4_scaling_beta": "x"}},
}  # fmt: skip
OTHER: dict[str, dict[str, Any]] = {
    "null head_dim": {"head_dim": None},
    "head_dim and width": {"head_dim": 8, "hidden_size": 32},
    "null kv heads": {"num_key_value_heads": None},
    "kv heads no divisor": {"num_key_value_heads": 3},
    "window off": {"use_sliding_window": False, "sliding_window": 5},
    "window on": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "window on, negative first": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": -1},
    "window on, null": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    "null window": {"sliding_window": None},
    "kinds beside first": {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0, "layer_types": [SLIDING, FULL],
    },
    "kinds, window off": {"use_sliding_window": False, "sliding_window": 5, "layer_types": [SLIDING, FULL]},
    "kinds all full": {"layer_types": [FULL, FULL], "sliding_window": 5},
    "kinds all sliding": {"layer_types": [SLIDING, SLIDING], "sliding_window": 5, "use_sliding_window": True},
    "kinds beside pattern": {"layer_types": [FULL, SLIDING], "sliding_window": 5, "use_sliding_window": True},
    "kinds too few": {"layer_types": [FULL]},
    "kinds unknown": {"layer_types": [FULL, "spiral"]},
    "another pattern": {"sliding_window_pattern": 1},
    "private pattern": {"_sliding_window_pattern": 1},
    "dtypes": {"dtype": "float32", "torch_dtype": "bfloat16"},
    "act of the others": {"hidden_activation": "silu", "hidden_act": "gelu_pytorch_tanh"},
    "act of Gemma": {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "silu"},
    "act of the others alone": {"hidden_act": "silu"},
    "act of Gemma alone": {"hidden_activation": "silu"},
    "null act": {"hidden_act": None, "hidden_activation": None},
    "mlp bias off": {"mlp_bias": False},
    "qkv bias": {"qkv_bias": True},
    "caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "cap": {"final_logit_softcapping": 1.0},
    "length at the top": {"original_max_position_embeddings": 16},
    "tied": {"tie_word_embeddings": True},
}  # fmt: skip

# Where transformers reads on and we say a sentence, and the one case the other way round.
STRICTER: dict[str, set[str]] = {
    "dynamic": {*FAMILIES},  # paradec has no such scaling
    "partial, default": {*FAMILIES},  # their plain rotation passes over it, and the model was not trained so
    "tied": {*FAMILIES},  # the file has a head of its own
    "cap": {"gemma3_text", "gemma3"},  # paradec caps no logits
    **{  # settings of no kind of layer, in models that have two
        name: {"gemma3_text", "gemma3"}
        for name in (
            "parameters",
            "parameters and theta",
            "parameters without theta",
            "null scaling beside parameters",
            "partial, linear",
        )
    },
    **{
        name: {"llama", "mistral", "qwen2", "qwen3"}  # settings by kind of layer that the model passes over
        for name in ROPE
        if ("nested" in name and name != "nested scaling") or name == "scaling beside sliding alone"
    },
    "nested scaling": {*FAMILIES},
    # transformers passes over Mistral's list, others do not
    **{
        name: {"mistral", "ministral3"}
        for name in ("kinds beside first", "kinds, window off", "kinds all full", "kinds beside pattern")
    },
}
MILDER = {("qwen2", "null head_dim")}  # they fail on it by accident; in a Llama it means what it means to us

# A sample of the crossings of `ROPE` and `OTHER` for each family; PARADEC_CASES takes all 1,200.
CROSSED = [(rope, other) for rope in ROPE for other in OTHER]
if "PARADEC_CASES" not in os.environ:
    CROSSED = [CROSSED[i] for i in np.random.default_rng(0).choice(len(CROSSED), 25, replace=False)]
BUILT_ON = {"Dream": "qwen2", "Fast_dLLM_Qwen": "qwen2", "a2d-qwen2": "qwen2", "sdar": "qwen3", "a2d-qwen3": "qwen3"}


def described(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The config.json; in a multimodal Gemma 3 the changes concern its language model."""
    text = SIZES | OWN.get(family, OWN["gemma3_text"]) | {"model_type": family} | changes
    if family != "gemma3":
        return text
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                  patch_size=8, model_type="siglip_vision_model")  # fmt: skip
    return {
        "model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}, "vision_config": vision,
        "mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 59, "eoi_token_index": 58,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }  # fmt: skip


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of one family, with weights large enough that attention is far from uniform."""
    path = tmp_path_factory.mktemp(request.param)
    write(path, described(request.param, {}))
    torch.manual_seed(0)
    model = auto(request.param).from_config(transformers.AutoConfig.from_pretrained(path), dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim == 1 or "embed" in name else 1.2 / p.shape[-1] ** 0.5))
    model.save_pretrained(path)
    return path


def auto(family: str) -> Any:
    return transformers.AutoModelForImageTextToText if family == "gemma3" else transformers.AutoModelForCausalLM


TOKENS = np.random.default_rng(1).integers(0, 57, (1, LENGTH), dtype=np.int32)


def theirs(folder: Path) -> np.ndarray | None:
    """The logits of transformers; None where it refuses, or says what is no number."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    try:
        model = auto(family).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            found = model(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    except Exception:  # of many kinds: a strict dataclass, a missing key, a shape
        return None
    return found if np.isfinite(found).all() else None


def ours(folder: Path, **options: Any) -> np.ndarray | str:
    """Our logits, or our sentence. Of a diffusion model those of its base, which sees what is before each position."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, weights = load_hf(folder, "float32", **options)
    except ParadecError as error:
        return str(error)
    return np.asarray(logits(model.base if isinstance(model, BlockDiffusion) else model, weights))


@partial(jax.jit, static_argnums=0)  # by the model's value: many spellings are one model, and compile once
def logits(model: Transformer, weights: Weights) -> jax.Array:
    return model.forward(weights, jnp.asarray(TOKENS)).logits


def check(folder: Path, *names: str) -> None:
    """What these spellings, all in one config.json, say to transformers and to us."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    family = next(f for f in sorted(FAMILIES, key=len, reverse=True) if folder.name.startswith(f))
    changes = {key: value for name in names for key, value in (ROPE | OTHER)[name].items()}
    write(folder, described(family, changes))
    wanted, found = theirs(folder), ours(folder)
    if wanted is None:
        assert isinstance(found, str) or any((family, name) in MILDER for name in names), "transformers refuses this"
    elif isinstance(found, str):
        assert any(family in STRICTER.get(name, ()) for name in names), found
    else:
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=1e-5)


@pytest.mark.parametrize("name", [*ROPE, *OTHER])
def test_same_or_refused(name: str, folder: Path) -> None:
    check(folder, name)


def test_crossed(folder: Path) -> None:
    failed = []
    for names in CROSSED:
        try:
            check(folder, *names)
        except AssertionError as error:
            failed.append((*names, str(error)[:200]))
    assert not failed


@pytest.mark.parametrize("folder", ["qwen2", "qwen3"], indirect=True)
@pytest.mark.parametrize("name", [*ROPE, *OTHER])
def test_diffusion_models_read_what_their_base_reads(name: str, folder: Path) -> None:
    """The same logits or the same sentence; layers that slide are refused, for no block sees half a canvas."""
    base = folder.name[:5]
    for diffusion in (name for name, plain in BUILT_ON.items() if plain == base):
        plain = described(base, (ROPE | OTHER)[name])
        write(folder, plain)
        wanted = ours(folder)
        write(folder, plain | {"model_type": diffusion})
        found = ours(folder, mask_id=60, **({"block": 4} if DIFFUSION[diffusion].block_key else {}))
        if isinstance(found, str) and not isinstance(wanted, str):
            assert "sliding windows" in found and any(read_config(plain).model.slides()), found
        elif isinstance(found, str):
            assert found == wanted
        else:
            np.testing.assert_array_equal(found, wanted)
