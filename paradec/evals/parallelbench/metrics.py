"""How ParallelBench scores one answer, and in which order a decode committed its positions.

Every metric is `(prediction, sample) -> float` in 0..1, where 1 is right; here all are 0 or 1. None raises: a text that
cannot be read is a wrong answer. Source: ParallelBench (arXiv 2510.04767). Its grammar checker is LanguageTool, a Java
server; `plain_sentence` stands in for it and is weaker.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A question of a task: the `prompt`, one right answer (`label`; some tasks have many), and the `facts` that the
    metric needs besides, such as the list that was given."""

    prompt: str
    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)


Metric = Callable[[str, Sample], float]


def items(prediction: str) -> list[str]:
    """The list in a text: after the last "[", up to the first "]" after it or the end, split on commas, without quotes
    and blanks. Empty where no "[" is."""
    _, opened, rest = prediction.rpartition("[")
    listing = rest.partition("]")[0].strip() if opened else ""
    return [item.strip("\"' \t\r\n") for item in listing.split(",")] if listing else []


def list_match(prediction: str, sample: Sample) -> float:
    """1.0 for the label's list: for copy, reverse, sort and the tasks that name an index."""
    return float(items(prediction) == items(sample.label))


def shuffle(prediction: str, sample: Sample) -> float:
    """1.0 for the given items, each as often as given, in another order than given."""
    found, given = items(prediction), list(sample.facts["given"])
    return float(sorted(found) == sorted(given) and found != given)


def insert_random(prediction: str, sample: Sample) -> float:
    """1.0 where taking the new word out once leaves the given list."""
    found, word = items(prediction), sample.facts["word"]
    if word not in found:
        return 0.0
    found.remove(word)
    return float(found == list(sample.facts["given"]))


def remove_random(prediction: str, sample: Sample) -> float:
    """1.0 where exactly one of the given items is missing and the others keep their order."""
    found, given = items(prediction), list(sample.facts["given"])
    return float(any(found == given[:i] + given[i + 1 :] for i in range(len(given))))


def replace_random(prediction: str, sample: Sample) -> float:
    """1.0 where putting the new word into the given list, where it is first found, makes the prediction."""
    found, given, word = items(prediction), list(sample.facts["given"]), sample.facts["word"]
    if word not in found or found.index(word) >= len(given):
        return 0.0
    given[found.index(word)] = word
    return float(found == given)


def score_strict(metric: Metric) -> Metric:
    """The metric of a list, for answers that are also quoted exactly: the list that `items` finds must be closed, and
    every item must stand in double quotes with no blanks inside them at either end."""

    def score(prediction: str, sample: Sample) -> float:
        _, opened, rest = prediction.rpartition("[")
        listing, closed, _ = rest.partition("]")
        try:
            quoted = json.loads(opened + listing + closed)
        except (ValueError, RecursionError):  # the latter for braces without end
            return 0.0
        return metric(prediction, sample) if quoted == items(prediction) else 0.0

    return score


def latin(prediction: str, sample: Sample) -> float:
    """1.0 for any Latin square: of the first lines whose cells, split at commas, are the symbols, as many as there are
    symbols are read, and every row and column must hold each symbol once. Other lines are passed over."""
    symbols = set(sample.facts["symbols"])
    lines = [[cell.strip() for cell in line.split(",")] for line in prediction.splitlines()]
    rows = [row for row in lines if set(row) == symbols][: len(symbols)]
    if len(rows) < len(symbols) or any(len(row) != len(symbols) for row in rows):
        return 0.0
    return float(all(set(column) == symbols for column in zip(*rows, strict=True)))


def sudoku(prediction: str, sample: Sample) -> float:
    """1.0 for exactly the label's grid, in the first lines that are as many digits as a row has; others are passed
    over, and so blanks or commas between the digits are wrong."""
    wanted = sample.label.split()
    lines = (line.strip() for line in prediction.splitlines())
    rows = [line for line in lines if re.fullmatch(r"[0-9]+", line) and len(line) == len(wanted[0])]
    return float(rows[: len(wanted)] == wanted)


def words_to_sentence(prediction: str, sample: Sample) -> float:
    """1.0 for a `plain_sentence` with all the words. ParallelBench asks LanguageTool instead, so scores of the two
    cannot be compared."""
    return float(plain_sentence(prediction, sample.facts["words"]))


def plain_sentence(text: str, words: Sequence[str]) -> bool:
    """Whether a text is one line with one sentence in which every word is found, as a part of a word too and in either
    case: it begins with a capital, ends in ".", "!" or "?", and doubles no word in a row.

    It stands in for a grammar checker and is weaker than LanguageTool: agreement, spelling and sense go unseen, so
    "Tree the of, lamp go." passes; and it is stricter in one thing, an abbreviation's dot within is taken for an end.
    """
    text = text.strip()
    if not re.fullmatch(r"[^\W\d_].*[.!?]", text) or not text[0].isupper() or re.search(r"[.!?][\"')]*\s", text):
        return False
    low = text.casefold()
    spoken = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", low)
    doubled = any(one == two for one, two in itertools.pairwise(spoken))
    return not doubled and all(word.casefold() in low for word in words)


@dataclass(frozen=True)
class Order:
    """How far a decode went from left to right: 1 is left to right, -1 right to left, 0 neither. Both in -1..1."""

    kendall: float
    spearman: float


def order(committed: Sequence[int] | np.ndarray) -> Order:
    """Kendall's tau-b and Spearman's correlation (average ranks) between the call that committed each position and the
    position. Both are 0.0 where all positions were committed in one call, and for fewer than two positions."""
    calls = np.asarray(committed, np.int64)
    count = len(calls)
    if count < 2 or (calls == calls[0]).all():
        return Order(0.0, 0.0)
    sign = np.sign(calls[None, :] - calls[:, None])[np.triu_indices(count, 1)]
    kendall = sign.sum() / math.sqrt(len(sign) * np.count_nonzero(sign))
    _, inverse, counts = np.unique(calls, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    spearman = np.corrcoef(rank, np.arange(count))[0, 1]
    return Order(float(kendall), float(spearman))
