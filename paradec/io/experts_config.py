"""Diffusion models with experts: their keys of config.json as a plain model's keys and an `Experts`, and back.

What attention, norms and the head are is Qwen3's in all of them. A key that the published code reads has no default
here that could pass unnoticed; one that it ignores must not ask for anything else than what the code does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from paradec.errors import InputError, WeightsError
from paradec.io.fields import Fields
from paradec.models.experts import Experts
from paradec.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a family writes down its experts: `read` gives Qwen3's keys, the experts and the fraction of a head's
    dimensions that rotate; `write` the keys that stand beside Qwen3's."""

    read: Callable[[Fields], tuple[dict[str, Any], Experts, float]]
    write: Callable[[Transformer, Experts], dict[str, Any]]


def with_experts(model: Transformer, experts: Experts, fraction: float) -> Transformer:
    """A plain model with what a `Dialect` read beside it."""
    return dataclasses.replace(model, experts=experts, rope=dataclasses.replace(model.rope, fraction=fraction))


def without_experts(model: Transformer) -> Transformer:
    """The plain model whose config.json the keys of a `Dialect` stand beside."""
    return dataclasses.replace(model, experts=None, rope=dataclasses.replace(model.rope, fraction=1.0))


# LLaDA-MoE (2509.24389): 16 layers of OLMoE's kind, with plain softmax weights.


def _read_llada_moe(fields: Fields) -> tuple[dict[str, Any], Experts, float]:
    for key in ("attention_bias", "clip_qkv", "moe_router_enable_expert_bias", "shared_expert_intermediate_size",
                "router_num_group", "router_topk_group", "norm_topk_prob"):  # fmt: skip
        fields.refuse(key, "the LLaDA-MoE that paradec knows has it off")
    _only(fields, "moe_router_score_function", "softmax", "softmax")
    _only(fields, "routed_scaling_factor", 1, 1)
    _only(fields, "partial_rotary_factor", 1, 1)
    _only(fields, "qk_layernorm", True, None)
    plain = _plain(fields, fields.count("num_key_value_heads", fields.count("num_attention_heads")))
    heads = fields.count("num_attention_heads")
    _only(fields, "head_dim", fields.count("hidden_size") // heads, fields.count("hidden_size") // heads)
    leading = _leading(fields, "moe_layer_freq", plain["num_hidden_layers"])
    width = fields.count("expert_intermediate_size")
    plain["intermediate_size"] = fields.count("dense_intermediate_size", None if leading else width)
    return plain, _experts(fields, width=width, leading=leading), 1.0


def _write_llada_moe(model: Transformer, experts: Experts) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAMoEModelLM"],
        "expert_intermediate_size": experts.width,
        "dense_intermediate_size": model.mlp_width,
        "moe_layer_freq": [0] * experts.leading + [1] * (model.num_layers - experts.leading),
        "moe_router_score_function": "softmax",
        "qk_layernorm": True,
    }


def _leading(fields: Fields, key: str, layers: int) -> int:
    """How many layers without experts a list of one 0 or 1 a layer begins with; all the others must have them."""
    listed = fields.get(key)
    if listed is None:
        return 0
    leading = listed.index(1) if isinstance(listed, list) and 1 in listed else layers
    if listed != [0] * leading + [1] * (layers - leading) or leading == layers:
        fields.fail(key, listed, f"a list of {layers} numbers, first zeros (plain MLPs), then ones (experts)")
    return leading


# LLaDA2 (2512.15745): Ling's layers. Its published code always normalises, and always scores with a sigmoid.


def _read_llada2_moe(fields: Fields) -> tuple[dict[str, Any], Experts, float]:
    for key in ("use_bias", "use_qkv_bias", "norm_head", "use_sliding_window"):
        fields.refuse(key, "the LLaDA2 that paradec knows has it off")
    _only(fields, "score_function", "sigmoid", "sigmoid")
    _only(fields, "use_qk_norm", True, True)
    _only(fields, "norm_topk_prob", True, True)
    heads = fields.count("num_attention_heads")
    plain = _plain(fields, heads if fields.get("num_key_value_heads") == 0 else fields.count("num_key_value_heads"))
    width = fields.count("moe_intermediate_size")
    leading = 0 if fields.get("first_k_dense_replace") in (0, None) else fields.count("first_k_dense_replace")
    if leading >= plain["num_hidden_layers"]:
        fields.fail("first_k_dense_replace", leading, f"below num_hidden_layers = {plain['num_hidden_layers']}")
    plain["intermediate_size"] = fields.count("intermediate_size", None if leading else width)
    experts = _experts(
        fields,
        width=width,
        leading=leading,
        score="sigmoid",
        normalise=fields.get("num_experts_per_tok") != 1,
        scale=fields.number("routed_scaling_factor"),
        bias=fields.get("moe_router_enable_expert_bias") in (None, True),
        groups=fields.count("n_group"),
        top_groups=fields.count("topk_group"),
        shared=0 if fields.get("num_shared_experts") in (0, None) else width * fields.count("num_shared_experts"),
    )
    return plain, experts, _fraction(fields, plain["head_dim"])


def _write_llada2_moe(model: Transformer, experts: Experts) -> dict[str, Any]:
    return {
        "architectures": ["LLaDA2MoeModelLM"],
        "moe_intermediate_size": experts.width,
        "num_shared_experts": experts.shared // experts.width,
        "first_k_dense_replace": experts.leading,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "routed_scaling_factor": experts.scale,
        "score_function": "sigmoid",
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": experts.bias,
        "partial_rotary_factor": model.rope.fraction,
        "use_qk_norm": True,
        "use_bias": False,
        "use_qkv_bias": False,
    }


def _fraction(fields: Fields, head_dim: int) -> float:
    """The part of a head that rotates: a whole number of pairs of dimensions."""
    fraction = fields.number("partial_rotary_factor", 0.5)
    if fraction > 1 or int(head_dim * fraction) % 2 or int(head_dim * fraction) == 0:
        fields.fail("partial_rotary_factor", fraction, f"at most 1 and an even part of head_dim = {head_dim}")
    return fraction


# SDAR-MoE (2510.06303): Qwen3's mixture of experts.


def _read_sdar_moe(fields: Fields) -> tuple[dict[str, Any], Experts, float]:
    fields.refuse("attention_bias", "the SDAR-MoE that paradec knows has no biases")
    _only(fields, "decoder_sparse_step", 1, 1)
    normalise = fields.get("norm_topk_prob")
    if not isinstance(normalise, bool):  # code that reads these models does not agree on a default
        fields.fail("norm_topk_prob", normalise, "true or false")
    plain = _plain(fields, fields.count("num_key_value_heads"))
    plain["head_dim"] = fields.count("head_dim", 128)
    layers, dense = plain["num_hidden_layers"], fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or dense != list(range(len(dense))) or len(dense) >= layers:
        fields.fail("mlp_only_layers", dense, "a list of the first layers, or empty")
    width = fields.count("moe_intermediate_size")
    plain["intermediate_size"] = fields.count("intermediate_size", None if dense else width)
    return plain, _experts(fields, width=width, leading=len(dense), normalise=normalise), 1.0


def _write_sdar_moe(model: Transformer, experts: Experts) -> dict[str, Any]:
    return {
        "architectures": ["SDARMoeForCausalLM"],
        "moe_intermediate_size": experts.width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(experts.leading)),
        "norm_topk_prob": experts.normalise,
    }


LLADA_MOE = Dialect(_read_llada_moe, _write_llada_moe)
LLADA2_MOE = Dialect(_read_llada2_moe, _write_llada2_moe)
SDAR_MOE = Dialect(_read_sdar_moe, _write_sdar_moe)


def common_keys(experts: Experts) -> dict[str, Any]:
    """The keys that are the same in all dialects."""
    return {"num_experts": experts.count, "num_experts_per_tok": experts.top_k}


def _plain(fields: Fields, kv_heads: int) -> dict[str, Any]:
    """Qwen3's keys, all of them stated, less the rotary fraction, which goes its own way."""
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if not isinstance(fields.get("rope_parameters"), Mapping):
        fields.number("rope_theta")
    return {key: value for key, value in fields.values.items() if key != "partial_rotary_factor"} | {
        "hidden_size": width,
        "num_hidden_layers": fields.count("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": fields.count("head_dim", width // heads),
        "vocab_size": fields.count("vocab_size"),
        "max_position_embeddings": fields.count("max_position_embeddings"),
        "rms_norm_eps": fields.number("rms_norm_eps"),
    }


def _experts(fields: Fields, **given: Any) -> Experts:
    """The experts of a config.json; `WeightsError` names the file where they cannot be."""
    count = fields.count("num_experts", fields.get("num_local_experts"))  # as transformers 5 writes it
    top_k = fields.count("num_experts_per_tok")
    try:
        return Experts(count=count, top_k=top_k, **given)
    except InputError as error:
        raise WeightsError(f"{fields.where} describes experts that cannot be. {error}") from None


def _only(fields: Fields, key: str, wanted: Any, otherwise: Any) -> None:
    """Raise unless a key has the one value that is known; `otherwise` stands for an absent key or a null."""
    found = otherwise if fields.get(key) is None else fields.get(key)
    if isinstance(found, bool) is not isinstance(wanted, bool) or found != wanted:
        fields.fail(key, fields.get(key), repr(wanted))
