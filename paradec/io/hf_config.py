"""`config.json` of the Hugging Face hub as a `Transformer`, and back.

Every default is the one of the configuration class in transformers, since files leave out what equals it. Where a file
states one thing twice, the statement counts that transformers obeys: a key that the family's code there does not read
is not read here either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.fields import Fields
from paradec.io.names import DTYPES, check_dtype
from paradec.io.rope_config import FULL, SLIDING, read_rope, read_ropes, write_rope
from paradec.models.dit import DiT
from paradec.models.transformer import Transformer

KINDS = {FULL, SLIDING}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# What transformers assumes for keys that a config.json leaves out.
_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_QWEN = _COMMON | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _COMMON | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "ministral3": {
        "vocab_size": 131072,
        "hidden_size": 4096,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
}
KNOWN = (*DEFAULTS, "gemma3")


@dataclasses.dataclass(frozen=True)
class Config:
    """A parsed config.json: the model, the family it belongs to, and whether the output projection has a bias."""

    family: str
    model: Transformer | DiT
    out_bias: bool = False


def read_config(
    config: Any, where: str = "config.json", dtype: str | None = None, known: Iterable[str] = KNOWN
) -> Config:
    """The `Config` that a parsed config.json describes. `dtype` None takes the file's own, or float32.

    Raises `UnknownName` for a model type or rotary scaling that paradec lacks (it lists `known`), `InputError` for a
    dtype it lacks, and `WeightsError` for a setting of the wrong kind or one that the architecture cannot express.
    """
    if dtype is not None:
        check_dtype(dtype)
    if not isinstance(config, Mapping):
        raise WeightsError(f"{where} should hold a JSON object.")
    family = config.get("model_type")
    if family == "gemma3":
        config, family = _inside(config, where), "gemma3_text"
    if not isinstance(family, str) or family not in DEFAULTS:
        raise UnknownName("model type", str(family)[:60], known, f"It is named in {where}.")
    fields = Fields(config, DEFAULTS[family], where)
    _refuse(fields, family)
    dtype = dtype or read_dtype(fields)
    model = (
        _gemma(fields, _base(fields, family))
        if family == "gemma3_text"
        else _llama(fields, _base(fields, family), family)
    )
    bias = family in _BIASED and fields.flag("attention_bias")
    return Config(family, dataclasses.replace(model, dtype=dtype), bias)


def read_dtype(fields: Fields) -> str:
    """The dtype that the file names, or float32. `dtype` counts before the older `torch_dtype`."""
    found = next((d for key in ("dtype", "torch_dtype") if (d := fields.get(key)) is not None), "float32")
    if found not in DTYPES:
        fields.fail("dtype", found, f"one of {', '.join(DTYPES)}")
    return found


def _inside(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The language model in a multimodal Gemma 3, with what counts at the top of the file: dtype and tied heads."""
    inner = config.get("text_config")
    if inner is None:
        inner = {}
    if not isinstance(inner, Mapping):
        raise WeightsError(f"{where} has a text_config that is no object. Download it again.")
    above = {key: config[key] for key in ("dtype", "torch_dtype", "quantization_config") if config.get(key)}
    if "dtype" not in above and "torch_dtype" in above:
        inner = {key: value for key, value in inner.items() if key != "dtype"}
    return {**inner, **above, "tie_word_embeddings": config.get("tie_word_embeddings", True)}


_OFF = {
    "llama": {"mlp_bias": "paradec's MLP has no bias"},
    "gemma3_text": dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), "paradec does not cap logits"),
}
_BIASED = ("llama", "qwen3", "gemma3_text")  # families in which attention_bias means something


def _refuse(fields: Fields, family: str) -> None:
    """Raise for what the family could be told to do and paradec cannot."""
    fields.refuse("quantization_config", "paradec reads unquantized safetensors; use the original weights or a GGUF")
    fields.refuse("use_bidirectional_attention", "paradec loads causal models only")
    fields.refuse("per_layer_config", "paradec's layers are alike")
    for key, why in _OFF.get(family, {}).items():
        fields.refuse(key, why)


def _base(fields: Fields, family: str) -> Transformer:
    """What all families share."""
    heads, width, layers = (fields.count(k) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    kv_heads = fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", None if "head_dim" in fields.defaults else width // heads)
    if heads % kv_heads:
        fields.fail("num_attention_heads", heads, f"a multiple of num_key_value_heads = {kv_heads}")
    if head_dim % 2:
        fields.fail("head_dim", head_dim, "even")
    if layers > 10_000:  # a damaged count must not become a long list
        fields.fail("num_hidden_layers", layers, "at most 10000")
    kinds = fields.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers or not {*map(str, kinds)} <= KINDS):
        fields.fail("layer_types", kinds, f"a list of {layers} times {FULL!r} or {SLIDING!r}")
    key = "hidden_activation" if family == "gemma3_text" else "hidden_act"
    act = fields.get(key, "silu")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        fields.fail(key, act, f"one of {', '.join(ACTIVATIONS)}")
    return Transformer(
        vocab_size=fields.count("vocab_size"),
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=fields.count("intermediate_size"),
        max_length=fields.count("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", most=1.0),
        tied=fields.flag("tie_word_embeddings"),
        activation=ACTIVATIONS[act],
    )


def _llama(fields: Fields, base: Transformer, family: str) -> Transformer:
    """Llama, Mistral, Ministral 3, Qwen2 and Qwen3."""
    sliding: tuple[bool, ...] = ()
    window = 0
    if family in ("mistral", "ministral3"):
        window = fields.count("sliding_window") if fields.get("sliding_window") is not None else 0
        kinds = fields.get("layer_types") or []  # transformers ignores the list here, others do not: it must agree
        if window and kinds and kinds != [SLIDING] * base.num_layers:
            fields.fail("layer_types", kinds, f"absent for a {family.title()} with a sliding window")
    elif family in ("qwen2", "qwen3"):
        used = fields.flag("use_sliding_window") and fields.get("sliding_window") is not None
        first = fields.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int):
            fields.fail("max_window_layers", first, "a whole number")
        window, sliding = _sliding(fields, base, first if used else base.num_layers, used)
    rope = read_rope(fields, base.head_dim, base.max_length, grows=family == "ministral3")
    return dataclasses.replace(
        base,
        rope=rope,
        max_length=rope.reach(base.max_length),
        window=window,
        sliding=sliding,
        qkv_bias=family == "qwen2" or (family in _BIASED and fields.flag("attention_bias")),
        qk_norm=family == "qwen3",
    )


def _gemma(fields: Fields, base: Transformer) -> Transformer:
    """Gemma 3: two kinds of layers, each with its own rotary settings."""
    period = fields.count("sliding_window_pattern", 6)
    window, sliding = _sliding(fields, base, None, fields.get("sliding_window") is not None, period)
    rope, local_rope = read_ropes(fields, base.head_dim, base.max_length)
    return dataclasses.replace(
        base,
        rope=rope,
        local_rope=local_rope,
        max_length=rope.reach(base.max_length),
        window=window,
        sliding=sliding,
        qkv_bias=fields.flag("attention_bias"),
        qk_norm=True,
        post_norms=True,
        unit_norm=True,
        embed_scale=base.width**0.5,
        query_scale=fields.number("query_pre_attn_scalar", most=1e9) ** -0.5,
    )


def _sliding(
    fields: Fields, base: Transformer, first: int | None, used: bool, period: int = 0
) -> tuple[int, tuple[bool, ...]]:
    """Window and sliding layers: as `layer_types` lists them, else all from `first` on or all but each `period`-th."""
    kinds = fields.get("layer_types")
    if kinds is None:
        layers = range(base.num_layers)
        slides = tuple(i >= first if first is not None else bool((i + 1) % period) for i in layers)
    else:
        slides = tuple(kind == SLIDING for kind in kinds)
    if not any(slides):
        return 0, ()
    if not used:
        fields.fail("sliding_window", fields.get("sliding_window"), "set, since some layers slide")
    return fields.count("sliding_window"), slides


def write_config(model: Transformer) -> dict[str, Any]:
    """The config.json of a model, in the way of writing that old and new transformers both read.

    Raises `InputError` for a model that none of the families can express.
    """
    family = _family(model)
    config: dict[str, Any] = {theirs: getattr(model, ours) for theirs, ours in _SAME.items()}
    config |= {
        "model_type": family,
        "architectures": [_ARCHITECTURES[family]],
        "rope_theta": model.rope.theta,
        "rope_scaling": write_rope(model.rope),
        "sliding_window": model.window or None,
        "attention_bias": model.qkv_bias and family != "qwen2",
    }
    hidden_act = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation), model.activation)
    config["hidden_activation" if family == "gemma3_text" else "hidden_act"] = hidden_act
    if family in ("qwen2", "qwen3", "gemma3_text"):
        config["use_sliding_window"] = bool(model.window)
        config["layer_types"] = [SLIDING if s else FULL for s in model.slides()]
    if family == "gemma3_text":
        config["rope_local_base_freq"] = (model.local_rope or model.rope).theta
        config["query_pre_attn_scalar"] = _whole(model.scale**-2)
    if not _same(read_config(config).model, model):
        raise InputError(f"This model cannot be written as a {family} checkpoint: no config.json there describes it.")
    return config


# Keys of config.json that a field of `Transformer` answers as it is.
_SAME = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied",
    "torch_dtype": "dtype",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def _family(model: Transformer) -> str:
    if model.post_norms:
        return "gemma3_text"
    if model.qk_norm:
        return "qwen3"
    if model.qkv_bias:
        return "qwen2"
    if model.rope.query_beta:
        return "ministral3"
    return "mistral" if model.window else "llama"


def _whole(value: float) -> int | float:
    return round(value) if math.isclose(value, round(value)) else value


def _same(found: Transformer, wanted: Transformer) -> bool:
    """Whether both compute the same, up to ways of writing it (all layers slide; a default scale; a shorter YaRN)."""

    def plain(model: Transformer) -> Transformer:
        slides, reach = tuple(map(bool, model.slides())), model.rope.reach(model.max_length)
        local = model.local_rope or model.rope
        return dataclasses.replace(model, sliding=slides, query_scale=None, local_rope=local, max_length=reach)

    return plain(found) == plain(wanted) and math.isclose(found.scale, wanted.scale)
