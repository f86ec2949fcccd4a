"""What a compiled program costs, without running it and without the accelerator it is for.

    print(explain("prompt_lookup", "llama3-8b", target="v5e:16x16", mesh=(32, 8), batch=64, slots=8192, num_draft=8))

The real TPU compiler runs on an ordinary Linux machine (`pip install 'paradec[aot]'`), so "fits a pod, copies no cache"
is a test and not a hope. Sizes and collectives are facts; `floor_seconds` is a bound; nothing here predicts a time.
"""

from paradec.explain.api import explain
from paradec.explain.request import CHIPS, Chip, Cost, Memory, ProgramRequest, Report

__all__ = ["CHIPS", "Chip", "Cost", "Memory", "ProgramRequest", "Report", "explain"]
