"""Write goldens.npz: what transformers computes for small models of every family, checked later without torch.

    python tests/golden/make_goldens.py

Only configurations, tensor shapes and logits are stored. Weights are drawn again from a seed, by `random_weights`.
The tests import this file for its cases; torch and transformers are needed only to run `reference`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).with_name("goldens.npz")
LENGTH = 20
SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16}
YARN_EXACT = YARN | {"truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5}
GROWING = YARN | {  # queries grow from position 8 on, twice within the text
    "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.7,
}  # fmt: skip
GEMMA: dict[str, Any] = {"head_dim": 16, "sliding_window": 6}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

# Model type, and what differs from SMALL. Windows are shorter than the text, so they matter.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "llama_tied_bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16}),
    "llama_linear": ("llama", {"rope_parameters": LINEAR}),
    "llama_yarn": ("llama", {"rope_parameters": YARN, "head_dim": 16}),
    "llama_yarn_exact": ("llama", {"rope_parameters": YARN_EXACT, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral_unlimited": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "ministral3": ("ministral3", {"rope_parameters": GROWING, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3": ("gemma3_text", GEMMA | {"query_pre_attn_scalar": 20, "layer_types": ALTERNATING}),
    "gemma3_scaled": (
        "gemma3_text",
        GEMMA | {"num_hidden_layers": 7, "query_pre_attn_scalar": 16, "rope_parameters": GEMMA_ROPE},
    ),
}


def tokens() -> np.ndarray:
    """The two rows of token ids that every case reads."""
    return np.random.default_rng(1).integers(0, SMALL["vocab_size"], (2, LENGTH), dtype=np.int32)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded weights for the tensors of a checkpoint: norms near 1, large biases, matrices that make text matter.

    The bias of the output projection is 0: the one tensor of these families that paradec does not have.
    """
    rng, weights = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        x = rng.standard_normal(shapes[name], dtype=np.float32)
        if name.endswith("o_proj.bias"):
            x = np.zeros_like(x)
        elif x.ndim == 1:
            x = 0.3 * x + ("norm" in name)
        elif "embed" in name:
            x = 0.25 * x
        else:
            x = 1.5 * x / np.sqrt(x.shape[-1])
        weights[name] = np.asarray(x, np.float32)
    return weights


def reference(case: str) -> Any:
    """The transformers model of a case, in float32, with its seeded weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, changes = CASES[case]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | changes)), dtype=torch.float32)
    weights = random_weights({name: tuple(p.shape) for name, p in model.named_parameters()})
    model.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()}, strict=False)
    return model.eval()


def logits(model: Any, token: np.ndarray) -> np.ndarray:
    """What a transformers model says about each row of tokens."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(token.astype(np.int64))).logits.float().numpy()


def main() -> None:
    """Write goldens.npz."""
    stored: dict[str, Any] = {}
    for case in CASES:
        model = reference(case)
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        stored[f"{case}.logits"] = logits(model, tokens())
        stored[f"{case}.config"] = json.dumps({"config": model.config.to_diff_dict(), "shapes": shapes})
    np.savez_compressed(GOLDENS, **stored)
    print(f"{GOLDENS.name}: {len(CASES)} cases, {GOLDENS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
