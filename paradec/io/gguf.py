"""GGUF files (the format of llama.cpp) as paradec models: Llama and Mistral, Qwen2, Qwen3, Gemma 3."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from paradec.errors import UnknownName, WeightsError
from paradec.io import names
from paradec.io.gguf_file import GGUFFile, open_gguf, read_metadata
from paradec.io.names import Tensor, TensorEntry
from paradec.models.transformer import Transformer, Weights
from paradec.ops.rope import Rope

__all__ = ["load_gguf", "open_gguf", "read_metadata"]

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")
ROPE_FREQS = "rope_freqs.weight"
GEMMA_27B_LAYERS = 62  # the one Gemma 3 whose attention scale is not head_dim ** -0.5

_BLOCK = "blk.{}."
COMMON = [
    TensorEntry("token_embd.weight", "embed", "V D -> V D"),
    TensorEntry("output_norm.weight", "norm", "D -> D"),
    TensorEntry("output.weight", "head", "V D -> V D"),
    TensorEntry(_BLOCK + "attn_norm.weight", "blocks.attn_norm", "D -> D"),
    TensorEntry(_BLOCK + "attn_v.weight", "blocks.qkv", "(H K) D -> D H K", np.s_[:, :, -1]),
    TensorEntry(_BLOCK + "attn_v.bias", "blocks.qkv_bias", "(H K) -> H K", np.s_[:, -1]),
    TensorEntry(_BLOCK + "attn_q_norm.weight", "blocks.q_norm", "K -> K"),
    TensorEntry(_BLOCK + "attn_k_norm.weight", "blocks.k_norm", "K -> K"),
    TensorEntry(_BLOCK + "attn_output.weight", "blocks.out", "D (H G K) -> H G K D"),
    TensorEntry(_BLOCK + "post_attention_norm.weight", "blocks.attn_post_norm", "D -> D"),
    TensorEntry(_BLOCK + "ffn_norm.weight", "blocks.mlp_norm", "D -> D"),
    TensorEntry(_BLOCK + "ffn_gate.weight", "blocks.gate_up", "F D -> D F", np.s_[0]),
    TensorEntry(_BLOCK + "ffn_up.weight", "blocks.gate_up", "F D -> D F", np.s_[1]),
    TensorEntry(_BLOCK + "ffn_down.weight", "blocks.down", "D F -> F D"),
    TensorEntry(_BLOCK + "post_ffw_norm.weight", "blocks.mlp_post_norm", "D -> D"),
]
HALF_SPLIT = [  # rotary pairs are (k, k + K/2), as in paradec
    TensorEntry(_BLOCK + "attn_q.weight", "blocks.qkv", "(H G K) D -> D H G K", np.s_[:, :, :-2]),
    TensorEntry(_BLOCK + "attn_k.weight", "blocks.qkv", "(H K) D -> D H K", np.s_[:, :, -2]),
    TensorEntry(_BLOCK + "attn_q.bias", "blocks.qkv_bias", "(H G K) -> H G K", np.s_[:, :-2]),
    TensorEntry(_BLOCK + "attn_k.bias", "blocks.qkv_bias", "(H K) -> H K", np.s_[:, -2]),
]
INTERLEAVED = [  # llama files store the pairs next to each other: row (j, i) of a head is our row (i, j)
    TensorEntry(_BLOCK + "attn_q.weight", "blocks.qkv", "(H G J I) D -> D H G (I J)", np.s_[:, :, :-2]),
    TensorEntry(_BLOCK + "attn_k.weight", "blocks.qkv", "(H J I) D -> D H (I J)", np.s_[:, :, -2]),
    TensorEntry(_BLOCK + "attn_q.bias", "blocks.qkv_bias", "(H G J I) -> H G (I J)", np.s_[:, :-2]),
    TensorEntry(_BLOCK + "attn_k.bias", "blocks.qkv_bias", "(H J I) -> H (I J)", np.s_[:, -2]),
]


def load_gguf(
    file: str | os.PathLike[str] | GGUFFile, dtype: str = "float32", track: names.Track = iter
) -> tuple[Transformer, Weights]:
    """The model in a GGUF file, given by its path or opened, and its weights dequantized to `dtype` numpy arrays
    (`jax.device_put` moves them).

    Raises `UnknownName` for an architecture that paradec lacks, `InputError` for a dtype it lacks, and `WeightsError`
    for a file that is damaged, split, incomplete, holds a tensor without a place, or has a setting that the
    architecture cannot express.
    """
    names.check_dtype(dtype)
    file = file if isinstance(file, GGUFFile) else open_gguf(file)
    model = dataclasses.replace(read_model(file), dtype=dtype)
    tensors = {
        name: Tensor(info.shape, str(file.path), functools.partial(file.read, name))
        for name, info in file.tensors.items()
        if name != ROPE_FREQS  # already part of the configuration
    }
    pairs = INTERLEAVED if file.metadata["general.architecture"] == "llama" else HALF_SPLIT
    return model, names.load(model, COMMON + pairs, tensors, track)


def read_model(file: GGUFFile) -> Transformer:
    """The configuration of an opened file. Raises as `load_gguf` does; reads no weights but the rotary factors."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnknownName("GGUF architecture", str(arch), ARCHITECTURES, f"It is named in {file.path}.")
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise WeightsError(f"{file.path} is one part of a split model. Join the parts with `gguf-split --merge` first.")
    keys = _Keys(file.path, arch, file.metadata)
    base = _base(keys, file)
    rope = _rope(keys, file, base)
    base = dataclasses.replace(
        base, rope=rope, max_length=rope.reach(base.max_length), qk_norm=arch in ("qwen3", "gemma3")
    )
    if arch == "gemma3":
        return _gemma(keys, base)
    window = keys.count("attention.sliding_window") if keys.get("attention.sliding_window") else 0
    return dataclasses.replace(base, window=window)


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The metadata under one architecture's prefix, checked as it is read."""

    path: Path
    arch: str
    values: Mapping[str, Any]

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.values.get(f"{self.arch}.{key}", otherwise)

    def count(self, key: str, otherwise: int | None = None) -> int:
        value = self.get(key, otherwise)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one number per layer, all alike
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            self.fail(key, value, "a whole number above zero, the same for all layers")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        value = self.get(key, otherwise)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.fail(key, value, "a number above zero")
        return float(value)

    def fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        raise WeightsError(f"{self.path} has {self.arch}.{key} = {value!r}, which should be {wanted}.")


def _base(keys: _Keys, file: GGUFFile) -> Transformer:
    """Sizes, and what the presence of a tensor says."""
    embed = file.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise WeightsError(f"{file.path} lacks the tensor 'token_embd.weight'. Download it again.")
    heads, width = keys.count("attention.head_count"), keys.count("embedding_length")
    kv_heads = keys.count("attention.head_count_kv", heads)
    head_dim = keys.count("attention.key_length", width // heads)
    if heads % kv_heads:
        keys.fail("attention.head_count", heads, f"a multiple of head_count_kv = {kv_heads}")
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.count(key, head_dim) != head_dim:
            keys.fail(key, keys.get(key), f"the head size {head_dim}")
    if head_dim % 2:
        keys.fail("attention.key_length", head_dim, "even")
    for key in ("expert_count", "final_logit_softcapping", "attn_logit_softcapping"):
        if keys.get(key):
            keys.fail(key, keys.get(key), "zero or absent: paradec's decoder has no such part")
    return Transformer(
        vocab_size=embed.shape[0],
        width=width,
        num_layers=keys.count("block_count"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=keys.count("feed_forward_length"),
        max_length=keys.count("context_length"),
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
    )


def _gemma(keys: _Keys, base: Transformer) -> Transformer:
    large = base.num_layers == GEMMA_27B_LAYERS
    return dataclasses.replace(
        base,
        window=keys.count("attention.sliding_window"),
        sliding=_sliding(keys, base.num_layers),
        local_rope=Rope(keys.number("rope.freq_base_swa", 1e4)),
        post_norms=True,  # and unit_norm stays off: the file's norms already hold 1 + w
        embed_scale=base.width**0.5,
        query_scale=(base.width / base.num_heads if large else base.head_dim) ** -0.5,
        activation="gelu_tanh",
    )


def _sliding(keys: _Keys, layers: int) -> tuple[bool, ...]:
    """Gemma's sliding layers: five of six, unless the file says otherwise."""
    if layers > 10_000:  # a damaged count must not become a long list
        keys.fail("block_count", layers, "at most 10000")
    pattern = keys.get("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, list):
        period = keys.count("attention.sliding_window_pattern", 6)
        return tuple(bool((i + 1) % period) for i in range(layers))
    if len(pattern) != layers or not all(isinstance(slides, bool) for slides in pattern):
        keys.fail("attention.sliding_window_pattern", pattern, f"a list of {layers} truth values")
    return tuple(pattern)


def _rope(keys: _Keys, file: GGUFFile, base: Transformer) -> Rope:
    theta = keys.number("rope.freq_base", 10_000.0)
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    if ROPE_FREQS in file.tensors:
        if kind != "none":
            keys.fail("rope.scaling.type", kind, f"'none' beside {ROPE_FREQS}")
        return _llama3(file, theta, base.head_dim)
    if kind == "none":
        return Rope(theta)
    factor = keys.number("rope.scaling.factor", keys.get("rope.scale_linear"))
    if kind == "linear":
        return Rope(theta, "linear", factor)
    if kind != "yarn":
        raise UnknownName("rotary scaling", str(kind), ["none", "linear", "yarn"], f"It is named in {file.path}.")
    for key, plain in (("rope.scaling.yarn_log_multiplier", 0.0), ("rope.scaling.yarn_ext_factor", 1.0)):
        if keys.get(key, plain) != plain:
            keys.fail(key, keys.get(key), f"{plain} or absent: paradec does not know this kind of YaRN")
    gain = keys.number("rope.scaling.attn_factor", keys.number("rope.scaling.yarn_attn_factor", 1.0))
    return Rope(
        theta, "yarn", factor, keys.count("rope.scaling.original_context_length", base.max_length),
        attention_factor=None if gain == 1.0 else gain * (0.1 * math.log(factor) + 1.0),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )  # fmt: skip


def _llama3(file: GGUFFile, theta: float, head_dim: int) -> Rope:
    """The llama3 scaling whose factors the file stores instead of its parameters."""
    stored = file.read(ROPE_FREQS).astype(np.float64)
    if stored.shape != (head_dim // 2,) or not np.all(np.isfinite(stored)) or np.any(stored < 1):
        raise WeightsError(f"Tensor {ROPE_FREQS!r} in {file.path} should hold {head_dim // 2} factors of at least 1.")
    plain, _ = Rope(theta).frequencies(head_dim)
    for original in _lengths(file.metadata):
        rope = Rope(theta, "llama3", float(stored.max()), original)  # all published models use low 1 and high 4
        if np.allclose(plain / rope.frequencies(head_dim)[0], stored, rtol=1e-4):
            return rope
    raise WeightsError(
        f"Tensor {ROPE_FREQS!r} in {file.path} does not hold the llama3 scaling of any published model. "
        "Load the original safetensors folder, whose config.json names the parameters."
    )


def _lengths(metadata: Mapping[str, Any]) -> Sequence[int]:
    named = metadata.get("llama.rope.scaling.original_context_length")
    return ([named] if isinstance(named, int) and named > 0 else []) + [8192]
