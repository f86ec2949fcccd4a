"""A tiny DiffusionGemma of known weights: every tensor follows from its name, so that others can make the same."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradec.io.diffusion_gemma import ENTRIES, read_diffusion_gemma
from paradec.io.names import Tensor, load
from paradec.io.tensor_file import write

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 5,
    "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
}  # fmt: skip
CONFIG: dict[str, Any] = {"model_type": "diffusion_gemma", "canvas_length": 6, "text_config": TEXT}
GENERATION: dict[str, Any] = {
    "max_denoising_steps": 9, "t_min": 0.3, "t_max": 0.7, "stability_threshold": 2, "confidence_threshold": 0.25,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.5}, "eos_token_id": [1],
}  # fmt: skip
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
)  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor of the text model, by its name in a checkpoint."""
    D, F, E, R = 32, 48, 4, 16
    found: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (64, D), "model.decoder.norm.weight": (D,),
        "model.decoder.self_conditioning.pre_norm.weight": (D,),
        "model.decoder.self_conditioning.gate_proj.weight": (F, D),
        "model.decoder.self_conditioning.up_proj.weight": (F, D),
        "model.decoder.self_conditioning.down_proj.weight": (D, F),
    }  # fmt: skip
    for i, (kv, size) in enumerate(((2, 8), (2, 8), (1, 16))):
        layer = f"model.decoder.layers.{i}."
        values = {} if i == 2 else {"self_attn.v_proj.weight": (kv * size, D)}
        own = values | {
            "self_attn.q_proj.weight": (4 * size, D), "self_attn.k_proj.weight": (kv * size, D),
            "self_attn.o_proj.weight": (D, 4 * size), "self_attn.q_norm.weight": (size,),
            "self_attn.k_norm.weight": (size,), "mlp.gate_proj.weight": (F, D), "mlp.up_proj.weight": (F, D),
            "mlp.down_proj.weight": (D, F), "router.proj.weight": (E, D), "router.scale": (D,),
            "router.per_expert_scale": (E,), "experts.gate_up_proj": (E, 2 * R, D), "experts.down_proj": (E, D, R),
            "layer_scalar": (1,), **{f"{norm}.weight": (D,) for norm in NORMS},
        }  # fmt: skip
        found |= {layer + name: shape for name, shape in own.items()}
        found[f"model.encoder.language_model.layers.{i}.layer_scalar"] = (1,)
    return found


def filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scrambled counters of uint32, spread over [-1, 1]: vectors near 1, matrices within 0.3, scalars fixed."""
    if name.endswith("layer_scalar"):
        return np.full(shape, 0.9 if ".encoder." in name else 0.8, np.float32)
    u = np.uint32(zlib.crc32(name.encode())) + np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
    u ^= u >> np.uint32(15)
    u *= np.uint32(2246822519)
    u ^= u >> np.uint32(13)
    r = (2 * u.astype(np.float64) / 2**32 - 1).reshape(shape)
    return (1 + 0.5 * r if len(shape) == 1 else 0.3 * r).astype(np.float32)


@cache
def tensors() -> dict[str, np.ndarray]:
    return {name: filled(name, shape) for name, shape in shapes().items()}


@cache
def fixture():
    """The model and its weights, through the table of names."""
    model = read_diffusion_gemma(CONFIG, "config.json")
    held = {name: Tensor(x.shape, "memory", lambda x=x: x) for name, x in tensors().items()}
    return model, jax.tree.map(jnp.asarray, load(model, ENTRIES, held))


@cache
def calm():
    """The fixture with layers that say less than the tokens themselves.

    Blocks end at different steps, and a rounding does not grow fivefold with every call, as it does in the fixture.
    """
    model, w = fixture()
    less = lambda x: x.replace(attn_post_norm=x.attn_post_norm * 0.5, post_norm=x.post_norm * 0.5)
    told = w.conditioning.replace(down=w.conditioning.down * 0.3)
    return model, w.replace(norm=w.norm * 3, conditioning=told, local=less(w.local), full=less(w.full))


def folder(path: Path, held: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A checkpoint on disk. `changes` replace keys of the text_config, or, with "file_" before them, of the file."""
    path.mkdir(parents=True, exist_ok=True)
    top = {key.removeprefix("file_"): value for key, value in changes.items() if key.startswith("file_")}
    inner = {key: value for key, value in changes.items() if not key.startswith("file_")}
    text = {key: value for key, value in (TEXT | inner).items() if value is not ...}
    (path / "config.json").write_text(json.dumps(CONFIG | {"text_config": text} | top))
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    write(path / "model.safetensors", tensors() if held is None else held)
    return path
