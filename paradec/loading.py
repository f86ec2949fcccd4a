"""From a name to a language model: resolve, read weights, read tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from paradec.io import gguf, hf
from paradec.io.names import check_dtype
from paradec.io.resolve import Source, resolve
from paradec.io.tokenizer import Tokenizer
from paradec.lm import LanguageModel


def load(name: str, *, dtype: str = "float32", progress: bool = True) -> LanguageModel:
    """The language model of that name: a preset (`paradec models`), a folder, a .gguf file or a hub id.

    Weights are converted to `dtype` ("float32", "bfloat16" or "float16"); `progress` shows downloads and reading on
    stderr. Raises a `ParadecError` that says what to do where the name is unknown, a file is damaged, or the network
    is needed and missing.
    """
    check_dtype(dtype)
    source = resolve(name, quiet=not progress)
    track = partial(bar, label=f"Loading {name}") if progress else iter
    read = gguf.load_gguf if source.kind == "gguf" else hf.load_hf
    model, weights = read(source.path, dtype, track)
    return LanguageModel(name, model, jax.tree.map(jnp.asarray, weights), _tokenizer(source))


def load_tokenizer(name: str, *, progress: bool = True) -> Tokenizer:
    """The tokenizer alone of the language model of that name; see `load`."""
    return _tokenizer(resolve(name, quiet=not progress))


def _tokenizer(source: Source) -> Tokenizer:
    if source.kind == "gguf":
        return Tokenizer.from_gguf(gguf.read_metadata(source.path))
    return Tokenizer.from_folder(source.path)


def bar(names: Sequence[str], label: str) -> Iterable[str]:
    """A progress bar over tensors on stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(names, label, console=console, transient=True, disable=not console.is_terminal)
