"""paradec: decode, train and compare sequence models that produce many tokens at once.

import paradec
lm = paradec.load("smollm2-135m")
print(lm.generate("Name three colours.", method="prompt_lookup")[0].text)
report = paradec.compare(lm, ["Name three colours."], ["ar", "jacobi"])
"""

from paradec.catalog import METHODS, build
from paradec.comparison import Comparison, compare
from paradec.decode.loop import run, start, stream
from paradec.decode.speculative import Speculative, speculative
from paradec.errors import ParadecError
from paradec.lm import Generation, LanguageModel
from paradec.loading import load
from paradec.models.transformer import Transformer
from paradec.types import DecodeState, Model, Prompt, Tree
from paradec.viz.trace import Trace

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "Comparison",
    "DecodeState",
    "Generation",
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
    "load",
    "run",
    "speculative",
    "start",
    "stream",
]
