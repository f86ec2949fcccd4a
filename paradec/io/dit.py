"""Diffusion transformers as MDLM and BD3-LM are published: their config.json, their tensors, their noise level.

The network that embeds the noise level is in the files. They were trained with the level at 0, so what it says is
computed when they are loaded; written files hold a network that says nothing, and the same sum in the biases.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paradec.errors import InputError
from paradec.io.fields import Fields
from paradec.io.hf_config import read_dtype
from paradec.io.names import FREQUENCIES, Tensor, TensorEntry, check_dtype
from paradec.models.dit import DiT

# What the published configuration classes assume for keys that a config.json leaves out.
_DEFAULTS = {
    "vocab_size": 50258, "model_length": 1024, "hidden_dim": 768, "cond_dim": 129, "n_blocks": 12, "n_heads": 12,
}  # fmt: skip
_WIDTHS = 4  # of the MLP, in widths of the model: no key says it

_BLOCK, _LEVEL, _OUTPUT = "backbone.blocks.{}.", "backbone.sigma_map.mlp.", "backbone.output_layer."
_BY, _ADDS = "adaLN_modulation.weight", "adaLN_modulation.bias"

DIT = [
    TensorEntry("backbone.vocab_embed.embedding", "embed", "V D -> V D"),
    TensorEntry(_LEVEL + "0.weight", "", "C N -> C N"),
    TensorEntry(_LEVEL + "0.bias", "", "C -> C"),
    TensorEntry(_LEVEL + "2.weight", "", "C E -> C E"),
    TensorEntry(_LEVEL + "2.bias", "", "C -> C"),
    TensorEntry(_BLOCK + "norm1.weight", "blocks.attn_norm", "D -> D"),
    TensorEntry(_BLOCK + "attn_qkv.weight", "blocks.qkv", "(M H K) D -> D H M K"),
    TensorEntry(_BLOCK + "attn_out.weight", "blocks.out", "D (H G K) -> H G K D"),
    TensorEntry(_BLOCK + "norm2.weight", "blocks.mlp_norm", "D -> D"),
    TensorEntry(_BLOCK + "mlp.0.weight", "blocks.up", "F D -> D F"),
    TensorEntry(_BLOCK + "mlp.0.bias", "blocks.up_bias", "F -> F"),
    TensorEntry(_BLOCK + "mlp.2.weight", "blocks.down", "D F -> F D"),
    TensorEntry(_BLOCK + "mlp.2.bias", "blocks.down_bias", "D -> D"),
    TensorEntry(_BLOCK + _BY, "", "(I M D) C -> I M D C"),
    TensorEntry(_BLOCK + _ADDS, "blocks.modulation", "(I M D) -> I M D"),
    TensorEntry(_OUTPUT + "norm_final.weight", "norm", "D -> D"),
    TensorEntry(_OUTPUT + _BY, "", "(I D) C -> I D C"),
    TensorEntry(_OUTPUT + _ADDS, "modulation", "(I D) -> I D"),
    TensorEntry(_OUTPUT + "linear.weight", "head", "V D -> V D"),
    TensorEntry(_OUTPUT + "linear.bias", "head_bias", "V -> V"),
]


def read_dit(config: Mapping[str, Any], where: str = "config.json", dtype: str | None = None) -> DiT:
    """The network that a parsed config.json describes. `dtype` None takes the file's own, or float32.

    Raises `InputError` for a dtype that paradec lacks, and `WeightsError` for a setting of the wrong kind or one that
    the network cannot express.
    """
    if dtype is not None:
        check_dtype(dtype)
    fields = Fields(config, _DEFAULTS, where)
    fields.refuse("quantization_config", "paradec reads unquantized safetensors; use the original weights")
    fields.refuse("time_conditioning", "paradec's diffusion transformers know noise level 0 only")
    fields.refuse("causal", "paradec's diffusion transformers see both ways")
    if fields.get("adaln", True) is not True:
        fields.fail("adaln", fields.get("adaln"), "true")
    width, heads = fields.count("hidden_dim"), fields.count("n_heads")
    if width % (2 * heads):
        fields.fail("hidden_dim", width, f"a multiple of 2 * n_heads = {2 * heads}")
    return DiT(
        vocab_size=fields.count("vocab_size"), width=width, num_layers=fields.count("n_blocks"), num_heads=heads,
        num_kv_heads=heads, head_dim=width // heads, mlp_width=_WIDTHS * width,
        max_length=fields.count("model_length"), level_width=fields.count("cond_dim"),
        dtype=dtype or read_dtype(fields),
    )  # fmt: skip


def write_dit(model: DiT) -> dict[str, Any]:
    """The config.json of a network, as `read_dit` reads it, under the model type "dit", which no file has.

    Raises `InputError` for a network that the published code cannot express.
    """
    config = {
        "model_type": "dit", "vocab_size": model.vocab_size, "model_length": model.max_length,
        "hidden_dim": model.width, "cond_dim": model.level_width, "n_blocks": model.num_layers,
        "n_heads": model.num_heads, "torch_dtype": model.dtype, "adaln": True, "causal": False,
        "time_conditioning": False, "var_min": False,
    }  # fmt: skip
    if model.width % (2 * model.num_heads) or read_dit(config) != dataclasses.replace(model, query_scale=None):
        raise InputError(
            f"This diffusion transformer cannot be written as a checkpoint: there MLPs are {_WIDTHS} times as wide as "
            "the model, heads share its width evenly and have keys of their own, and rotation and norms are the usual."
        )
    return config


def at_level_zero(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint that computes the same at noise level 0, but whose biases hold all that the level says.

    Nothing is read before it is asked for, and no shape changes. What is missing stays missing.
    """
    level = functools.cache(lambda: _level(tensors))
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(_LEVEL) or name.endswith(_BY):
            found[name] = tensor._replace(read=functools.partial(np.zeros, tensor.shape, np.float32))
        elif name.endswith(_ADDS) and (by := tensors.get(name.removesuffix(_ADDS) + _BY)) is not None:
            found[name] = tensor._replace(read=functools.partial(_settled, by, tensor, level))
    return found


@np.errstate(all="ignore")  # damaged files hold anything; what no number comes of is found when it is copied
def _settled(by: Tensor, adds: Tensor, level: Callable[[], np.ndarray]) -> np.ndarray:
    return by.read().astype(np.float64) @ level() + adds.read().astype(np.float64)


def _level(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """What the embedding says of level 0, whose frequencies are cosines of 0, then sines of 0. In float64."""
    x = np.repeat([1.0, 0.0], FREQUENCIES // 2)
    for layer in "02":
        weight, bias = (tensors[f"{_LEVEL}{layer}.{kind}"].read().astype(np.float64) for kind in ("weight", "bias"))
        x = weight @ x + bias
        x = x * (1 + np.tanh(x / 2)) / 2  # silu
    return x
