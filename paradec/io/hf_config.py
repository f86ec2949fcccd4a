"""`config.json` of the Hugging Face hub as a `Transformer`, and back.

Every default is the one of the configuration class in transformers, since files leave out what equals it. Both ways
of writing rotary settings are read: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.names import DTYPES, check_dtype
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope

INT32_MAX, FLOAT_MAX = 2**31 - 1, 3.4e38  # JSON has numbers of any size; what becomes a float32 must fit one
FULL, SLIDING = "full_attention", "sliding_attention"
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
    model: Transformer
    out_bias: bool = False


class Fields:
    """A JSON object whose values are checked as they are read. Messages name the key and the file."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        self.values, self.defaults, self.where = values, defaults, where

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value as it stands, the default where the key is absent. A null in the file stays null."""
        return self.values[key] if key in self.values else self.defaults.get(key, otherwise)

    def count(self, key: str, otherwise: Any = None) -> int:
        """A whole number above zero that fits int32; `otherwise` where it is absent or null."""
        value = self.get(key)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= INT32_MAX:
            self.fail(key, value, f"a whole number from 1 to {INT32_MAX}")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        """A finite number above zero."""
        value = self.get(key)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= FLOAT_MAX:
            self.fail(key, value, "a number above zero")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; absent and null are false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, value, "true or false")
        return bool(value)

    def refuse(self, key: str, why: str) -> None:
        """Raise where a setting that paradec lacks is switched on."""
        if self.get(key):
            raise WeightsError(f"{self.where} sets {key} = {self.get(key)!r}: {why}.")

    def fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        """Raise the error for a value of the wrong kind."""
        shown = repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
        raise WeightsError(f"{self.where} has {key} = {shown}, which should be {wanted}.")


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
    dtype = dtype or config.get("dtype") or config.get("torch_dtype")
    family = config.get("model_type")
    if family == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
        family, dtype = "gemma3_text", dtype or config.get("dtype") or config.get("torch_dtype")
    if not isinstance(family, str) or family not in DEFAULTS:
        raise UnknownName("model type", str(family), known, f"It is named in {where}.")
    fields = Fields(config, DEFAULTS[family], where)
    _refuse(fields)
    if (dtype or "float32") not in DTYPES:
        fields.fail("dtype", dtype, f"one of {', '.join(DTYPES)}")
    model = _gemma(fields, _base(fields)) if family == "gemma3_text" else _llama(fields, _base(fields), family)
    bias = family != "qwen2" and fields.flag("attention_bias")
    return Config(family, dataclasses.replace(model, dtype=dtype or "float32"), bias)


def _refuse(fields: Fields) -> None:
    fields.refuse("quantization_config", "paradec reads unquantized safetensors; use the original weights or a GGUF")
    fields.refuse("mlp_bias", "paradec's MLP has no bias")
    fields.refuse("attn_logit_softcapping", "paradec does not cap logits")
    fields.refuse("final_logit_softcapping", "paradec does not cap logits")
    fields.refuse("use_bidirectional_attention", "paradec loads causal models only")


def _base(fields: Fields) -> Transformer:
    """What all families share."""
    heads, width, layers = (fields.count(k) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    kv_heads, head_dim = fields.count("num_key_value_heads", heads), fields.count("head_dim", width // heads)
    if heads % kv_heads:
        fields.fail("num_attention_heads", heads, f"a multiple of num_key_value_heads = {kv_heads}")
    if head_dim % 2:
        fields.fail("head_dim", head_dim, "even")
    if layers > 10_000:  # a damaged count must not become a long list
        fields.fail("num_hidden_layers", layers, "at most 10000")
    act = fields.get("hidden_activation") or fields.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        fields.fail("hidden_act", act, f"one of {', '.join(ACTIVATIONS)}")
    return Transformer(
        vocab_size=fields.count("vocab_size"),
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=fields.count("intermediate_size"),
        max_length=fields.count("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps"),
        tied=fields.flag("tie_word_embeddings"),
        activation=ACTIVATIONS[act],
    )


def _llama(fields: Fields, base: Transformer, family: str) -> Transformer:
    """Llama, Mistral, Qwen2 and Qwen3."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    sliding: tuple[bool, ...] = ()
    window = 0
    if family == "mistral":
        window = fields.count("sliding_window") if fields.get("sliding_window") is not None else 0
        kinds = fields.get("layer_types") or []  # transformers ignores the list here, others do not: it must agree
        if window and kinds and kinds != [SLIDING] * base.num_layers:
            fields.fail("layer_types", kinds, "absent for a Mistral with a sliding window")
    elif family in ("qwen2", "qwen3"):
        used = fields.flag("use_sliding_window") and fields.get("sliding_window") is not None
        first = fields.get("max_window_layers")
        if not isinstance(first, int):
            fields.fail("max_window_layers", first, "a whole number")
        window, sliding = _sliding(fields, base, first if used else base.num_layers, used)
    return dataclasses.replace(
        base,
        rope=_rope(fields, scaling, 10_000.0, base.max_length),
        window=window,
        sliding=sliding,
        qkv_bias=family == "qwen2" or fields.flag("attention_bias"),
        qk_norm=family == "qwen3",
    )


def _gemma(fields: Fields, base: Transformer) -> Transformer:
    """Gemma 3: two kinds of layers, each with its own rotary settings."""
    nested = fields.get("rope_parameters") or {FULL: fields.get("rope_scaling")}
    if not isinstance(nested, Mapping) or not {*nested} <= {FULL, SLIDING}:
        fields.fail("rope_parameters", nested, f"an object with the keys {FULL!r} and {SLIDING!r}")
    ropes = [nested.get(kind) or {} for kind in (FULL, SLIDING)]
    period = fields.count("sliding_window_pattern", fields.count("_sliding_window_pattern", 6))
    window, sliding = _sliding(fields, base, None, fields.get("sliding_window") is not None, period)
    return dataclasses.replace(
        base,
        rope=_rope(fields, ropes[0], 1e6, base.max_length),
        local_rope=_rope(fields, ropes[1], 1e4, base.max_length, "rope_local_base_freq"),
        window=window,
        sliding=sliding,
        qkv_bias=fields.flag("attention_bias"),
        qk_norm=True,
        post_norms=True,
        unit_norm=True,
        embed_scale=base.width**0.5,
        query_scale=fields.number("query_pre_attn_scalar") ** -0.5,
    )


def _sliding(
    fields: Fields, base: Transformer, first: int | None, used: bool, period: int = 0
) -> tuple[int, tuple[bool, ...]]:
    """Window and sliding layers: as `layer_types` lists them, else all from `first` on or all but each `period`-th."""
    kinds = fields.get("layer_types")
    if kinds is None:
        layers = range(base.num_layers)
        slides = tuple(i >= first if first is not None else bool((i + 1) % period) for i in layers)
    elif not isinstance(kinds, list) or len(kinds) != base.num_layers or not {*map(str, kinds)} <= {FULL, SLIDING}:
        fields.fail("layer_types", kinds, f"a list of {base.num_layers} times {FULL!r} or {SLIDING!r}")
    else:
        slides = tuple(kind == SLIDING for kind in kinds)
    if not any(slides):
        return 0, ()
    if not used:
        fields.fail("sliding_window", fields.get("sliding_window"), "set, since some layers slide")
    return fields.count("sliding_window"), slides


def _rope(fields: Fields, scaling: Any, theta: float, max_length: int, theta_key: str = "rope_theta") -> Rope:
    """Rotary settings of one kind of layer."""
    if not isinstance(scaling, Mapping):
        fields.fail("rope_parameters", scaling, "an object")
    s = Fields(scaling, {}, f"{fields.where}, rope settings,")
    theta = s.number("rope_theta", fields.number(theta_key, theta))
    kind = s.get("rope_type") or s.get("type") or "default"
    if s.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        fields.fail("partial_rotary_factor", s.get("partial_rotary_factor"), "1: paradec rotates whole heads")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", s.number("factor"))
    inner = s.count("original_max_position_embeddings", max_length)
    original = fields.count("original_max_position_embeddings", inner)  # at the top level it wins, as in transformers
    if kind == "llama3":
        low, high = s.number("low_freq_factor"), s.number("high_freq_factor")
        if low >= high:
            s.fail("low_freq_factor", low, f"below high_freq_factor = {high}")
        return Rope(theta, "llama3", s.number("factor"), original, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        return _yarn(s, theta, original, max_length)
    raise UnknownName("rotary scaling", str(kind), ["default", "linear", "llama3", "yarn"], f"See {fields.where}.")


def _yarn(s: Fields, theta: float, original: int, max_length: int) -> Rope:
    factor = s.number("factor", max_length / original)
    attention = None if s.get("attention_factor") is None else s.number("attention_factor")
    if attention is None and s.get("mscale") and s.get("mscale_all_dim"):
        above, below = (0.1 * s.number(key) * math.log(max(factor, 1.0)) + 1 for key in ("mscale", "mscale_all_dim"))
        attention = above / below
    return Rope(
        theta, "yarn", factor, original, attention_factor=attention, truncate=s.get("truncate") in (None, True),
        beta_fast=s.number("beta_fast", 32.0), beta_slow=s.number("beta_slow", 1.0),
    )  # fmt: skip


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
        "rope_scaling": _write_rope(model.rope),
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
    return "mistral" if model.window else "llama"


def _write_rope(rope: Rope) -> dict[str, Any] | None:
    """The `rope_scaling` object, null for the plain kind."""
    keys = {
        "linear": {"factor": rope.factor},
        "llama3": {
            "factor": rope.factor, "low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_length,
        },
        "yarn": {
            "factor": rope.factor, "original_max_position_embeddings": rope.original_length, "truncate": rope.truncate,
            "attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow,
        },
    }.get(rope.kind)  # fmt: skip
    return keys and {"rope_type": rope.kind, **{k: v for k, v in keys.items() if v is not None}}


def _whole(value: float) -> int | float:
    return round(value) if math.isclose(value, round(value)) else value


def _same(found: Transformer, wanted: Transformer) -> bool:
    """Whether both compute the same, up to ways of writing it (all layers slide; a default scale)."""

    def plain(model: Transformer) -> Transformer:
        slides = tuple(map(bool, model.slides()))
        return dataclasses.replace(model, sliding=slides, query_scale=None, local_rope=model.local_rope or model.rope)

    return plain(found) == plain(wanted) and math.isclose(found.scale, wanted.scale)
