"""Folders in the layout of the Hugging Face hub: config.json beside one or several safetensors files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paradec.errors import InputError, WeightsError
from paradec.io import names, text_file
from paradec.io.diffusion_config import FAMILIES, is_diffusion, read_diffusion, states_head, write_diffusion
from paradec.io.diffusion_gemma import (
    ENTRIES,
    MODEL_TYPE,
    is_diffusion_gemma,
    read_diffusion_gemma,
    text_tensors,
    write_diffusion_gemma,
)
from paradec.io.dit import DIT, at_level_zero
from paradec.io.gla import MODEL_TYPE as GLA_TYPE
from paradec.io.gla import gla_entries, is_gla, read_gla, write_gla
from paradec.io.hf_config import KNOWN, Config, read_config, write_config
from paradec.io.names import Tensor, TensorEntry
from paradec.io.recurrent import (
    is_recurrent,
    load_recurrent,
    read_recurrent,
    recurrent_tensors,
    write_recurrent,
)
from paradec.io.regular_file import read_json
from paradec.io.tensor_file import table, write
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.models.diffusion_gemma_trees import GemmaWeights
from paradec.models.dit import DiT, DiTWeights
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.models.recurrent import RecurrentLM, RecurrentWeights
from paradec.models.transformer import Transformer, Weights

_BLOCK = "model.layers.{}."
_ATTENTION = _BLOCK + "self_attn."

COMMON = [
    TensorEntry("model.embed_tokens.weight", "embed", "V D -> V D"),
    TensorEntry("model.norm.weight", "norm", "D -> D"),
    TensorEntry("lm_head.weight", "head", "V D -> V D"),
    TensorEntry(_BLOCK + "input_layernorm.weight", "blocks.attn_norm", "D -> D"),
    TensorEntry(_ATTENTION + "q_proj.weight", "blocks.qkv", "(H G K) D -> D H G K", np.s_[:, :, :-2]),
    TensorEntry(_ATTENTION + "k_proj.weight", "blocks.qkv", "(H K) D -> D H K", np.s_[:, :, -2]),
    TensorEntry(_ATTENTION + "v_proj.weight", "blocks.qkv", "(H K) D -> D H K", np.s_[:, :, -1]),
    TensorEntry(_ATTENTION + "q_proj.bias", "blocks.qkv_bias", "(H G K) -> H G K", np.s_[:, :-2]),
    TensorEntry(_ATTENTION + "k_proj.bias", "blocks.qkv_bias", "(H K) -> H K", np.s_[:, -2]),
    TensorEntry(_ATTENTION + "v_proj.bias", "blocks.qkv_bias", "(H K) -> H K", np.s_[:, -1]),
    TensorEntry(_ATTENTION + "q_norm.weight", "blocks.q_norm", "K -> K"),
    TensorEntry(_ATTENTION + "k_norm.weight", "blocks.k_norm", "K -> K"),
    TensorEntry(_ATTENTION + "o_proj.weight", "blocks.out", "D (H G K) -> H G K D"),
    TensorEntry(_BLOCK + "mlp.gate_proj.weight", "blocks.gate_up", "F D -> D F", np.s_[0]),
    TensorEntry(_BLOCK + "mlp.up_proj.weight", "blocks.gate_up", "F D -> D F", np.s_[1]),
    TensorEntry(_BLOCK + "mlp.down_proj.weight", "blocks.down", "D F -> F D"),
]
LLAMA_NORMS = [TensorEntry(_BLOCK + "post_attention_layernorm.weight", "blocks.mlp_norm", "D -> D")]
GEMMA_NORMS = [  # the same name as above means another norm here
    TensorEntry(_BLOCK + "post_attention_layernorm.weight", "blocks.attn_post_norm", "D -> D"),
    TensorEntry(_BLOCK + "pre_feedforward_layernorm.weight", "blocks.mlp_norm", "D -> D"),
    TensorEntry(_BLOCK + "post_feedforward_layernorm.weight", "blocks.mlp_post_norm", "D -> D"),
]
OUT_BIAS = [TensorEntry(_ATTENTION + "o_proj.bias", "", "D -> D")]  # attention_bias adds one; paradec has none

# LLaDA names the same tensors as OLMo does. "ff_out" is the head, and in a block the down projection: only whole names
# tell them apart.
_OLMO = {
    "model.embed_tokens": "wte",
    "model.norm": "ln_f",
    "lm_head": "ff_out",
    _BLOCK + "input_layernorm": "blocks.{}.attn_norm",
    _ATTENTION + "q_proj": "blocks.{}.q_proj",
    _ATTENTION + "k_proj": "blocks.{}.k_proj",
    _ATTENTION + "v_proj": "blocks.{}.v_proj",
    _ATTENTION + "o_proj": "blocks.{}.attn_out",
    _BLOCK + "post_attention_layernorm": "blocks.{}.ff_norm",
    _BLOCK + "mlp.gate_proj": "blocks.{}.ff_proj",
    _BLOCK + "mlp.up_proj": "blocks.{}.up_proj",
    _BLOCK + "mlp.down_proj": "blocks.{}.ff_out",
}
LLADA = [
    dataclasses.replace(entry, name=f"model.transformer.{_OLMO[stem]}.weight")
    for entry in COMMON + LLAMA_NORMS
    if (stem := entry.name.removesuffix(".weight")) in _OLMO
]

_MLP = _BLOCK + "mlp."
_EXPERTS = [
    TensorEntry(_MLP + "gate.weight", "blocks.experts.router", "X D -> D X"),
    TensorEntry(_MLP + "gate.expert_bias", "blocks.experts.bias", "X -> X"),
    TensorEntry(_MLP + "experts.{}.gate_proj.weight", "blocks.experts.gate_up", "R D -> D R", np.s_[0]),
    TensorEntry(_MLP + "experts.{}.up_proj.weight", "blocks.experts.gate_up", "R D -> D R", np.s_[1]),
    TensorEntry(_MLP + "experts.{}.down_proj.weight", "blocks.experts.down", "D R -> R D"),
    TensorEntry(_MLP + "shared_experts.gate_proj.weight", "blocks.gate_up", "S D -> D S", np.s_[0]),
    TensorEntry(_MLP + "shared_experts.up_proj.weight", "blocks.gate_up", "S D -> D S", np.s_[1]),
    TensorEntry(_MLP + "shared_experts.down_proj.weight", "blocks.down", "D S -> S D"),
]


def _mixture(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The table of a plain model with experts in its MLPs' place; its leading layers keep them."""
    leading = [dataclasses.replace(e, leaf=e.leaf.replace("blocks.", "leading.")) for e in entries if "{}" in e.name]
    return [entry for entry in entries if not entry.name.startswith(_MLP)] + _EXPERTS + leading


MIXTURE = _mixture(COMMON + LLAMA_NORMS)

# LLaDA2 has Ling's names, and queries, keys and values in one tensor.
_LING = {
    "model.embed_tokens": "model.word_embeddings",
    **{_ATTENTION + part: _BLOCK + "attention.query_key_value" for part in ("q_proj", "k_proj", "v_proj")},
    _ATTENTION + "q_norm": _BLOCK + "attention.query_layernorm",
    _ATTENTION + "k_norm": _BLOCK + "attention.key_layernorm",
    _ATTENTION + "o_proj": _BLOCK + "attention.dense",
}
LLADA2 = [
    dataclasses.replace(entry, name=_LING.get(stem, stem) + ".weight")
    for entry in MIXTURE
    if (stem := entry.name.removesuffix(".weight")) != entry.name
] + [entry for entry in _EXPERTS if not entry.name.endswith(".weight")]
# Nemotron-Labs-Diffusion calls the stack an encoder.
NEMOTRON = [
    dataclasses.replace(entry, name=entry.name.replace("model.", "encoder.").replace("lm_head.", "diffusion_head."))
    for entry in COMMON + LLAMA_NORMS
]
TABLES = {
    "nemotron_labs_diffusion": NEMOTRON,
    "llada": LLADA, "llada_moe": MIXTURE, "llada2_moe": LLADA2, "sdar_moe": MIXTURE, "mdlm": DIT, "bd3lm": DIT,
}  # fmt: skip

# The language model inside a multimodal checkpoint, under either of its names; and a bare one, without its head.
PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    **{part: "model." + part for part in ("embed_tokens.", "layers.", "norm.")},
}
# Tensors that a language model does without: the vision tower, rotary tables, and the noise levels of training.
IGNORED_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")

_ON_A_BASE = (BlockDiffusion, NemotronDiffusion)


def load_hf(
    folder: str | os.PathLike[str],
    dtype: str | None = None,
    track: names.Track = iter,
    *,
    mask_id: int | None = None,
    block: int | None = None,
) -> tuple[
    Transformer | DiT | BlockDiffusion | NemotronDiffusion | DiffusionGemma | RecurrentLM,
    Weights | DiTWeights | GemmaWeights | RecurrentWeights,
]:
    """The model in a folder, and its weights as numpy arrays (`jax.device_put` moves them, with or without shardings).

    `dtype` None keeps the one named in config.json. A diffusion checkpoint is a `BlockDiffusion` or a
    `NemotronDiffusion`, for which `mask_id` and `block` win over config.json (see `read_diffusion`), or a
    `DiffusionGemma`; a folder of paradec's own, or of flash-linear-attention's GLA, may be a `RecurrentLM`. Raises
    `UnknownName` for an architecture that paradec lacks, `InputError` for an option that does not fit, and
    `WeightsError` for anything missing, damaged or left over: every tensor is read or is on the list of ignored ones.
    """
    folder = Path(folder)
    where = str(folder / "config.json")
    try:
        values = read_json(folder / "config.json")
    except FileNotFoundError:
        raise WeightsError(f"There is no config.json in {folder}. Point at the folder of one model.") from None
    if is_diffusion_gemma(values):
        if mask_id is not None or block is not None:
            raise InputError(
                f"{where} describes a DiffusionGemma, which has no mask and one canvas length: leave out "
                "mask_id and block."
            )
        gemma = read_diffusion_gemma(values, where, dtype)
        return gemma, names.load(gemma, ENTRIES, text_tensors(_open(folder)), track)
    if is_recurrent(values) or is_gla(values):
        if mask_id is not None or block is not None:
            raise InputError(
                f"{where} describes a recurrent model, which fills no canvas: leave out mask_id and block."
            )
        return _load_recurrent(folder, values, where, dtype, track)
    config, model = _described(values, where, dtype, folder, mask_id, block)
    entries, tensors, base = _entries(config), _canonical(_open(folder)), config.model
    if isinstance(base, DiT):
        tensors = at_level_zero(tensors)
    else:
        if isinstance(model, _ON_A_BASE) and not states_head(values):
            base = dataclasses.replace(base, tied=_name(entries, "head") not in tensors)
        if base.tied:
            _drop_copied_head(tensors, entries)
    weights = names.load(base, entries, tensors, track)
    return dataclasses.replace(model, base=base) if isinstance(model, _ON_A_BASE) else base, weights


def _load_recurrent(
    folder: Path, values: Any, where: str, dtype: str | None, track: names.Track
) -> tuple[RecurrentLM, RecurrentWeights]:
    """A folder of paradec's own, or of flash-linear-attention's GLA."""
    if not is_gla(values):
        model = read_recurrent(values, where, dtype)
        return model, load_recurrent(model, _open(folder), track)
    model, entries, tensors = read_gla(values, where, dtype), gla_entries(values), _open(folder)
    if model.tied:
        _drop_copied_head(tensors, entries)
    return model, names.load(model, entries, tensors, track)


def save_gla(folder: str | os.PathLike[str], model: RecurrentLM, weights: RecurrentWeights) -> None:
    """Write a folder that flash-linear-attention reads, and `load_hf`. Raises `InputError`: see `write_gla`."""
    config = write_gla(model)
    _save(Path(folder), config, model, gla_entries(config), weights)


def _described(
    values: Any, where: str, dtype: str | None, folder: Path, mask_id: int | None, block: int | None
) -> tuple[Config, Transformer | DiT | BlockDiffusion | NemotronDiffusion]:
    if is_diffusion(values):
        return read_diffusion(values, where, dtype, folder=folder, mask_id=mask_id, block=block)
    config = read_config(values, where, dtype, known=(*KNOWN, *FAMILIES, MODEL_TYPE, GLA_TYPE))
    if mask_id is not None or block is not None:
        raise InputError(
            f"mask_id and block belong to diffusion checkpoints, and {where} describes a {config.family} model. "
            "Leave them out, and wrap the loaded model: BlockDiffusion(model, mask_id=..., block=...)."
        )
    return config, config.model


def save_hf(
    folder: str | os.PathLike[str],
    model: Transformer | DiT | BlockDiffusion | NemotronDiffusion | DiffusionGemma | RecurrentLM,
    weights: Weights | DiTWeights | GemmaWeights | RecurrentWeights,
) -> None:
    """Write config.json and model.safetensors, which `load_hf` and transformers read back to the same numbers.

    Raises `InputError` for a model that no family of the hub can express. An existing model there is replaced, the
    weights in one step, so an interrupted write leaves no half file behind under that name.
    """
    folder = Path(folder)
    if isinstance(model, RecurrentLM):
        return _put(folder, write_recurrent(model), recurrent_tensors(weights))
    if isinstance(model, DiffusionGemma):
        return _save(folder, write_diffusion_gemma(model), model, ENTRIES, weights)
    base = model.base if isinstance(model, _ON_A_BASE) else model
    if isinstance(model, _ON_A_BASE):
        config = write_diffusion(model)
        plain = read_diffusion(config)[0]
    elif isinstance(base, DiT):
        raise InputError("A diffusion transformer continues no text: wrap it, BlockDiffusion(model, mask_id=...).")
    else:
        config = write_config(base)
        plain = read_config(config)
    _save(folder, config, base, _entries(plain), weights)


def _save(folder: Path, config: Any, model: names.Architecture, entries: Sequence[TensorEntry], weights: Any) -> None:
    _put(folder, config, dict(names.store(model, entries, jax.device_get(weights))))


def _put(folder: Path, config: Any, tensors: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", tensors)
    text_file.write(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _entries(config: Config) -> list[TensorEntry]:
    if config.family in TABLES:
        return TABLES[config.family]
    norms = GEMMA_NORMS if config.model.post_norms else LLAMA_NORMS
    return COMMON + norms + (OUT_BIAS if config.out_bias else [])


def _name(entries: Sequence[TensorEntry], leaf: str) -> str:
    return next(entry.name for entry in entries if entry.leaf == leaf)


def _open(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by their names in the files, not yet read."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return table(single)
    if not index.exists():
        raise WeightsError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json. "
            "Convert other formats with transformers: model.save_pretrained(folder)."
        )
    place = read_json(index).get("weight_map")
    if not isinstance(place, Mapping) or not all(isinstance(f, str) and Path(f).name == f for f in place.values()):
        raise WeightsError(f"{index} should hold a weight_map from tensor names to file names. Download it again.")
    shards = {file: table(folder / file) for file in sorted(set(place.values()))}
    for name, file in place.items():
        if name not in shards[file]:
            raise WeightsError(f"{index} places tensor {name!r} in {file}, which lacks it. Download both again.")
    strays = [f"{name!r} in {file}" for file, held in shards.items() for name in held if place.get(name) != file]
    if strays:
        raise WeightsError(f"{index} does not list tensor {strays[0]}. Download the folder again.")
    return {name: shards[file][name] for name, file in place.items()}


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of a plain causal model, without those on the list of ignored ones."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(IGNORED_PREFIXES) or name.endswith(IGNORED_SUFFIXES):
            continue
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        plain = PREFIXES.get(prefix, "") + name.removeprefix(prefix)
        if plain in found:
            raise WeightsError(f"{tensor.file} holds {plain!r} twice, once as {name!r}. Remove one of them.")
        found[plain] = tensor
    return found


def _drop_copied_head(tensors: dict[str, Tensor], entries: Sequence[TensorEntry]) -> None:
    """Some tied checkpoints store the embedding a second time as the head; another head would be an untied model."""
    name = _name(entries, "head")
    head, embed = tensors.get(name), tensors.get(_name(entries, "embed"))
    if head is None or embed is None:
        return
    if head.shape != embed.shape or not np.array_equal(head.read(), embed.read()):
        raise WeightsError(
            f"{head.file} holds a vocabulary head of its own, but its config.json ties the head to the embedding. "
            "Set tie_word_embeddings (weight_tying in LLaDA) to false there if the head is meant."
        )
    del tensors[name]
