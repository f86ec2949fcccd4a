"""paradec: decode, train and compare sequence models that produce many tokens at once.

import paradec
lm = paradec.load("smollm2-135m")
print(lm.generate("Name three colours.", method="prompt_lookup")[0].text)
report = paradec.compare(lm, ["Name three colours."], ["ar", "jacobi"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paradec.answers import converse
    from paradec.catalog import SYSTEMS
    from paradec.comparison import Comparison, Interrupted, compare
    from paradec.composition import build, compose
    from paradec.decode.loop import run, start, stream
    from paradec.decode.speculative import Speculative, speculative
    from paradec.errors import ParadecError
    from paradec.lm import Generation, LanguageModel
    from paradec.loading import load
    from paradec.models.transformer import Transformer
    from paradec.trace import Trace
    from paradec.types import DecodeState, Model, Prompt, Tree

__version__ = "0.1.0"
__all__ = [
    "SYSTEMS",
    "Comparison",
    "DecodeState",
    "Generation",
    "Interrupted",
    "LanguageModel",
    "Model",
    "ParadecError",
    "Prompt",
    "Speculative",
    "Trace",
    "Transformer",
    "Tree",
    "build",
    "compare",
    "compose",
    "converse",
    "load",
    "run",
    "speculative",
    "start",
    "stream",
]
_HOMES = {
    "answers": ("converse",),
    "catalog": ("SYSTEMS",),
    "composition": ("build", "compose"),
    "comparison": ("Comparison", "Interrupted", "compare"),
    "decode.loop": ("run", "start", "stream"),
    "decode.speculative": ("Speculative", "speculative"),
    "errors": ("ParadecError",),
    "lm": ("Generation", "LanguageModel"),
    "loading": ("load",),
    "models.transformer": ("Transformer",),
    "types": ("DecodeState", "Model", "Prompt", "Tree"),
    "trace": ("Trace",),
}
"""Names come from their modules when they are first asked for: a command line that is told to stop need not wait for
imports that take seconds."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"paradec.{home}"), name)
            return value
    raise AttributeError(f"module 'paradec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
