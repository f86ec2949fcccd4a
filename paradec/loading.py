"""From a name to a language model, and whether a checkpoint is what it declares."""

from __future__ import annotations

import numpy as np

from paradec.errors import InputError
from paradec.lm import LanguageModel
from paradec.pretrained import read


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
    found = read(name, dtype=dtype, progress=progress, mask_id=mask_id, block=block)
    lm = LanguageModel(**found._asdict())
    if check:
        check_checkpoint(lm)
    return lm


def check_checkpoint(lm: LanguageModel) -> None:
    """Raise `WeightsError` where a diffusion model does not see what it declares, or speaks of the token before or
    after the one it declares. Other models have nothing to declare."""
    from paradec.io.checkpoint_laws import check_reach, check_shift
    from paradec.models.block_diffusion import BlockDiffusion

    if isinstance(lm.model, BlockDiffusion):
        check_reach(lm.model, lm.params)
        text = "The sun rises in the east and sets in the west. Water freezes at zero degrees and boils at one hundred."
        try:
            ids = lm.tokenizer.encode(text)
        except InputError:  # a vocabulary of its own, in which nothing can be said that all models know
            return
        check_shift(lm.model, lm.params, np.asarray([ids], np.int32))
