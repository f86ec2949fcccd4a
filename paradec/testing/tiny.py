"""Tiny random models whose greedy text varies, and the ragged prompts that laws are tried on.

A tied random model of the usual size repeats one token for ever, and then every drafter looks right. Untied heads and
sharp attention (or a fresh state) keep the text moving; `laws.varied` asserts it.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from paradec import params
from paradec.models.diagonal import Diagonal
from paradec.models.mixer import Mixer
from paradec.models.recurrent import RecurrentLM
from paradec.models.tabular import ConditionalTable
from paradec.models.transformer import Transformer
from paradec.types import Prompt, Spec

LENGTHS = (21, 1, 2, 13, 17)  # a prompt of one token has no prefill at all, one of two reads one row


def drawn(specs: PyTree, seed: int) -> PyTree:
    """Parameters as `params.init` would make them, but numpy's random numbers: jax compiles the draw of every other
    tree of shapes anew, which takes longer than most tests of a tiny model. (`jnp.asarray` compiles a copy of each.)"""

    def leaf(path: tuple, spec: Spec) -> Array:
        if isinstance(spec.init, str):
            return jax.device_put(np.full(spec.shape, {"ones": 1, "zeros": 0}[spec.init], spec.dtype))
        normal = np.random.default_rng([seed, zlib.crc32(params.name(path).encode())]).standard_normal(spec.shape)
        return jax.device_put((spec.init * normal).astype(np.float32).astype(spec.dtype))

    return jax.tree.map_with_path(leaf, specs, is_leaf=params.is_spec)


def tiny_transformer(seed: int = 0, **overrides: Any) -> tuple[Transformer, PyTree]:
    """A two-layer transformer with grouped queries, and weights. `overrides` are fields of `Transformer`."""
    sizes = dict(vocab_size=97, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48)
    model = Transformer(**(sizes | dict(tied=False, query_scale=1.0) | overrides))
    return model, drawn(model.specs(), seed)


def tiny_recurrent(*pattern: Mixer, seed: int = 2, **overrides: Any) -> tuple[RecurrentLM, PyTree]:
    """Two repeats of a pattern of mixers, and weights. `overrides` are fields of `RecurrentLM`."""
    sizes = dict(vocab_size=97, width=32, pattern=pattern, repeats=2, mlp_width=48, tied=False)
    model = RecurrentLM(**(sizes | overrides))
    return model, drawn(model.specs(), seed)


def tiny_recurrence(seed: int = 2, **overrides: Any) -> tuple[RecurrentLM, PyTree]:
    """Two layers of a gated diagonal recurrence, and weights."""
    return tiny_recurrent(Diagonal(), seed=seed, **overrides)


def tiny_table(seed: int = 0, **overrides: Any) -> tuple[ConditionalTable, PyTree]:
    """A table over four tokens and contexts of two, and its logits. `overrides` are fields of `ConditionalTable`."""
    model = ConditionalTable(**(dict(vocab_size=4, order=2) | overrides))
    return model, drawn(model.specs(), seed)


def ragged_prompts(seed: int, vocab: int, lengths: tuple[int, ...] = LENGTHS, width: int | None = None) -> Prompt:
    """Random prompts of these lengths, padded to `width` with random tokens: only lengths may say what is text."""
    shape = (len(lengths), max(lengths) + 3 if width is None else width)
    token = np.random.default_rng(seed).integers(vocab, size=shape)  # numpy: jax would compile each shape
    return Prompt(*jax.device_put((token.astype(np.int32), np.asarray(lengths, np.int32))))
