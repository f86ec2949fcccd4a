"""From a name to a language model: resolve, read weights, read tokenizer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from paradec.errors import InputError
from paradec.io import gguf, hf
from paradec.io.resolve import resolve
from paradec.io.tokenizer import Tokenizer
from paradec.lm import LanguageModel

DTYPES = ("float32", "bfloat16", "float16")


def load(name: str, *, dtype: str = "float32", progress: bool = True) -> LanguageModel:
    """The language model of that name: a preset (`paradec models`), a folder, a .gguf file or a hub id.

    Weights are converted to `dtype` ("float32", "bfloat16" or "float16"); `progress` shows downloads on stderr.
    Raises a `ParadecError` that says what to do where the name is unknown, a file is damaged, or the network is
    needed and missing.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; {dtype!r} was given.")
    source = resolve(name, quiet=not progress)
    if source.kind == "gguf":
        model, weights = gguf.load_gguf(source.path, dtype=dtype)
        tokenizer = Tokenizer.from_gguf(gguf.read_metadata(source.path))
    else:
        model, weights = hf.load_hf(source.path, dtype=dtype)
        tokenizer = Tokenizer.from_folder(source.path)
    return LanguageModel(name, dataclasses.replace(model, dtype=dtype), jax.tree.map(jnp.asarray, weights), tokenizer)
