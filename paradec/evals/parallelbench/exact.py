"""Unmasking rules on exact denoisers: what each pays in accuracy for its tokens a call, beside what theory says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from paradec.composition import compose
from paradec.errors import InputError
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
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Point]:
    """Decode every operation on `items` items with every rule and setting, `decodes` times each.

    `told` hears of each point as it is measured, and `track` passes the batches through: for a progress bar. Raises
    `UnknownName` for a rule that is not in `SWEEPS`, and what `theory.answers` and `compose` raise.
    """
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature must be 0 (greedy) or more; {temperature} was given.")
    asked = []
    for operation, rule in itertools.product(operations, rules):
        names, every = settings(rule, theory.answers(operation, items).shape[1])
        asked += [_Setting(operation, rule, names, options, items, temperature, seed) for options in every]
    points, jobs = [], [*itertools.product(range(len(asked)), range(0, decodes, batch))]
    for number, batches in itertools.groupby(track(jobs), lambda job: job[0]):
        points.append(_measure(asked[number], (range(first, first + batch) for _, first in batches)))
        told(points[-1])
    return points


class _Setting(NamedTuple):
    """What one point is measured of."""

    operation: str
    rule: str
    names: str
    options: dict[str, Any]
    items: int
    temperature: float
    seed: int


def _measure(how: _Setting, batches: Iterable[range]) -> Point:
    model, texts = theory.table(how.operation, how.items)
    valid, length = {tuple(t) for t in np.asarray(texts.text).tolist()}, texts.text.shape[1]
    method = compose(model, how.names, how.options)
    right = calls = made = 0
    for rows in batches:
        own = {"temperature": how.temperature, "seed": how.seed, "rows": rows}
        state = filled(method, texts, bare(len(rows)), np.full(len(rows), length, np.int32), length, **own)
        right += sum(tuple(text) in valid for text in np.asarray(state.tokens).tolist())
        calls, made = calls + int(state.calls.sum()), made + len(rows)
    p = right / made
    known = how.rule == "random" and how.temperature == 1
    wanted = _theory(how.operation, how.items, how.options) if known else None
    quality = p, math.sqrt(p * (1 - p) / made), made * length / calls
    return Point(how.operation, how.rule, named(how.options), *quality, wanted)


def _theory(operation: str, items: int, options: dict[str, Any]) -> float | None:
    try:
        return theory.accuracy(operation, items, options["per_call"])
    except ValueError:
        return None
