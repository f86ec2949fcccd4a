"""The published diffusion transformer, slowly: from tensors under their published names to logits, in float64."""

from __future__ import annotations

import math

import numpy as np

V, D, L, H, C, FREQUENCIES = 97, 24, 2, 3, 6, 256
K = D // H
Tensors = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, as the published modules declare them."""
    top = {
        "vocab_embed.embedding": (V, D), "sigma_map.mlp.0.weight": (C, FREQUENCIES), "sigma_map.mlp.0.bias": (C,),
        "sigma_map.mlp.2.weight": (C, C), "sigma_map.mlp.2.bias": (C,), "rotary_emb.inv_freq": (K // 2,),
        "output_layer.norm_final.weight": (D,), "output_layer.linear.weight": (V, D), "output_layer.linear.bias": (V,),
        "output_layer.adaLN_modulation.weight": (2 * D, C), "output_layer.adaLN_modulation.bias": (2 * D,),
    }  # fmt: skip
    layer = {
        "norm1.weight": (D,), "attn_qkv.weight": (3 * D, D), "attn_out.weight": (D, D), "norm2.weight": (D,),
        "mlp.0.weight": (4 * D, D), "mlp.0.bias": (4 * D,), "mlp.2.weight": (D, 4 * D), "mlp.2.bias": (D,),
        "adaLN_modulation.weight": (6 * D, C), "adaLN_modulation.bias": (6 * D,),
    }  # fmt: skip
    top |= {f"blocks.{i}.{name}": shape for i in range(L) for name, shape in layer.items()}
    return {f"backbone.{name}": shape for name, shape in top.items()}


def published(seed: int = 0, sharp: float = 1.0) -> Tensors:
    """Random weights, nothing at a neutral start. With `sharp` above 1 some predictions are confident."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes().items():
        scale = 2.0 if "qkv" in name else sharp if "linear.weight" in name else 1.0
        x = rng.normal(size=shape) * scale / math.sqrt(shape[-1] if len(shape) > 1 else 4)
        found[name] = np.asarray(x + 1 if "norm" in name else x, np.float32)
    found["backbone.rotary_emb.inv_freq"] = np.asarray(10_000.0 ** -(np.arange(0, K, 2) / K), np.float32)
    return found


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def linear(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """`x W^T`, plus the bias where there is one."""
    bias = tensors.get(f"{name}.bias", np.zeros(()))
    return x @ np.float64(tensors[f"{name}.weight"]).T + bias


def condition(tensors: Tensors, sigma: float = 0.0) -> np.ndarray:
    """What the embedding of the noise level tells every layer."""
    half = FREQUENCIES // 2
    angle = sigma * np.exp(-math.log(10_000) * np.arange(half) / half)
    embedded = np.concatenate([np.cos(angle), np.sin(angle)])
    inner = silu(linear(tensors, "backbone.sigma_map.mlp.0", embedded))
    return silu(linear(tensors, "backbone.sigma_map.mlp.2", inner))


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """One head's query or key at a position: its halves are the two coordinates of K/2 planes."""
    angle = position * 10_000.0 ** -(np.arange(0, K, 2) / K)
    a, b = x[: K // 2], x[K // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def attention(qkv: np.ndarray, see: np.ndarray) -> np.ndarray:
    """Head by head and query by query; `qkv` is "T 3D", `see` "T T"."""
    T = len(qkv)
    q, k, v = qkv.reshape(T, 3, H, K).transpose(1, 2, 0, 3)
    out = np.zeros((T, H, K))
    for h, t in np.ndindex(H, T):
        score = np.asarray([turned(q[h, t], t) @ turned(k[h, s], s) / math.sqrt(K) for s in range(T)])
        weight = np.where(see[t], np.exp(score - score[see[t]].max()), 0)
        out[t, h] = weight @ v[h] / weight.sum()
    return out.reshape(T, D)


def forward(tensors: Tensors, token: np.ndarray, see: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    """Logits "T V" of one row of tokens, of which row t sees `see[t]`."""
    c = condition(tensors, sigma)
    x = np.float64(tensors["backbone.vocab_embed.embedding"])[token]
    for i in range(L):
        at = f"backbone.blocks.{i}."
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(linear(tensors, at + "adaLN_modulation", c), 6)
        inner = norm(x, tensors[at + "norm1.weight"]) * (1 + scale_1) + shift_1
        mixed = attention(linear(tensors, at + "attn_qkv", inner), see)
        x = x + gate_1 * linear(tensors, at + "attn_out", mixed)
        inner = linear(tensors, at + "mlp.0", norm(x, tensors[at + "norm2.weight"]) * (1 + scale_2) + shift_2)
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + gate_2 * linear(tensors, at + "mlp.2", inner)
    shift, scale = np.split(linear(tensors, "backbone.output_layer.adaLN_modulation", c), 2)
    x = norm(x, tensors["backbone.output_layer.norm_final.weight"]) * (1 + scale) + shift
    return linear(tensors, "backbone.output_layer.linear", x)
