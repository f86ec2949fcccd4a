"""LLaDA's and Fast-dLLM's samplers, slowly, in NumPy and for one row, from their published procedures.

Nothing here is shared with the engine: it reads a weight tree and knows no window, no ragged batch and no mask algebra.
"""

import numpy as np


class NumpyTransformer:
    """A Llama block stack that sees both ways, float64. Rotary halves, grouped queries, SwiGLU, no biases."""

    def __init__(self, model, weights):
        self.m = model
        tree = lambda x: np.asarray(x, np.float64)
        b = weights.blocks
        self.embed, self.head, self.norm = tree(weights.embed), tree(weights.head), tree(weights.norm)
        self.layers = [
            {n: tree(getattr(b, n)[i]) for n in ("attn_norm", "qkv", "out", "mlp_norm", "gate_up", "down")}
            for i in range(model.num_layers)
        ]

    def rms(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.m.norm_eps) * w

    def turn(self, x, position):  # "T H K"
        half = x.shape[-1] // 2
        angle = position[:, None] * self.m.rope.theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def run(self, token, position, store=None, at=None):
        """Logits of these rows, and every layer's keys and values: of `store` with rows `at` replaced, if given."""
        x, kept = self.embed[token], []
        for i, w in enumerate(self.layers):
            h = self.rms(x, w["attn_norm"])
            qkv = np.einsum("td,dhgk->thgk", h, w["qkv"])
            G = qkv.shape[2] - 2
            q = np.stack([self.turn(qkv[:, :, g], position) for g in range(G)], 2)  # "T H G K"
            k, v = self.turn(qkv[:, :, G], position), qkv[:, :, G + 1]
            if store is not None:
                old_k, old_v = (y.copy() for y in store[i])
                old_k[at], old_v[at] = k, v
                k, v = old_k, old_v
            kept.append((k, v))
            score = np.einsum("thgk,shk->hgts", q, k) * self.m.scale
            p = np.exp(score - score.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = x + np.einsum("hgts,shk,hgkd->td", p, v, w["out"])
            h = self.rms(x, w["mlp_norm"])
            gate, up = h @ w["gate_up"][0], h @ w["gate_up"][1]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"]
        return self.rms(x, self.norm) @ self.head.T, kept


def quota_rule(steps):
    plan = {}

    def choose(conf, masked, step, block):
        n = plan.setdefault(block, masked.sum())
        k = n // steps + (1 if step < n % steps else 0)
        order = sorted(np.flatnonzero(masked), key=lambda i: (-conf[i], i))
        return order[:k]

    return choose


def threshold_rule(tau):
    def choose(conf, masked, step, block):
        where = np.flatnonzero(masked)
        best = max(where, key=lambda i: (conf[i], -i))
        return [i for i in where if conf[i] >= tau or i == best]

    return choose


def factor_rule_as_published(f):
    def choose(conf, masked, step, block):
        order = sorted(np.flatnonzero(masked), key=lambda i: (-conf[i], i))
        top = 0  # the index at which the scan stops; the first always passes
        for top in range(len(order)):
            if top > 0 and conf[order[top]] < 1 - f / (top + 2):
                break
        return order[: top + 1 if top in (0, len(order) - 1) else top]

    return choose


def generate(model, prompt, new, block, choose, mask, cache="none"):
    """Tokens of the answer, and the call that committed each. One row, greedy, semi-autoregressive blocks."""
    P, S = len(prompt), len(prompt) + new
    x = np.concatenate([prompt, np.full(new, mask)])
    when, calls = np.zeros(S, int), 0
    for b, s in enumerate(range(P, S, block)):
        e, step, store = min(s + block, S), 0, None
        while (x[s:e] == mask).any():
            if cache == "none" or store is None:
                logits, store = model.run(x, np.arange(S))
            else:
                rows = np.arange(s, e) if cache == "dual" else np.arange(s, S)
                some, _ = model.run(x[rows], rows, store, rows)
                logits = np.full((S, some.shape[1]), -np.inf)
                logits[rows] = some
            calls += 1
            logits = logits.copy()
            logits[:, mask] = -np.inf
            p = np.exp(logits[s:e] - logits[s:e].max(-1, keepdims=True))
            conf, best = p.max(-1) / p.sum(-1), p.argmax(-1)
            for i in choose(conf, x[s:e] == mask, step, b):
                x[s + i], when[s + i] = best[i], calls
            step += 1
    return x[P:], when[P:], calls
