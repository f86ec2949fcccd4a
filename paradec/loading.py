"""From a name to a language model: resolve, read weights, read tokenizer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from paradec.console import say, track
from paradec.errors import InputError
from paradec.io import gguf, hf
from paradec.io.diffusion_gemma import read_denoising
from paradec.io.generation_config import read_defaults
from paradec.io.names import check_dtype
from paradec.io.resolve import resolve
from paradec.io.tokenizer import Tokenizer
from paradec.lm import LanguageModel
from paradec.models.diffusion_gemma import DiffusionGemma


def load(
    name: str,
    *,
    dtype: str = "float32",
    progress: bool = True,
    mask_id: int | None = None,
    block: int | None = None,
    check: bool = False,
) -> LanguageModel:
    """The language model of that name: a preset (`paradec models`), a folder, a .gguf file or a hub id.

    Weights are converted to `dtype` ("float32", "bfloat16" or "float16"); `progress` shows downloads and reading on
    stderr; `mask_id` and `block` complete the config.json of a diffusion model (see `hf.load_hf`), and `check` tries
    whether such a model sees and speaks of the positions that its config declares. Raises a `ParadecError` that says
    what to do where the name is unknown, a file is damaged, or the network is needed and missing.
    """
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
    own = {"renoise": read_denoising(source.path)} if isinstance(model, DiffusionGemma) else {}
    lm = LanguageModel(name, model, jax.tree.map(jnp.asarray, weights), tokenizer, defaults, method_args=own)
    if check:
        check_checkpoint(lm)
    return lm


def check_checkpoint(lm: LanguageModel) -> None:
    """Raise `WeightsError` where a diffusion model does not see what it declares, or speaks of the token before or
    after the one it declares. Other models have nothing to declare."""
    from paradec.models.block_diffusion import BlockDiffusion
    from paradec.testing.checkpoint_laws import check_reach, check_shift

    if isinstance(lm.model, BlockDiffusion):
        check_reach(lm.model, lm.params)
        text = "The sun rises in the east and sets in the west. Water freezes at zero degrees and boils at one hundred."
        try:
            ids = lm.tokenizer.encode(text)
        except InputError:  # a vocabulary of its own, in which nothing can be said that all models know
            return
        check_shift(lm.model, lm.params, np.asarray([ids], np.int32))


def load_tokenizer(name: str, *, progress: bool = True) -> Tokenizer:
    """The tokenizer alone of the language model of that name; see `load`."""
    source = resolve(name, quiet=not progress)
    if source.kind == "gguf":
        return Tokenizer.from_gguf(gguf.read_metadata(source.path))
    return Tokenizer.from_folder(source.path)
