"""A linen and an nnx transformer, as somebody else would write them, and the models that they become."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from paradec.bridge import TokenCache, from_linen, from_nnx

VOCAB, WIDTH, HEADS, LONGEST = 97, 32, 4, 72
"""Positions are learned: beyond the longest text embeddings are no numbers, in linen and in nnx."""
LOUD = jax.nn.initializers.normal(0.4)  # so that greedy text varies


class LinenBlock(nn.Module):
    causal: bool = True

    @nn.compact
    def __call__(self, x, deterministic):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        attention = nn.MultiHeadDotProductAttention(HEADS, kernel_init=LOUD)
        x = x + nn.Dropout(0.5)(attention(nn.LayerNorm()(x), mask=mask), deterministic=deterministic)
        return x + nn.Dense(WIDTH, kernel_init=LOUD)(nn.gelu(nn.Dense(48, kernel_init=LOUD)(nn.LayerNorm()(x))))


class LinenLM(nn.Module):
    """Learned positions, dropout, an untied head, and logits in a tuple beside something else."""

    causal: bool = True
    vocab: int = VOCAB

    @nn.compact
    def __call__(self, token, deterministic=False):
        x = nn.Embed(self.vocab, WIDTH, embedding_init=LOUD)(token)
        x = x + nn.Embed(LONGEST, WIDTH, embedding_init=LOUD)(jnp.arange(token.shape[1]))[None]
        for _ in range(2):
            x = LinenBlock(self.causal)(x, deterministic)
        return nn.Dense(self.vocab, kernel_init=LOUD)(nn.LayerNorm()(x)), jnp.zeros(3)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        linear = functools.partial(nnx.Linear, kernel_init=LOUD, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, 48), linear(48, WIDTH)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, position, kept):
        """The block on rows at `position`, and its keys and values ("B H S K") with theirs written; None: none kept."""
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(B, T, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        if kept is not None:
            # A window for each row, as real caches are written: it would clamp if positions ran out of the slots.
            window = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=1))
            k, v = (window(old, new, position[:, 0]) for old, new in zip(kept, (k, v), strict=True))
        see = jnp.arange(k.shape[2])[None, None] <= position[:, :, None]
        score = jnp.where(see[:, None], jnp.einsum("bhtk,bhsk->bhts", q, k), -jnp.inf)
        mixed = jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(score, axis=-1), v)
        x = x + self.dropout(self.out(mixed.transpose(0, 2, 1, 3).reshape(B, T, WIDTH)))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x)))), (k, v)


class NnxLM(nnx.Module):
    """Learned positions, a tied head, and a call for new tokens on keys and values stacked over layers."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, embedding_init=LOUD, rngs=rngs)
        self.place = nnx.Embed(LONGEST, WIDTH, embedding_init=LOUD, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = self.embed

    def __call__(self, token):
        position = jnp.broadcast_to(jnp.arange(token.shape[1])[None], token.shape)
        return self.cached(token, position, None)[0]

    def cached(self, token, position, cache):
        x, new = self.embed(token) + self.place(position), []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, position, None if cache is None else (cache["k"][i], cache["v"][i]))
            new.append(kept)
        k, v = (jnp.stack(each) for each in zip(*new, strict=True))
        return self.head.attend(self.norm(x)), {"k": k, "v": v}


def keys(batch, slots):
    return {name: jnp.zeros((2, batch, HEADS, slots, WIDTH // HEADS)) for name in "kv"}


KEYS = TokenCache(keys, NnxLM.cached)


@functools.cache
def linen_parts():
    module = LinenLM()
    return module, jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))


@functools.cache
def linen():
    return from_linen(*linen_parts(), logits=first, max_length=LONGEST)


def first(out):
    return out[0]


@functools.cache
def nnx_module():
    return NnxLM(nnx.Rngs(1))


@functools.cache
def recomputing():
    return from_nnx(nnx_module(), max_length=LONGEST)


@functools.cache
def caching():
    return from_nnx(nnx_module(), max_length=LONGEST, cache=KEYS)


MODELS = {"linen": linen, "nnx": recomputing, "nnx, cached": caching}
