"""Unmasking rules and the settings each is turned through, so that they can be compared at equal quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paradec.errors import UnknownName

_QUOTAS = (1, 2, 3, 4, 6, 8)
_BARS = (0.999, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4, 0.2, 0.0)
_SURE = ((0.999, 0.99), (0.99, 0.97), (0.98, 0.96), (0.98, 0.95), (0.97, 0.93), (0.95, 0.9), (0.95, 0.8))
_PAIRS = (*_SURE, (0.9, 0.7), (0.9, 0.6), (0.9, 0.4), (0.8, 0.5), (0.8, 0.3), (0.6, 0.2), (0.5, 0.0))
_EASY = ((0.98, 1.0), (0.95, 1.0), (0.9, 1.0), (0.8, 1.0), (0.6, 1.0), (0.2, 1.0))
_CALM = ((0.99, 0.1), (0.9, 0.001), (0.9, 0.01), (0.7, 0.01), (0.6, 0.1), (0.4, 0.3), *_EASY)
_BUDGETS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.6, 1.0, 1.6, 2.0, 3.0, 4.0, 9.0)

SWEEPS: Mapping[str, tuple[str, Sequence[dict[str, Any]]]] = {
    "random": ("quota", [{"per_call": k, "score": "random"} for k in _QUOTAS]),
    "quota": ("quota", [{"per_call": k} for k in _QUOTAS]),
    "margin": ("quota", [{"per_call": k, "score": "margin"} for k in _QUOTAS]),
    "threshold": ("threshold", [{"tau": t} for t in _BARS]),
    "factor": ("factor", [{"f": f} for f in (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 1.6, 2.5, 4.0, 9.0)]),
    "entropy": ("entropy", [{"delta": d} for d in _BUDGETS if d <= 3]),
    "eb": ("eb", [{"gamma": g} for g in _BUDGETS]),
    "klass": ("klass", [{"tau": t, "kl": k} for t, k in _CALM]),
    "hierarchical": ("hierarchical", [{"tau": t, "low": low} for t, low in _PAIRS]),
    "local_leap": ("local_leap", [{"kappa": k, "tau": t} for k, t in _PAIRS]),
    "wino": ("wino", [{"tau": t} for t in (0.99, 0.98, 0.95, 0.93, 0.9, 0.8, 0.6, 0.4, 0.2)]),
    "credit": ("credit+threshold", [{"tau": t} for t in _BARS]),
    "prophet": ("prophet", [{"early": 7.5 * s, "mid": 5.0 * s, "late": 2.5 * s} for s in (4.0, 2.0, 1.0, 0.5, 0.2)]),
    "freedave": ("freedave", [{"drafts": n} for n in (1, 4, 8)]),
    "threshold+freedave": ("threshold+freedave", [{"tau": t} for t in _BARS]),
}
"""A name for each sweep, the parts as `compose` takes them, and their options from careful to bold."""


def settings(rule: str, length: int) -> tuple[str, list[dict[str, Any]]]:
    """The parts of a rule, and those of its settings that make sense for answers of `length` tokens.

    Raises `UnknownName` for a rule that is not in `SWEEPS`.
    """
    if rule not in SWEEPS:
        raise UnknownName("rule to sweep", rule, SWEEPS)
    names, every = SWEEPS[rule]
    return names, [options for options in every if options.get("per_call", 1) <= length]


def named(options: Mapping[str, Any]) -> str:
    """Options as a reader sees them: plain numbers only."""
    return ", ".join(f"{key}={value:g}" for key, value in options.items() if isinstance(value, (int, float)))
