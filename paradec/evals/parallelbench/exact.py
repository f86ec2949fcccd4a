"""Unmasking rules on exact denoisers: what each pays in accuracy for its tokens a call, beside what theory says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from paradec.decode.unmasking.compose import compose
from paradec.evals.answers import bare, filled
from paradec.evals.parallelbench import theory
from paradec.evals.sweeps import named, settings


@dataclasses.dataclass(frozen=True)
class Point:
    """One rule at one setting on one operation. `theory` is the closed form where there is one."""

    operation: str
    rule: str
    setting: str
    accuracy: float
    error: float  # standard deviation of `accuracy`
    tokens_per_call: float
    theory: float | None


def sweep(
    operations: Iterable[str] = ("copy", "replace", "shuffle", "insert", "remove"),
    rules: Iterable[str] = ("random", "threshold", "factor", "entropy", "eb"),
    *,
    items: int = 6,
    decodes: int = 2000,
    batch: int = 250,
    temperature: float = 1.0,
    seed: int = 0,
    told: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Decode every operation on `items` items with every rule and setting, `decodes` times each.

    `told` hears of each point as it is measured. Raises `UnknownName` for a rule that is not in `SWEEPS`, and what
    `theory.answers` and `compose` raise.
    """
    points = []
    for operation in operations:
        for rule in rules:
            names, every = settings(rule, theory.answers(operation, items).shape[1])
            for options in every:
                points.append(_measure(operation, rule, names, options, items, decodes, batch, temperature, seed))
                told(points[-1])
    return points


def _measure(
    operation: str, rule: str, names: str, options: dict[str, Any], items: int, decodes: int, batch: int,
    temperature: float, seed: int,
) -> Point:  # fmt: skip
    model, texts = theory.table(operation, items)
    valid, length = {tuple(t) for t in np.asarray(texts.text).tolist()}, texts.text.shape[1]
    method, end = compose(model, names, options), np.full(batch, length, np.int32)
    right = calls = made = 0
    for first in range(0, decodes, batch):
        rows = range(first, first + batch)
        state = filled(method, texts, bare(batch), end, length, temperature=temperature, seed=seed, rows=rows)
        right += sum(tuple(text) in valid for text in np.asarray(state.tokens).tolist())
        calls, made = calls + int(state.calls.sum()), made + batch
    p = right / made
    wanted = _theory(operation, items, options) if rule == "random" and temperature == 1 else None
    return Point(operation, rule, named(options), p, math.sqrt(p * (1 - p) / made), made * length / calls, wanted)


def _theory(operation: str, items: int, options: dict[str, Any]) -> float | None:
    try:
        return theory.accuracy(operation, items, options["per_call"])
    except ValueError:
        return None
