"""`config.json` of published diffusion language models as a `BlockDiffusion` or a `NemotronDiffusion`.

Most of these families are a Llama, Qwen2 or Qwen3 that sees both ways, so their keys are read by `hf_config`, those of
experts by `experts_config` and those of diffusion transformers by `dit`. What is added here: the mask token, the block,
where blocks are counted from, and whether row p predicts token p or p + 1. The published files state these in part or
not at all; the table `FAMILIES` has the rest, from the code that each family was published with.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paradec.errors import InputError, WeightsError
from paradec.io.dit import read_dit, write_dit
from paradec.io.experts_config import (
    LLADA2_MOE,
    LLADA_MOE,
    SDAR_MOE,
    Dialect,
    common_keys,
    with_experts,
    without_experts,
)
from paradec.io.fields import Fields
from paradec.io.hf_config import Config, read_config, write_config
from paradec.io.tokenizer import Tokenizer
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.dit import DiT
from paradec.models.nemotron_diffusion import NemotronDiffusion

MASK_TOKENS = ("<|mask|>", "|<MASK>|")


@dataclasses.dataclass(frozen=True)
class Family:
    """A model type: the plain family it is built from, and what a config.json of it leaves unsaid.

    `mask_id` None: the tokenizer has it. `block_key` "": full attention; `block` None: config.json or the caller must
    say it. `grid` and `shift` are those of `BlockDiffusion`; `causal`: finished text is read causally, the model is a
    `NemotronDiffusion`.
    """

    base: str
    mask_id: int | None
    block_key: str = ""
    block: int | None = None
    grid: str = "text"
    shift: bool = False
    experts: Dialect | None = None
    causal: bool = False

    def model(self, base: Any, mask_id: int, block: int) -> BlockDiffusion | NemotronDiffusion:
        """The model of this family on a network."""
        if self.causal:
            return NemotronDiffusion(base, mask_id, block)
        return BlockDiffusion(base, mask_id=mask_id, block=block, grid=self.grid, shift=self.shift)


FAMILIES: dict[str, Family] = {
    "llada": Family("llama", 126336),  # LLaDA 8B, LLaDA 1.5: arXiv 2502.09992
    "Dream": Family("qwen2", 151666, shift=True),  # Dream 7B: arXiv 2508.15487
    "Fast_dLLM_Qwen": Family("qwen2", 151665, "bd_size", 32, shift=True),  # Fast-dLLM v2: arXiv 2509.26328
    "sdar": Family("qwen3", 151669, "block_size"),  # SDAR, TraDo; published with blocks of 4 and of other sizes
    # dllm's autoregressive-to-diffusion models: mdlm sees everything, bd3lm is trained with blocks of 32.
    "a2d-qwen2": Family("qwen2", None, "block_size", grid="prompt"),
    "a2d-qwen3": Family("qwen3", None, "block_size", grid="prompt"),
    "llada_moe": Family("qwen3", 156895, experts=LLADA_MOE),  # LLaDA-MoE 7B: arXiv 2509.24389
    "llada2_moe": Family("qwen3", 156895, "block_size", 32, experts=LLADA2_MOE),  # LLaDA2.0 mini: arXiv 2512.15745
    "sdar_moe": Family("qwen3", 151669, "block_size", experts=SDAR_MOE),  # SDAR 30B-A3B: arXiv 2510.06303
    # Nemotron-Labs-Diffusion 8B; its released code was not read, and the sizes of the 3B and 14B are not known here.
    "nemotron_labs_diffusion": Family("ministral3", 100, "block_size", 32, grid="prompt", causal=True),
    # Diffusion transformers that learned from GPT-2's tokens, and one for the mask.
    "mdlm": Family("dit", 50257),  # MDLM: arXiv 2406.07524
    "bd3lm": Family("dit", 50257, "block_size"),  # BD3-LM: arXiv 2503.09573; published with blocks of 4, 8 and 16
}
_LOWER = {name.lower(): name for name in FAMILIES} | {"lladamoe": "llada_moe"}  # Dream is found in both spellings

# OLMo's settings that LLaDA's code has and its checkpoints leave off.
_OFF = {
    "alibi": "paradec's positions are rotary",
    "attention_layer_norm": "paradec's LLaDA has no norms on queries and keys",
    "bias_for_layer_norm": "paradec's norms have no bias",
    "clip_qkv": "paradec does not clip",
    "include_bias": "paradec's LLaDA has no biases",
    "include_qkv_bias": "paradec's LLaDA has no biases",
    "input_emb_norm": "paradec's LLaDA does not scale its embedding",
    "multi_query_attention": "give n_kv_heads instead",
    "scale_logits": "paradec does not scale logits",
}
_ONLY = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "block_group_size": 1,
}


def is_diffusion(config: Any) -> bool:
    """Whether a parsed config.json names a diffusion family."""
    return _family(config) in FAMILIES


def read_diffusion(
    config: Mapping[str, Any],
    where: str = "config.json",
    dtype: str | None = None,
    *,
    folder: Path | None = None,
    mask_id: int | None = None,
    block: int | None = None,
) -> tuple[Config, BlockDiffusion | NemotronDiffusion]:
    """The `Config` of the base, under the diffusion family's name, and the model that the config.json describes.

    `mask_id` and `block` (0: full attention) win over the file. Without the first, the mask token is the file's
    `mask_token_id`, else the family's, else the one that the tokenizer in `folder` adds.

    Raises what `read_config` raises; `WeightsError` for experts in a dense family and where nothing says the mask token
    or the block; `InputError` for a mask token outside the vocabulary and for a model with sliding windows.
    """
    name = _family(config)
    family, fields = FAMILIES[name], Fields(config, {}, where)
    if family.experts is None and _lists_experts(config):
        raise WeightsError(
            f"{where} describes a {config['model_type']} model, a mixture of experts, which is not supported yet. "
            f"Take one of {', '.join(FAMILIES)}."
        )
    fields.refuse("use_mrope", "paradec's positions have one axis")
    if not family.block_key:  # such models exist, under the same model type, and are not shifted either
        fields.refuse("block_size", f"paradec knows {name} with full attention only")
    base = _base(fields, name, dtype)
    mask_id = _mask_id(fields, family, folder) if mask_id is None else mask_id
    model = family.model(base.model, mask_id, _block(fields, name) if block is None else block)
    return dataclasses.replace(base, family=name), model


def write_diffusion(model: BlockDiffusion | NemotronDiffusion) -> dict[str, Any]:
    """The config.json of a diffusion model, as `read_diffusion` reads it. A `block_size` of 0 says full attention.

    Raises `InputError` for a model that none of the families can express.
    """
    base, experts = model.base, None
    if isinstance(base, DiT):
        plain = write_dit(base)
    else:
        experts = base.experts
        plain = write_config(base if experts is None else without_experts(base))
    for name, family in FAMILIES.items():
        if family.base != plain["model_type"] or (model.block and not family.block_key):
            continue
        if (family.experts is None) is not (experts is None) or family.causal is not model.causal_cache:
            continue
        block = {family.block_key: model.block} if family.block_key else {}
        own = common_keys(experts) | family.experts.write(base, experts) if experts else {}
        config = plain | {"model_type": name, "mask_token_id": model.mask_id} | block | own
        with contextlib.suppress(WeightsError):
            found = read_diffusion(config)[1]
            if found == (model if model.block else dataclasses.replace(model, grid=found.grid)):
                return config
    raise InputError(
        "No diffusion family of the hub has this shape: blocks, their grid and the shift go with queries and keys that "
        "are normed (SDAR, A2D on Qwen3) or biased (Dream, Fast-dLLM v2, A2D on Qwen2); experts are LLaDA-MoE's, "
        "LLaDA2's or SDAR-MoE's; a diffusion transformer has no shift, and blocks from position 0 on (BD3-LM) or none; "
        "text that is read causally is Nemotron's, whose queries grow with their position."
    )


def states_head(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says if the vocabulary head is tied. Where it does not, only an absent head is tied."""
    return any(config.get(key) is not None for key in ("tie_word_embeddings", "weight_tying"))


def _family(config: Any) -> str:
    """The model type as `FAMILIES` spells it; "" for any other. LLaDA-MoE has the model type of the dense LLaDA."""
    found = _model_type(config)
    return "llada_moe" if found == "llada" and _lists_experts(config) else _LOWER.get(found, "")


def _model_type(config: Any) -> str:
    found = config.get("model_type") if isinstance(config, Mapping) else None
    return found.lower() if isinstance(found, str) else ""


def _lists_experts(config: Mapping[str, Any]) -> bool:
    return bool(config.get("num_experts")) or "moe" in str(config.get("architectures")).lower()


def _base(fields: Fields, name: str, dtype: str | None) -> Config:
    """The network that a config.json of this family describes, as its base family has it."""
    family = FAMILIES[name]
    if family.base == "dit":
        return Config(family.base, read_dit(fields.values, fields.where, dtype))
    plain = _llada(fields) if name == "llada" else dict(fields.values)
    if family.experts is None:
        return read_config(plain | {"model_type": family.base}, fields.where, dtype)
    plain, experts, fraction = family.experts.read(fields)
    base = read_config(plain | {"model_type": family.base}, fields.where, dtype)
    return dataclasses.replace(base, model=with_experts(base.model, experts, fraction))


def _mask_id(fields: Fields, family: Family, folder: Path | None) -> int:
    stated = fields.get("mask_token_id")
    if stated is not None:
        if isinstance(stated, bool) or not isinstance(stated, int):
            fields.fail("mask_token_id", stated, "a token id")
        if stated == fields.get("eos_token_id"):  # one port of LLaDA-MoE writes such files
            fields.fail("mask_token_id", stated, "no end of text; pass the mask token of the model's card as mask_id=")
        return stated
    if family.mask_id is not None:
        return family.mask_id
    added = None if folder is None else _added_mask(folder)
    if added is None:
        raise WeightsError(
            f"The mask id is missing from {fields.where}, and no tokenizer beside it adds {' or '.join(MASK_TOKENS)}. "
            "Find it in the model's card and pass mask_id=."
        )
    return added


def _added_mask(folder: Path) -> int | None:
    """The id of the mask token that the tokenizer of a folder adds; None where there is no such token or tokenizer."""
    if not (folder / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.from_folder(folder)
    texts = (tokenizer.names.get("mask_token"), *MASK_TOKENS)
    return next((i for t in texts if t and (i := tokenizer.core.token_to_id(t)) is not None), None)


def _block(fields: Fields, name: str) -> int:
    family = FAMILIES[name]
    if not family.block_key:
        return 0
    stated = fields.get(family.block_key)
    if stated == 0 and stated is not False and name.startswith("a2d"):
        return 0  # paradec's own way to write one that sees the whole canvas
    if fields.get("cross_attn") is False and name == "bd3lm":
        return 0  # one that was trained like an MDLM
    if stated is not None:
        return fields.count(family.block_key)
    if family.block is None:
        full = "0 if it sees the whole canvas (mdlm), 32 if it is a bd3lm" if name.startswith("a2d") else "often 4"
        raise WeightsError(
            f"{fields.where} has no {family.block_key}, and models of type {name} differ in it. Find the size of the "
            f"blocks that this one was trained with and pass block= ({full})."
        )
    return family.block


def _llada(fields: Fields) -> dict[str, Any]:
    """LLaDA's keys, which are OLMo's, under the names of a Llama. Nothing has a default that could pass unnoticed, and
    keys of a Llama that LLaDA's code does not read, its rope_scaling among them, are not read here either."""
    for key, why in _OFF.items():
        fields.refuse(key, why)
    for key, only in _ONLY.items():
        if fields.get(key, only) != only:
            fields.fail(key, fields.get(key), repr(only))
    heads, vocabulary = fields.count("n_heads"), fields.count("vocab_size")
    rows = fields.count("embedding_size", vocabulary)  # the table may be longer than the vocabulary
    if rows < vocabulary:
        fields.fail("embedding_size", rows, f"at least vocab_size = {vocabulary}")
    kept = {key: fields.values[key] for key in ("dtype", "torch_dtype", "quantization_config") if key in fields.values}
    return kept | {
        "hidden_size": fields.count("d_model"),
        "num_hidden_layers": fields.count("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.count("n_kv_heads", heads),
        "intermediate_size": fields.count("mlp_hidden_size"),
        "vocab_size": rows,
        "max_position_embeddings": fields.count("max_sequence_length"),
        "rms_norm_eps": fields.number("rms_norm_eps"),
        "rope_theta": fields.number("rope_theta"),
        "tie_word_embeddings": fields.flag("weight_tying"),
    }
