"""Folders of DiffusionGemma: config.json, generation_config.json and the names of the text model's tensors.

Only the text model is read. Tensors of the vision tower are left out by name; any other that has no place is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paradec.errors import InputError, WeightsError
from paradec.io.fields import Fields
from paradec.io.hf_config import read_dtype
from paradec.io.names import Tensor, TensorEntry
from paradec.io.regular_file import read_json
from paradec.io.rope_config import FULL, SLIDING
from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.models.experts import Experts
from paradec.ops.rope import Rope

MODEL_TYPE = "diffusion_gemma"
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")

_CONDITIONING = "model.decoder.self_conditioning."
_LAYER = "model.decoder.layers.{}."


def _layers(kind: str, heads: str) -> list[TensorEntry]:
    """The tensors of one kind of layer; `heads` are the letters of its key heads, queries a key head, and head size."""
    H, G, K = heads
    attention, router = _LAYER + "self_attn.", _LAYER + "router."
    norms = {
        "input": "attn_norm", "post_attention": "attn_post_norm", "pre_feedforward": "mlp_norm",
        "post_feedforward_layernorm_1": "mlp_post_norm", "pre_feedforward_layernorm_2": "expert_norm",
        "post_feedforward_layernorm_2": "expert_post_norm", "post_feedforward": "post_norm",
    }  # fmt: skip
    full_name = lambda name: name if "layernorm" in name else f"{name}_layernorm"
    return [
        *(TensorEntry(f"{_LAYER}{full_name(name)}.weight", f"{kind}.{leaf}", "D -> D") for name, leaf in norms.items()),
        TensorEntry(attention + "q_proj.weight", f"{kind}.q", f"({H} {G} {K}) D -> D {H} {G} {K}"),
        TensorEntry(attention + "k_proj.weight", f"{kind}.k", f"({H} {K}) D -> D {H} {K}"),
        TensorEntry(attention + "v_proj.weight", f"{kind}.v", f"({H} {K}) D -> D {H} {K}"),
        TensorEntry(attention + "o_proj.weight", f"{kind}.out", f"D ({H} {G} {K}) -> {H} {G} {K} D"),
        TensorEntry(attention + "q_norm.weight", f"{kind}.q_norm", f"{K} -> {K}"),
        TensorEntry(attention + "k_norm.weight", f"{kind}.k_norm", f"{K} -> {K}"),
        TensorEntry(_LAYER + "mlp.gate_proj.weight", f"{kind}.gate_up", "F D -> D F", np.s_[0]),
        TensorEntry(_LAYER + "mlp.up_proj.weight", f"{kind}.gate_up", "F D -> D F", np.s_[1]),
        TensorEntry(_LAYER + "mlp.down_proj.weight", f"{kind}.down", "D F -> F D"),
        TensorEntry(router + "proj.weight", f"{kind}.experts.router", "X D -> D X"),
        TensorEntry(router + "scale", f"{kind}.router_scale", "D -> D"),
        TensorEntry(router + "per_expert_scale", f"{kind}.experts.gain", "X -> X"),
        TensorEntry(_LAYER + "experts.gate_up_proj", f"{kind}.experts.gate_up", "X (I R) D -> I X D R"),
        TensorEntry(_LAYER + "experts.down_proj", f"{kind}.experts.down", "X D R -> X R D"),
        TensorEntry(_LAYER + "layer_scalar", f"{kind}.canvas_scalar", "U -> U"),
        TensorEntry("model.encoder.language_model.layers.{}.layer_scalar", f"{kind}.causal_scalar", "U -> U"),
    ]


ENTRIES = [
    TensorEntry("model.decoder.embed_tokens.weight", "embed", "V D -> V D"),
    TensorEntry("model.decoder.norm.weight", "norm", "D -> D"),
    TensorEntry(_CONDITIONING + "pre_norm.weight", "conditioning.norm", "D -> D"),
    TensorEntry(_CONDITIONING + "gate_proj.weight", "conditioning.gate_up", "F D -> D F", np.s_[0]),
    TensorEntry(_CONDITIONING + "up_proj.weight", "conditioning.gate_up", "F D -> D F", np.s_[1]),
    TensorEntry(_CONDITIONING + "down_proj.weight", "conditioning.down", "D F -> F D"),
    *_layers("local", "HGK"),
    *_layers("full", "PQT"),
]

# What transformers assumes for keys that a text_config leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "sliding_window": 512, "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
}  # fmt: skip
_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}


def is_diffusion_gemma(config: Any) -> bool:
    """Whether a parsed config.json names this model."""
    return isinstance(config, Mapping) and config.get("model_type") == MODEL_TYPE


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those of the vision tower."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(VISION)}


def read_diffusion_gemma(config: Mapping[str, Any], where: str, dtype: str | None = None) -> DiffusionGemma:
    """The text model that a config.json describes, heads of full layers in either spelling.

    Raises `WeightsError` for a value of the wrong kind, and for settings that change what the text model computes and
    that paradec lacks: untied weights, attention both ways, biases, another activation or other rotary embeddings.
    """
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where} has no text_config, in which the text model is described. Download it again.")
    top, fields = Fields(config, {"canvas_length": 256}, where), Fields(inner, _DEFAULTS, f"{where}, text_config,")
    for each in (top, fields):
        each.refuse("quantization_config", "paradec reads unquantized safetensors")
        if each.get("tie_word_embeddings") not in (None, True):
            each.fail("tie_word_embeddings", each.get("tie_word_embeddings"), "true: both passes share their weights")
    fields.refuse("attention_bias", "paradec's layers have no biases")
    if fields.get("use_bidirectional_attention") not in (None, "vision"):
        value = fields.get("use_bidirectional_attention")
        fields.fail("use_bidirectional_attention", value, "null or 'vision': paradec's text is causal")
    if fields.get("hidden_activation") != "gelu_pytorch_tanh":
        fields.fail("hidden_activation", fields.get("hidden_activation"), "'gelu_pytorch_tanh'")
    heads, sliding = fields.count("num_attention_heads"), _sliding(fields)
    kv_heads, head_dim = fields.count("num_key_value_heads"), fields.count("head_dim")
    full_kv, full_dim = _full_heads(fields, sliding, kv_heads)
    for key, value in (("num_key_value_heads", kv_heads), ("num_global_key_value_heads", full_kv)):
        if heads % value:
            fields.fail(key, value, f"a divisor of num_attention_heads = {heads}")
    for key, value in (("head_dim", head_dim), ("global_head_dim", full_dim)):
        if value % 2:
            fields.fail(key, value, "even")
    local_rope, rope = (_rope(fields, kind) for kind in (SLIDING, FULL))
    stated = any(top.get(key) is not None for key in ("dtype", "torch_dtype"))
    return DiffusionGemma(
        vocab_size=fields.count("vocab_size"), width=fields.count("hidden_size"),
        mlp_width=fields.count("intermediate_size"), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        num_global_kv_heads=full_kv, global_head_dim=full_dim, sliding=sliding, window=fields.count("sliding_window"),
        block=top.count("canvas_length"), experts=_experts(fields), rope=rope, local_rope=local_rope,
        norm_eps=fields.number("rms_norm_eps", most=1.0), softcap=fields.number("final_logit_softcapping"),
        max_length=fields.count("max_position_embeddings"), dtype=dtype or read_dtype(top if stated else fields),
    )  # fmt: skip


def _experts(fields: Fields) -> Experts:
    count, top_k, width = (fields.count(k) for k in ("num_experts", "top_k_experts", "moe_intermediate_size"))
    try:
        return Experts(count=count, width=width, top_k=top_k, normalise=True, gain=True)
    except InputError as error:
        raise WeightsError(f"{fields.where} describes experts that cannot be. {error}") from None


def _sliding(fields: Fields) -> tuple[bool, ...]:
    """Which layers slide: as listed, else five of six. The last never does, whatever the list says."""
    layers, kinds = fields.count("num_hidden_layers"), fields.get("layer_types")
    if layers > 10_000:  # a damaged count must not become a long list
        fields.fail("num_hidden_layers", layers, "at most 10000")
    if kinds is None:
        kinds = [SLIDING if (i + 1) % 6 else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not {*map(str, kinds)} <= {SLIDING, FULL}:
        fields.fail("layer_types", kinds, f"a list of {layers} times {FULL!r} or {SLIDING!r}")
    return (*(kind == SLIDING for kind in kinds[:-1]), False)


def _full_heads(fields: Fields, sliding: tuple[bool, ...], kv_heads: int) -> tuple[int, int]:
    """Key/value heads and head size of full layers.

    Said by `global_head_dim` and `num_global_key_value_heads`, or, as transformers writes it, by a `per_layer_config`
    that lists every full layer, all alike.
    """
    listed = fields.get("per_layer_config")
    if listed is None:
        return fields.count("num_global_key_value_heads", kv_heads), fields.count("global_head_dim")
    full = {str(i) for i, slides in enumerate(sliding) if not slides}
    wanted = f"an object with the same head_dim and num_key_value_heads for the layers {', '.join(sorted(full))}"
    if not isinstance(listed, Mapping) or {*map(str, listed)} != full:
        fields.fail("per_layer_config", listed, wanted)
    rows = [*listed.values()]
    alike = all(isinstance(row, Mapping) and row == rows[0] for row in rows)
    if not alike or not {*rows[0]} <= {"head_dim", "num_key_value_heads"}:
        fields.fail("per_layer_config", listed, wanted)
    own = Fields(rows[0], {}, f"{fields.where} per_layer_config,")
    return own.count("num_key_value_heads", kv_heads), own.count("head_dim", fields.count("head_dim"))


def _rope(fields: Fields, kind: str) -> Rope:
    both = fields.get("rope_parameters")
    stated = _ROPES[kind] if both is None else both.get(kind) if isinstance(both, Mapping) else None
    if not isinstance(stated, Mapping):
        fields.fail("rope_parameters", both, f"an object for each of {SLIDING!r} and {FULL!r}")
    own = Fields(stated, {}, f"{fields.where} rope_parameters.{kind},")
    if (name := own.get("rope_type", "default")) != _ROPES[kind]["rope_type"]:
        own.fail("rope_type", name, repr(_ROPES[kind]["rope_type"]))
    if kind == SLIDING:
        return Rope(own.number("rope_theta"))
    fraction = own.number("partial_rotary_factor", 1.0, most=1.0)
    return Rope(own.number("rope_theta"), "proportional", own.number("factor", 1.0), fraction=fraction)


def write_diffusion_gemma(model: DiffusionGemma) -> dict[str, Any]:
    """The config.json of a model, as `read_diffusion_gemma` reads it.

    Raises `InputError` for a last layer that slides or rotary embeddings of another kind, which no file can say.
    """
    full = {"rope_type": "proportional", "rope_theta": model.rope.theta, "factor": model.rope.factor}
    text = {
        "model_type": "diffusion_gemma_text", "vocab_size": model.vocab_size, "hidden_size": model.width,
        "intermediate_size": model.mlp_width, "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads, "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim, "global_head_dim": model.global_head_dim,
        "num_global_key_value_heads": model.num_global_kv_heads,
        "layer_types": [SLIDING if slides else FULL for slides in model.sliding],
        "sliding_window": model.window, "num_experts": model.experts.count, "top_k_experts": model.experts.top_k,
        "moe_intermediate_size": model.experts.width, "rms_norm_eps": model.norm_eps,
        "final_logit_softcapping": model.softcap, "max_position_embeddings": model.max_length,
        "hidden_activation": "gelu_pytorch_tanh", "dtype": model.dtype,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": model.local_rope.theta},
            FULL: full | {"partial_rotary_factor": model.rope.fraction},
        },
    }  # fmt: skip
    config = {
        "model_type": MODEL_TYPE, "architectures": ["DiffusionGemmaForBlockDiffusion"], "canvas_length": model.block,
        "tie_word_embeddings": True, "dtype": model.dtype, "text_config": text,
    }  # fmt: skip
    if read_diffusion_gemma(config, "config.json") != model:
        raise InputError(
            "No config.json of DiffusionGemma describes this model: its last layer slides, or other ropes."
        )
    return config


# The rule's options and the keys of generation_config.json that set them.
_OPTIONS = {
    "steps": "max_denoising_steps", "t_min": "t_min", "t_max": "t_max", "stability": "stability_threshold",
    "confidence": "confidence_threshold",
}  # fmt: skip


def read_denoising(folder: Path) -> dict[str, Any]:
    """The options of the rule "renoise" that a folder's generation_config.json asks for; {} where it names none.

    Raises `WeightsError` for a number of the wrong kind, and for another sampler than the entropy-bounded one.
    """
    try:
        values = read_json(folder / "generation_config.json")
    except FileNotFoundError:
        return {}
    fields = Fields(values, {}, str(folder / "generation_config.json"))
    found = {ours: fields.get(theirs) for ours, theirs in _OPTIONS.items() if fields.get(theirs) is not None}
    for ours, value in found.items():
        whole = ours in ("steps", "stability")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < 0:
            fields.fail(_OPTIONS[ours], value, "a whole number from 0 on" if whole else "a number from 0 on")
    sampler = fields.get("sampler_config")
    if sampler is None:
        return found
    if not isinstance(sampler, Mapping) or sampler.get("_cls_name", "EntropyBoundSamplerConfig") != (
        "EntropyBoundSamplerConfig"
    ):
        fields.fail("sampler_config", sampler, "an EntropyBoundSamplerConfig")
    own = Fields(sampler, {}, f"{fields.where} sampler_config,")
    return found | {"gamma": own.number("entropy_bound")}
