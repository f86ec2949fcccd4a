"""From a name to a model, its weights and its tokenizer, on the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from paradec.console import say, track
from paradec.errors import InputError
from paradec.io import gguf, hf
from paradec.io.diffusion_gemma import read_denoising
from paradec.io.generation_config import read_defaults, read_policy
from paradec.io.names import check_dtype
from paradec.io.resolve import resolve
from paradec.io.tokenizer import Tokenizer
from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.models.nemotron_diffusion import NemotronDiffusion


class Pretrained(NamedTuple):
    """What a name stands for. `defaults` are the fields of a `Request` that the model's own files ask for."""

    name: str
    model: Any
    params: PyTree
    tokenizer: Tokenizer
    defaults: dict[str, Any]
    method_args: dict[str, dict[str, Any]]
    """Options of methods, by their names, that the model's own files set."""


def read(
    name: str, *, dtype: str = "float32", progress: bool = True, mask_id: int | None = None, block: int | None = None
) -> Pretrained:
    """The model of that name; the arguments and the errors are those of `loading.load`."""
    check_dtype(dtype)
    if progress and dtype != "float32" and jax.default_backend() == "cpu":
        say(f"{dtype} takes half the memory of float32, and on a CPU it computes several times slower.")
    source = resolve(name, quiet=not progress)
    follow = partial(track, label=f"Loading {name}") if progress else iter
    if source.kind == "hf":
        model, weights = hf.load_hf(source.path, dtype, follow, mask_id=mask_id, block=block)
        tokenizer, defaults = Tokenizer.from_folder(source.path), read_defaults(source.path)
    elif mask_id is None and block is None:
        file = gguf.open_gguf(source.path)  # once: its head holds the vocabulary
        model, weights = gguf.load_gguf(file, dtype, follow)
        tokenizer, defaults = Tokenizer.from_gguf(file.metadata), {}
    else:
        raise InputError(f"{name} is a GGUF file, and mask_id and block belong to diffusion models. Leave them out.")
    own = _method_args(source.path, model)
    return Pretrained(name, model, jax.tree.map(jnp.asarray, weights), tokenizer, defaults, own)


def _method_args(folder: Path, model: Any) -> dict[str, dict[str, Any]]:
    """What the generation_config.json of a model says of the rule that it was published with."""
    if isinstance(model, DiffusionGemma):
        return {"renoise": read_denoising(folder)}
    if isinstance(model, NemotronDiffusion):
        rule, options = read_policy(folder, model.block)
        return {rule: options} if options else {}
    return {}


def read_tokenizer(name: str, *, progress: bool = True) -> Tokenizer:
    """The tokenizer alone of the model of that name."""
    source = resolve(name, quiet=not progress)
    if source.kind == "gguf":
        return Tokenizer.from_gguf(gguf.read_metadata(source.path))
    return Tokenizer.from_folder(source.path)
