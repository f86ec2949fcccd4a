"""`paradec lm-eval`: lm-evaluation-harness with `--model paradec` in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def lm_eval(words: Sequence[str]) -> int:
    """Run the harness's own command with these words; its options are its own (`paradec lm-eval run --help`).

    Raises `ResourceError` where it is not installed.
    """
    from paradec.compile_cache import cache_compilations
    from paradec.evals.harness import cli_evaluate

    cache_compilations()
    kept, sys.argv = sys.argv, ["lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = kept
    return 0
