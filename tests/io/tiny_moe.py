"""Small diffusion checkpoints with experts, tensor by tensor as published ones name them, and what they compute.

Nothing here is shared with the loader: names, shapes and arithmetic are spelled out a second time, in loops.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tiny_checkpoints import random_weights

V, D, L, X, R, F, HEADS, KV = 48, 32, 3, 8, 12, 40, 4, 2
MASK = V - 3
Tensors = dict[str, np.ndarray]
COMMON: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": HEADS, "num_key_value_heads": KV,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    "num_experts": X, "mask_token_id": MASK, "rope_theta": 5e4,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llada_moe": COMMON | {
        "architectures": ["LLaDAMoEModelLM"], "num_experts_per_tok": 3, "expert_intermediate_size": R,
        "dense_intermediate_size": F, "moe_layer_freq": [1] * L, "qk_layernorm": True, "norm_topk_prob": None,
        "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False, "routed_scaling_factor": 1,
        "shared_expert_intermediate_size": None, "router_num_group": None, "router_topk_group": None,
        "partial_rotary_factor": 1, "clip_qkv": None, "attention_bias": False,
    },
    "llada2_moe": COMMON | {
        "architectures": ["LLaDA2MoeModelLM"], "head_dim": 16, "num_experts_per_tok": 3, "moe_intermediate_size": R,
        "intermediate_size": F, "first_k_dense_replace": 1, "num_shared_experts": 2, "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 2.5, "norm_topk_prob": True, "score_function": "sigmoid", "use_qk_norm": True,
        "use_qkv_bias": False, "use_bias": False, "norm_head": False, "partial_rotary_factor": 0.5,
        "moe_router_enable_expert_bias": True,
    },
    "sdar_moe": COMMON | {
        "architectures": ["SDARMoeForCausalLM"], "head_dim": 16, "num_experts_per_tok": 2, "block_size": 4,
        "moe_intermediate_size": R, "intermediate_size": F, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "use_sliding_window": False, "sliding_window": None, "max_window_layers": 48,
    },
}  # fmt: skip


def leading_of(config: dict[str, Any]) -> int:
    """How many layers stand before the first with experts."""
    return (
        config.get("moe_layer_freq", [1]).count(0)
        + config.get("first_k_dense_replace", 0)
        + len(config.get("mlp_only_layers", ()))
    )


def shapes(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors."""
    K = config.get("head_dim", D // HEADS)
    ling = family == "llada2_moe"
    found = {"model.norm.weight": (D,), "lm_head.weight": (V, D)}
    found["model.word_embeddings.weight" if ling else "model.embed_tokens.weight"] = (V, D)
    for i in range(L):
        at = f"model.layers.{i}."
        found |= {at + "input_layernorm.weight": (D,), at + "post_attention_layernorm.weight": (D,)}
        if ling:
            found |= {
                at + "attention.query_key_value.weight": ((HEADS + 2 * KV) * K, D),
                at + "attention.dense.weight": (D, HEADS * K),
                at + "attention.query_layernorm.weight": (K,), at + "attention.key_layernorm.weight": (K,),
            }  # fmt: skip
        else:
            found |= {
                at + "self_attn.q_proj.weight": (HEADS * K, D), at + "self_attn.k_proj.weight": (KV * K, D),
                at + "self_attn.v_proj.weight": (KV * K, D), at + "self_attn.o_proj.weight": (D, HEADS * K),
                at + "self_attn.q_norm.weight": (K,), at + "self_attn.k_norm.weight": (K,),
            }  # fmt: skip
        mlps = {"mlp.": F}
        if i >= leading_of(config):
            mlps = {f"mlp.experts.{e}.": R for e in range(X)}
            found[at + "mlp.gate.weight"] = (X, D)
            if ling:
                found[at + "mlp.gate.expert_bias"] = (X,)
                mlps["mlp.shared_experts."] = R * config["num_shared_experts"]
        for name, width in mlps.items():
            for part, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
                found[f"{at}{name}{part}_proj.weight"] = shape
    return found


def written(folder: Path, family: str, change: Callable[[Tensors], Tensors] = dict, **changes: Any) -> Path:
    """A folder of a family; a change of `...` leaves the key out. `change` sees the tensors."""
    config = {k: v for k, v in (CONFIGS[family] | {"model_type": family} | changes).items() if v is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_weights(shapes(family, CONFIGS[family] | changes))
    save_file(change(loud(tensors)), folder / "model.safetensors")
    return folder


def loud(tensors: Tensors) -> Tensors:
    """Routers that tell tokens apart, so that no choice hangs on rounding."""
    return {name: 2 * x if name.endswith("mlp.gate.weight") else x for name, x in tensors.items()}


class Slow:
    """The model of a folder in NumPy, a token at a time, by the published tensors' own names."""

    def __init__(self, family: str, tensors: Tensors, **changes: Any):
        self.family, self.config = family, CONFIGS[family] | changes
        self.w = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
        self.K = self.config.get("head_dim", D // HEADS)

    def logits(self, token: np.ndarray, block: int) -> np.ndarray:
        """Of one text; a block of 0 is the whole of it."""
        embed = "word_embeddings" if self.family == "llada2_moe" else "embed_tokens"
        x = self.w[f"model.{embed}.weight"][token]
        place = np.arange(len(token)) // (block or len(token))
        for i in range(L):
            at = f"model.layers.{i}."
            x = x + self.attention(at, self.norm(x, at + "input_layernorm"), place[None] <= place[:, None])
            x = x + np.stack([self.mlp(i, row) for row in self.norm(x, at + "post_attention_layernorm")])
        return self.norm(x, "model.norm") @ self.w["lm_head.weight"].T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.w[name + ".weight"]

    def attention(self, at: str, x: np.ndarray, see: np.ndarray) -> np.ndarray:
        if self.family == "llada2_moe":
            heads = (x @ self.w[at + "attention.query_key_value.weight"].T).reshape(len(x), -1, self.K)
            q, k, v = heads[:, :HEADS], heads[:, HEADS : HEADS + KV], heads[:, HEADS + KV :]
            names, out = ("attention.query_layernorm", "attention.key_layernorm"), "attention.dense.weight"
        else:
            each = (x @ self.w[f"{at}self_attn.{part}_proj.weight"].T for part in "qkv")
            q, k, v = (part.reshape(len(x), -1, self.K) for part in each)
            names, out = ("self_attn.q_norm", "self_attn.k_norm"), "self_attn.o_proj.weight"
        q, k = (self.turned(self.norm(part, at + name)) for part, name in zip((q, k), names, strict=True))
        mixed = []
        for h in range(HEADS):
            score = np.where(see, q[:, h] @ k[:, h // (HEADS // KV)].T / np.sqrt(self.K), -np.inf)
            p = np.exp(score - score.max(1, keepdims=True))
            mixed.append(p / p.sum(1, keepdims=True) @ v[:, h // (HEADS // KV)])
        return np.concatenate(mixed, axis=1) @ self.w[at + out].T

    def turned(self, x: np.ndarray) -> np.ndarray:
        n = int(self.K * self.config.get("partial_rotary_factor", 1))
        out = x.copy()
        for p in range(len(x)):
            for i in range(n // 2):
                angle = p / self.config["rope_theta"] ** (2 * i / n)
                a, b = x[p, :, i], x[p, :, i + n // 2]
                out[p, :, i] = a * np.cos(angle) - b * np.sin(angle)
                out[p, :, i + n // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    def swiglu(self, name: str, x: np.ndarray) -> np.ndarray:
        gate, up = (self.w[f"{name}.{part}_proj.weight"] @ x for part in ("gate", "up"))
        return self.w[f"{name}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def mlp(self, layer: int, x: np.ndarray) -> np.ndarray:
        name = f"model.layers.{layer}.mlp"
        if layer < leading_of(self.config):
            return self.swiglu(name, x)
        weights = self.routed(name, x)
        out = sum(weight * self.swiglu(f"{name}.experts.{e}", x) for e, weight in weights.items())
        return out + self.swiglu(f"{name}.shared_experts", x) if self.family == "llada2_moe" else out

    def routed(self, name: str, x: np.ndarray) -> dict[int, float]:
        """A token's experts and their weights."""
        c, logits = self.config, self.w[f"{name}.gate.weight"] @ x
        best = lambda score, among, n: sorted(among, key=lambda e: -score[e])[:n]
        if self.family != "llada2_moe":
            score = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            chosen = best(score, range(X), c["num_experts_per_tok"])
            total = sum(score[e] for e in chosen) if c["norm_topk_prob"] else 1.0
            return {e: score[e] / total for e in chosen}
        score = 1 / (1 + np.exp(-logits))
        merit = score + self.w[f"{name}.gate.expert_bias"]
        members = np.split(np.arange(X), c["n_group"])
        worth = [np.sort(merit[group])[-2:].sum() for group in members]
        allowed = np.concatenate([members[g] for g in best(worth, range(c["n_group"]), c["topk_group"])])
        chosen = best(merit, allowed, c["num_experts_per_tok"])
        total = sum(score[e] for e in chosen)
        return {int(e): c["routed_scaling_factor"] * score[e] / total for e in chosen}
