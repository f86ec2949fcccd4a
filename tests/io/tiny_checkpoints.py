"""Small checkpoints for the tests of `paradec.io`: the same seeded weights as a hub folder and as a GGUF file."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

golden = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_goldens.py"))
random_weights = golden["random_weights"]

V, D, F, L, H, G, K = 48, 32, 64, 2, 2, 2, 16
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H * G,
    "num_key_value_heads": H,
    "head_dim": K,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 5e4},
    "qwen2": {"tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "qwen3": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "tie_word_embeddings": False,
    },
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": K, "num_hidden_layers": 7, "rope_theta": 1e6},
}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's tensors on the hub."""
    layer = {
        "input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (H * G * K, D), "self_attn.k_proj.weight": (H * K, D),
        "self_attn.v_proj.weight": (H * K, D), "self_attn.o_proj.weight": (D, H * G * K),
        "mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D), "mlp.down_proj.weight": (D, F),
    }  # fmt: skip
    if family == "qwen2":
        layer |= {f"self_attn.{p}_proj.bias": (layer[f"self_attn.{p}_proj.weight"][0],) for p in "qkv"}
    if family in ("qwen3", "gemma3_text"):
        layer |= {"self_attn.q_norm.weight": (K,), "self_attn.k_norm.weight": (K,)}
    if family == "gemma3_text":
        layer |= {"pre_feedforward_layernorm.weight": (D,), "post_feedforward_layernorm.weight": (D,)}
    layers = (SIZES | FAMILIES.get(family, {}))["num_hidden_layers"]
    found = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    found |= {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    return found | ({"lm_head.weight": (V, D)} if family in ("llama", "mistral", "qwen3") else {})


def write_hf(folder: Path, family: str, **changes: Any) -> dict[str, np.ndarray]:
    """Write a hub folder; return its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SIZES | FAMILIES.get(family, {}) | {"model_type": family} | changes
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_weights(shapes(family))
    save_file(tensors, folder / "model.safetensors")
    return tensors


# Names of llama.cpp, spelled out here a second time: a copy of the loader's own table would agree with its mistakes.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
GEMMA_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def gguf_name(name: str, family: str) -> str:
    """A tensor's name in llama.cpp."""
    table = GEMMA_NAMES if family == "gemma3_text" else GGUF_NAMES
    *path, kind = name.split(".")
    if path[:2] != ["model", "layers"]:
        return f"{table['.'.join(path)]}.{kind}"
    return f"blk.{path[2]}.{table[path[-1]]}.{kind}"


def interleave(x: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's converter."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def gguf_tensors(family: str) -> dict[str, np.ndarray]:
    """The family's weights as llama.cpp's converter would store them, unquantized."""
    found = {}
    for name, x in random_weights(shapes(family)).items():
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            x = interleave(x, H * G if "q_proj" in name else H)
        if family == "gemma3_text" and "norm" in name:
            x = x + 1
        found[gguf_name(name, family)] = x
    return found


def write_gguf(
    path: Path,
    family: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a GGUF file with matrices stored as `kind`; return its tensors, unquantized.

    `keys` overrides metadata below the architecture's prefix (None leaves a key out), `extra` adds tensors.
    """
    arch = family.removesuffix("_text")
    config, tensors = SIZES | FAMILIES[family], gguf_tensors(family) | (extra or {})
    metadata = {
        "block_count": config["num_hidden_layers"], "context_length": 128, "embedding_length": D,
        "feed_forward_length": F, "attention.head_count": H * G, "attention.head_count_kv": H,
        "attention.key_length": K, "attention.value_length": K, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": config.get("rope_theta", 1e4), "attention.sliding_window": config.get("sliding_window"),
    }  # fmt: skip
    if scaling := config.get("rope_scaling"):
        metadata["rope.scaling.type"] = scaling.get("type") or scaling["rope_type"]
        metadata["rope.scaling.factor"] = scaling["factor"]
        metadata["rope.scaling.original_context_length"] = scaling.get("original_max_position_embeddings")
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (metadata | (keys or {})).items():
        if isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    for name, x in tensors.items():
        stored = kind if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(x, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
