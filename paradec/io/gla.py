"""Folders of flash-linear-attention's GLA: config.json and the names of its tensors, in both directions.

Read are models all of whose layers are gated linear attention. What only says how its kernels run is passed over; any
other key that paradec does not know is refused, since it may change what the layers compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from paradec.errors import InputError, WeightsError
from paradec.io.fields import Fields
from paradec.io.hf_config import read_dtype
from paradec.io.names import TensorEntry, check_dtype
from paradec.models.gla import GLA
from paradec.models.recurrent import RecurrentLM

MODEL_TYPE = "gla"

_LAYER = "model.layers.{}."
_ATTN = _LAYER + "attn."
_FUSED, _PLAIN = _ATTN + "g_norm_swish_gate.weight", _ATTN + "g_norm.weight"

ENTRIES = [
    TensorEntry("model.embeddings.weight", "embed", "V D -> V D"),
    TensorEntry("model.norm.weight", "norm", "D -> D"),
    TensorEntry("lm_head.weight", "head", "V D -> V D"),
    TensorEntry(_LAYER + "attn_norm.weight", "layers.0.norm", "D -> D"),
    TensorEntry(_ATTN + "q_proj.weight", "layers.0.mixer.q", "(H G K) D -> D H G K"),
    TensorEntry(_ATTN + "k_proj.weight", "layers.0.mixer.k", "(H K) D -> D H K"),
    TensorEntry(_ATTN + "v_proj.weight", "layers.0.mixer.v", "(H E) D -> D H E"),
    TensorEntry(_ATTN + "g_proj.weight", "layers.0.mixer.out_gate", "(H G E) D -> D H G E"),
    TensorEntry(_ATTN + "gk_proj.0.weight", "layers.0.mixer.gate_down", "R D -> D R"),
    TensorEntry(_ATTN + "gk_proj.1.weight", "layers.0.mixer.gate_up", "(H K) R -> R H K"),
    TensorEntry(_ATTN + "gk_proj.1.bias", "layers.0.mixer.gate_bias", "(H K) -> H K"),
    # A depthwise torch convolution is (channels, 1, positions), the last position the latest.
    TensorEntry(_ATTN + "q_conv1d.weight", "layers.0.mixer.q_conv", "(H G K) U W -> W (U H) G K"),
    TensorEntry(_ATTN + "k_conv1d.weight", "layers.0.mixer.k_conv", "(H K) U W -> W (U H) K"),
    TensorEntry(_ATTN + "v_conv1d.weight", "layers.0.mixer.v_conv", "(H E) U W -> W (U H) E"),
    TensorEntry(_FUSED, "layers.0.mixer.head_norm", "E -> E"),
    TensorEntry(_ATTN + "o_proj.weight", "layers.0.mixer.out", "D (H G E) -> H G E D"),
    TensorEntry(_LAYER + "mlp_norm.weight", "layers.0.mlp_norm", "D -> D"),
    TensorEntry(_LAYER + "mlp.gate_proj.weight", "layers.0.gate_up", "F D -> D F", np.s_[0]),
    TensorEntry(_LAYER + "mlp.up_proj.weight", "layers.0.gate_up", "F D -> D F", np.s_[1]),
    TensorEntry(_LAYER + "mlp.down_proj.weight", "layers.0.down", "D F -> F D"),
]

# What its configuration class assumes for keys that a file leaves out.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2048, "expand_k": 0.5, "expand_v": 1.0, "hidden_ratio": 4, "num_hidden_layers": 24, "num_heads": 4,
    "attn_mode": "chunk", "conv_size": 4, "use_output_gate": True, "hidden_act": "swish", "elementwise_affine": True,
    "norm_eps": 1e-6, "fuse_norm": True, "tie_word_embeddings": False, "vocab_size": 32_000,
}  # fmt: skip
_READ = (
    *_DEFAULTS, "intermediate_size", "num_kv_heads", "feature_map", "use_short_conv", "clamp_min", "attn",
    "attnres_block_size", "dtype", "torch_dtype", "quantization_config", "model_type", "share_conv_kernel",
)  # fmt: skip
# What changes nothing that a trained model computes, here or in the code that such folders are read with there.
# (`use_gk` and `use_gv` are kept for old files and read by no layer; positions are not embedded, so none is the last.)
_PASSED_OVER = (
    "architectures", "auto_map", "bos_token_id", "eos_token_id", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    "fuse_swiglu", "initializer_range", "max_position_embeddings", "name_or_path", "pad_token_id",
    "transformers_version", "use_cache", "use_gk", "use_gv", "use_l2warp",
)  # fmt: skip


def is_gla(config: Any) -> bool:
    """Whether a parsed config.json names such a model."""
    return isinstance(config, Mapping) and config.get("model_type") == MODEL_TYPE


def read_gla(config: Mapping[str, Any], where: str, dtype: str | None = None) -> RecurrentLM:
    """The model that a config.json describes. `dtype` None takes the file's own, or float32.

    Raises `WeightsError` for a value of the wrong kind, and for a layer or an option that paradec lacks or does not
    know.
    """
    if dtype is not None:
        check_dtype(dtype)
    fields = Fields(config, _DEFAULTS, where)
    _refuse(fields)
    layers, width = fields.count("num_hidden_layers"), fields.count("hidden_size")
    if layers > 10_000:  # a damaged count must not become a long list
        fields.fail("num_hidden_layers", layers, "at most 10000")
    eps = fields.number("norm_eps", most=1.0)
    try:
        mixer = GLA(
            num_heads=fields.count("num_heads"),
            num_kv_heads=None if fields.get("num_kv_heads") is None else fields.count("num_kv_heads"),
            expand_k=fields.number("expand_k", most=1e3), expand_v=fields.number("expand_v", most=1e3),
            clamp_min=_clamp(fields), conv_size=fields.count("conv_size") if fields.flag("use_short_conv") else 0,
            output_gate=fields.flag("use_output_gate"), norm_weight=fields.flag("elementwise_affine"), norm_eps=eps,
        )  # fmt: skip
        mixer.head_sizes(width)
    except InputError as error:
        raise WeightsError(f"{where} describes layers that cannot be. {error}") from None
    return RecurrentLM(
        vocab_size=fields.count("vocab_size"), width=width, pattern=(mixer,), repeats=layers,
        mlp_width=fields.count("intermediate_size", _mlp_width(fields, width)), norm_eps=eps,
        tied=fields.flag("tie_word_embeddings"), dtype=dtype or read_dtype(fields),
    )  # fmt: skip


def _refuse(fields: Fields) -> None:
    """Raise for what such a folder could ask for and paradec cannot do, or has never heard of."""
    fields.refuse("quantization_config", "paradec reads unquantized safetensors")
    fields.refuse("attn", "some of its layers are softmax attention, and paradec reads folders of GLA layers alone")
    fields.refuse("feature_map", "paradec's queries and keys pass through no feature map")
    fields.refuse("attnres_block_size", "paradec's layers read the residual stream, not those before it")
    if fields.flag("use_short_conv"):
        fields.refuse("share_conv_kernel", "paradec's queries, keys and values have a convolution each")
    if fields.get("hidden_act") != "swish":
        fields.fail("hidden_act", fields.get("hidden_act"), "'swish'")
    if fields.get("attn_mode") not in (modes := ("chunk", "fused_recurrent", "fused_chunk")):
        fields.fail("attn_mode", fields.get("attn_mode"), f"one of {', '.join(modes)}")
    for key in fields.values:
        if key not in _READ and key.lstrip("_") not in _PASSED_OVER:
            fields.refuse(key, "paradec does not know this option of GLA; remove it if it changes no layer")


def _clamp(fields: Fields) -> float | None:
    """The least gate: absent, or a number that is not above 0."""
    value = fields.get("clamp_min")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -3e38 < value <= 0:
        fields.fail("clamp_min", value, "null or a number that is at most 0")
    return float(value)


def _mlp_width(fields: Fields, width: int) -> int:
    """Two thirds of `hidden_ratio` widths, in whole 256s."""
    return -(-int(width * fields.number("hidden_ratio", 4, most=1e4) * 2 / 3) // 256) * 256


def gla_entries(config: Mapping[str, Any]) -> list[TensorEntry]:
    """The tensors of such a folder, each with its place. Norm and gate that are not fused have another name."""
    fields = Fields(config, _DEFAULTS, "config.json")
    if fields.flag("fuse_norm") and fields.flag("use_output_gate"):
        return ENTRIES
    return [dataclasses.replace(entry, name=_PLAIN) if entry.name == _FUSED else entry for entry in ENTRIES]


def write_gla(model: RecurrentLM) -> dict[str, Any]:
    """The config.json of a model, as `read_gla` reads it; how it is computed is not in it.

    Raises `InputError` for a model that no such file can describe: other layers among those of GLA, another rank or
    normaliser of gates than 16, no MLPs, or a norm of its own.
    """
    mixer = model.pattern[0]
    if not isinstance(mixer, GLA) or len(model.pattern) > 1:
        raise InputError("A folder of flash-linear-attention's GLA holds GLA layers alone; use save_hf for others.")
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE, "architectures": ["GLAForCausalLM"], "vocab_size": model.vocab_size,
        "hidden_size": model.width, "num_hidden_layers": model.repeats, "intermediate_size": model.mlp_width,
        "num_heads": mixer.num_heads, "num_kv_heads": mixer.num_kv_heads, "expand_k": mixer.expand_k,
        "expand_v": mixer.expand_v, "clamp_min": mixer.clamp_min, "use_short_conv": mixer.conv_size > 0,
        "conv_size": mixer.conv_size or 4, "use_output_gate": mixer.output_gate,
        "elementwise_affine": mixer.norm_weight, "norm_eps": model.norm_eps, "tie_word_embeddings": model.tied,
        "torch_dtype": model.dtype,
    }  # fmt: skip
    plain = GLA(mixer.num_heads)
    form = {name: getattr(plain, name) for name in ("implementation", "chunk", "sub_chunk")}
    wanted = dataclasses.replace(model, pattern=(dataclasses.replace(mixer, **form),), max_length=None)
    if model.mlp_width < 1 or read_gla(config, "config.json") != wanted:
        raise InputError(
            "No config.json of GLA describes this model: there the rank and the normaliser of gates are 16, every "
            "layer has an MLP, and all norms have one epsilon. Use save_hf, whose folders describe any."
        )
    return config
