"""Models of others: a linen and an nnx transformer, a function, and a cache that a module brings, through the laws."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import paradec
from paradec import params as trees
from paradec.bridge import TokenCache, from_function, from_linen, from_nnx
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.lookahead import Lookahead
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.sampling import sampling
from paradec.decode.speculative import speculative
from paradec.errors import InputError
from paradec.testing import laws, model_laws, ragged_prompts, tiny_transformer
from paradec.testing.drafters import RandomTree, TapReader
from paradec.testing.mutants import NoCompaction, SiblingsSee
from paradec.types import Model, Rows

VOCAB, WIDTH, HEADS, LONGEST, SLOTS = 97, 32, 4, 160, 128
PROMPT = ragged_prompts(1, VOCAB, width=SLOTS)
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

    @nn.compact
    def __call__(self, token, deterministic=False):
        x = nn.Embed(VOCAB, WIDTH, embedding_init=LOUD)(token)
        x = x + nn.Embed(LONGEST, WIDTH, embedding_init=LOUD)(jnp.arange(token.shape[1]))[None]
        for _ in range(2):
            x = LinenBlock(self.causal)(x, deterministic)
        return nn.Dense(VOCAB, kernel_init=LOUD)(nn.LayerNorm()(x)), jnp.zeros(3)


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
DRAFTERS = {
    "ar": lambda model, text: NoDraft(),
    "lookup": lambda model, text: PromptLookup(num_draft=4, max_ngram=3, min_ngram=1),
    "jacobi": lambda model, text: Jacobi(window=5),
    "lookahead": lambda model, text: Lookahead(ngram=3, window=4, guesses=3, pool=32),
    "tree": lambda model, text: RandomTree(text, VOCAB),
    "draft": lambda model, text: DraftModel(model=model, num_draft=3),
}


def method(model, name, text=None):
    return speculative(model, DRAFTERS[name](model, text), eos=(-1, -2))


def own_loop(logits, rows, new):
    """Greedy text of the module itself, one token after the other, one row after the other."""
    best = jax.jit(lambda row: jnp.argmax(logits(row[None])[0], axis=-1))
    texts = []
    for row in rows:
        row = np.pad(row, (0, new))
        for at in range(len(row) - new, len(row)):
            row[at] = best(jnp.asarray(np.pad(row, (0, SLOTS - len(row)))))[at - 1]
        texts.append(row)
    return texts


def test_is_a_model():
    for make in MODELS.values():
        model, params = make()
        assert isinstance(model, Model) and model.vocab_size == VOCAB and model.dtype == "float32"
        specs = model.specs()
        assert jax.tree.structure(params) == jax.tree.structure(specs, is_leaf=trees.is_spec)
        jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype) or pytest.fail(str(s)), params, specs)
    linen_names = [trees.name(path) for path, _ in jax.tree.leaves_with_path(linen()[1])]
    assert "params/LinenBlock_0/Dense_0/kernel" in linen_names
    nnx_names = [trees.name(path) for path, _ in jax.tree.leaves_with_path(recomputing()[1])]
    assert "blocks/0/qkv/kernel" in nnx_names and "embed/embedding" in nnx_names
    assert not [name for name in nnx_names if "rngs" in name or "head" in name], "a tied table stands once"


@pytest.mark.parametrize("name", ["lookup", "jacobi", "lookahead"])
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_text_is_that_of_the_modules_own_argmax_loop(kind, name):
    model, params = MODELS[kind]()
    module, variables = linen_parts()
    of_linen = lambda token: module.apply(variables, token, deterministic=True)[0]
    evaluated = nnx.clone(nnx_module())
    evaluated.eval()
    logits = of_linen if kind == "linen" else evaluated
    rows = [np.asarray(PROMPT.token[b, :n]) for b, n in enumerate(np.asarray(PROMPT.length))]
    state = laws.decode({"target": params}, method(model, name), PROMPT)
    for b, right in enumerate(own_loop(logits, rows, 40)):
        np.testing.assert_array_equal(state.tokens[b, : len(right)], right)
    laws.varied(state)


SLOW = {("linen", "tree"), ("linen", "draft"), ("nnx", "ar"), ("nnx", "lookup"), ("nnx", "lookahead"), ("nnx", "tree")}


@pytest.mark.parametrize("kind,name", [(kind, name) for kind in MODELS for name in DRAFTERS])
def test_exact_in_every_trial(kind, name):
    model, params = MODELS[kind]()
    params = {"target": params, "draft": jax.tree.map(lambda x: x * np.float32(0.98), params)}
    given = functools.partial(method, model, name) if name == "tree" else method(model, name)
    states = laws.exactness(model, params, given, PROMPT)
    laws.varied(states["greedy"])
    rate = lambda state: float((state.length - state.prompt).sum() / state.calls.sum())
    assert name == "ar" or max(map(rate, states.values())) > 1
