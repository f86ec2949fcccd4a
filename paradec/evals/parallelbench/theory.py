"""What parallel decoding must lose on list operations: the closed forms of ParallelBench's trade-off.

A list of n distinct one-token items is copied, shuffled, or changed at a random place; every valid answer is equally
likely. Settling a set of positions in one call draws them from the product of their marginals, and what that misses is
their conditional total correlation. Source: ParallelBench (arXiv 2510.04767); the forms here were derived anew and are
checked by enumeration and by decoding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from paradec.errors import InputError
from paradec.models.posterior import JointTable, JointTexts

OPERATIONS = ("copy", "reverse", "sort", "replace", "shuffle", "insert", "remove")
"""The last four happen at random places; the others have one answer."""
MOST = 45_000
"""Answers that an exact table may hold; 8 items have 40,320 orders."""
LONGEST = 256
"""Items of a list: a call computes the law of every position over all of them."""


def answers(operation: str, items: int) -> np.ndarray:
    """Every valid answer to the list 0, 1, …, items - 1, "N S". Item `items` is the word to insert or to put in.

    Raises `InputError` for an unknown operation, and where there are no answers, or more than `MOST`.
    """
    least = 2 if operation == "remove" else 1
    if not least <= items <= LONGEST:
        raise InputError(f"{operation} takes {least} to {LONGEST} items; {items} were given.")
    given = list(range(items))
    match operation:
        case "copy" | "sort":
            found = [given]
        case "reverse":
            found = [given[::-1]]
        case "replace":
            found = [[*given[:i], items, *given[i + 1 :]] for i in range(items)]
        case "insert":
            found = [[*given[:i], items, *given[i:]] for i in range(items + 1)]
        case "remove":
            found = [[*given[:i], *given[i + 1 :]] for i in range(items)]
        case "shuffle":
            if math.factorial(items) > MOST:
                raise InputError(f"{items} items have more orders than an exact table holds; shuffle 8 at most.")
            found = list(itertools.permutations(given))
        case _:
            raise InputError(f"There is no operation {operation!r}; there are {', '.join(OPERATIONS)}.")
    return np.asarray(found, np.int32)


def table(operation: str, items: int) -> tuple[JointTable, JointTexts]:
    """The exact denoiser of an operation, whose canvas is the answer alone."""
    texts = answers(operation, items)
    weight = np.full(len(texts), 1 / len(texts), np.float32)
    return JointTable(items + 1), JointTexts(text=jnp.asarray(texts), weight=jnp.asarray(weight))


def total_correlation(texts: np.ndarray) -> float:
    """Of equally likely texts, in nats: the sum of the positions' entropies less the entropy of the whole."""
    total = -math.log(len(texts))
    for column in texts.T:
        p = np.unique(column, return_counts=True)[1] / len(texts)
        total -= float(np.sum(p * np.log(p)))
    return total


def one_step_accuracy(texts: np.ndarray) -> float:
    """How often a draw from the product of the marginals is one of the texts, by enumeration."""
    p = np.ones(len(texts))
    for column in texts.T:
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        p *= (counts / len(texts))[inverse]
    return float(p.sum())


def correlation(operation: str, items: int) -> float:
    """`total_correlation` of an operation's answers in closed form."""
    n = items
    match operation:
        case "copy" | "reverse" | "sort":
            return 0.0
        case "replace":
            return (n - 1) * math.log(n / (n - 1)) if n > 1 else 0.0
        case "shuffle":
            return n * math.log(n) - math.lgamma(n + 1)
        case "insert":
            N = n + 1
            return sum(_entropy((1 / N, (N - i) / N, (i - 1) / N)) for i in range(1, N + 1)) - math.log(N)
        case "remove":
            return sum(_entropy((i / n, 1 - i / n)) for i in range(1, n)) - math.log(n)
    raise ValueError(f"There is no operation {operation!r}; there are {', '.join(OPERATIONS)}.")


def _entropy(law: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in law if p > 0)


def accuracy(operation: str, items: int, per_call: int) -> float:
    """How often committing `per_call` positions a call, in random order, from exact marginals, gives a valid answer.

    Copy, reverse and sort, and one position a call, are always right. Insert and remove: only all at once is known.
    Raises `ValueError` for what has no closed form.
    """
    n, k = items, per_call
    length = {"insert": n + 1, "remove": n - 1}.get(operation, n)
    if operation in ("copy", "reverse", "sort") or k == 1:
        return 1.0
    if operation == "shuffle":
        right = 1.0
        for left in range(n, 0, -k):
            now = min(k, left)
            right *= math.perm(left, now) / left**now
        return right
    if operation == "replace":
        right, none_yet = 0.0, 1.0
        for left in range(n, 0, -k):
            now = min(k, left)
            right += none_yet * (now / left) * (1 - 1 / left) ** (now - 1)
            none_yet *= (1 - 1 / left) ** now
        return right
    if operation in ("insert", "remove") and k >= length:
        N = n + 1 if operation == "insert" else n
        return math.factorial(N - 1) * 2.0 ** (N - 1) / N ** (N if operation == "insert" else N - 1)
    raise ValueError(f"{operation} has a closed form for one position a call and for all {length} at once only.")


def bound(operation: str, items: int, per_call: int) -> float:
    """The least divergence, in nats, of committing `per_call` positions a call in random order: the sum over calls of
    the expected correlation of what is committed together. For shuffle and replace; `accuracy` is at least
    exp(-bound)."""
    n, k, total = items, per_call, 0.0
    if operation == "shuffle":
        return -math.log(accuracy(operation, n, k))
    if operation != "replace":
        raise ValueError(f"{operation} has no bound in closed form; shuffle and replace have.")
    for left in range(n, 0, -k):
        now = min(k, left)
        whole = (
            (now / left) * math.log(left) - (1 - now / left) * math.log(1 - now / left)
            if now < left
            else math.log(left)
        )
        total += (left / n) * (now * _entropy((1 / left, 1 - 1 / left)) - whole)
    return total
