"""From a name to a language model: resolve, read weights, read tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

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

    Weights are converted to `dtype` ("float32", "bfloat16" or "float16"); `progress` shows downloads and reading on
    stderr. Raises a `ParadecError` that says what to do where the name is unknown, a file is damaged, or the network
    is needed and missing.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; {dtype!r} was given.")
    source = resolve(name, quiet=not progress)
    track = partial(bar, label=f"Loading {name}") if progress else iter
    if source.kind == "gguf":
        model, weights = gguf.load_gguf(source.path, dtype, track)
        tokenizer = Tokenizer.from_gguf(gguf.read_metadata(source.path))
    else:
        model, weights = hf.load_hf(source.path, dtype, track)
        tokenizer = Tokenizer.from_folder(source.path)
    return LanguageModel(name, model, jax.tree.map(jnp.asarray, weights), tokenizer)


def bar(names: Sequence[str], label: str) -> Iterable[str]:
    """A progress bar over tensors on stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(names, label, console=console, transient=True, disable=not console.is_terminal)
