"""Small diffusion checkpoints for the tests of `paradec.io`: the layouts of published families, seeded weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tiny_checkpoints import SIZES, D, F, G, H, K, L, V, random_weights, shapes
from tokenizers import Tokenizer, models

MASK = V - 3
W = H * G * K  # LLaDA's width: it has no key for the size of a head
OFF = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN = SIZES | OFF | {"rope_theta": 1e6, "tie_word_embeddings": False}
LLADA = {
    "architectures": ["LLaDAModelLM"], "activation_type": "silu", "alibi": False, "attention_layer_norm": False,
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": W,
    "embedding_size": V, "include_bias": False, "include_qkv_bias": False, "input_emb_norm": False,
    "layer_norm_type": "rms", "mask_token_id": MASK, "max_sequence_length": 128, "mlp_hidden_size": F, "mlp_ratio": 4,
    "multi_query_attention": None, "n_heads": H * G, "n_kv_heads": H, "n_layers": L, "rms_norm_eps": 1e-5,
    "rope": True, "rope_full_precision": True, "rope_theta": 5e5, "scale_logits": False, "vocab_size": V,
    "weight_tying": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llada": LLADA,
    "Dream": QWEN | {"architectures": ["DreamModel"], "mask_token_id": MASK, "rope_scaling": None, "use_mrope": False},
    "Fast_dLLM_Qwen": QWEN | {"bd_size": 32, "mask_token_id": MASK, "layer_types": ["full_attention"] * L},
    "sdar": QWEN | {"block_size": 4, "mask_token_id": MASK, "head_dim": K},
    "a2d-qwen2": QWEN | {"tie_word_embeddings": True, "block_size": 8, "mask_token_id": MASK},
    "a2d-qwen3": QWEN | {"tie_word_embeddings": True, "block_size": 32, "mask_token_id": MASK},
}
PLAIN = {
    "llada": "llama", "Dream": "qwen2", "Fast_dLLM_Qwen": "qwen2", "sdar": "qwen3", "a2d-qwen2": "qwen2",
    "a2d-qwen3": "qwen3",
}  # fmt: skip
# LLaDA's names and shapes as its own index file has them, with those of a Llama: spelled out here a second time.
TOP = "model.transformer."
LLADA_LAYER = {
    "attn_norm": ("input_layernorm", (W,)), "ff_norm": ("post_attention_layernorm", (W,)),
    "q_proj": ("self_attn.q_proj", (W, W)), "k_proj": ("self_attn.k_proj", (H * K, W)),
    "v_proj": ("self_attn.v_proj", (H * K, W)), "attn_out": ("self_attn.o_proj", (W, W)),
    "ff_proj": ("mlp.gate_proj", (F, W)), "up_proj": ("mlp.up_proj", (F, W)), "ff_out": ("mlp.down_proj", (W, F)),
}  # fmt: skip
LLADA_TENSORS = {
    "wte": ("model.embed_tokens", (V, W)), "ln_f": ("model.norm", (W,)), "ff_out": ("lm_head", (V, W)),
} | {
    f"blocks.{i}.{name}": (f"model.layers.{i}.{plain}", shape)
    for i in range(L)
    for name, (plain, shape) in LLADA_LAYER.items()
}  # fmt: skip

Tensors = dict[str, np.ndarray]


def plain_tensors(family: str) -> Tensors:
    """Random weights under the names of the plain family."""
    if family == "llada":
        return random_weights({f"{plain}.weight": shape for plain, shape in LLADA_TENSORS.values()})
    wanted = shapes(PLAIN[family])
    wanted.pop("lm_head.weight", None)
    tied = CONFIGS[family]["tie_word_embeddings"]
    return random_weights(wanted if tied else wanted | {"lm_head.weight": (V, D)})


def published(family: str) -> Tensors:
    """The same weights under the names of the family."""
    tensors = plain_tensors(family)
    if family != "llada":
        return tensors
    return {f"{TOP}{name}.weight": tensors[f"{plain}.weight"] for name, (plain, _) in LLADA_TENSORS.items()}


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write(folder: Path, family: str, change: Callable[[Tensors], Tensors] = dict, **changes: Any) -> Path:
    """A folder of a family; a change of `...` leaves the key out. `change` sees tensors under their published names."""
    config = CONFIGS[family] | {"model_type": family} | changes
    write_config(folder, {key: value for key, value in config.items() if value is not ...})
    save_file(change(published(family)), folder / "model.safetensors")
    return folder


def write_plain(folder: Path, family: str) -> Path:
    """The same numbers as an autoregressive model, for the loader of those."""
    changes = {"hidden_size": W, "rope_theta": 5e5} if family == "llada" else {"rope_theta": 1e6}
    tied = bool(CONFIGS[family].get("tie_word_embeddings"))
    write_config(folder, SIZES | OFF | changes | {"model_type": PLAIN[family], "tie_word_embeddings": tied})
    save_file(plain_tensors(family), folder / "model.safetensors")
    return folder


def add_tokenizer(folder: Path, *added: str) -> None:
    """A tokenizer beside a checkpoint; the first of the `added` tokens gets the id V - 5."""
    core = Tokenizer(models.WordLevel({f"word{i}": i for i in range(V - 6)}, unk_token="word0"))
    core.add_special_tokens(["<|im_end|>", *added])
    core.save(str(folder / "tokenizer.json"))
