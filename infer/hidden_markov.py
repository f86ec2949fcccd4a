"""Calls that unmasking rules need on exact posteriors of hidden Markov chains, where nothing is learned.

    python infer/hidden_markov.py

Every instance is another chain and another observed text. Rows of the table differ in how often the observation is
right; "none" is a chain without observation, where nothing ever becomes sure before its neighbour is committed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tyro

from paradec.compile_cache import cache_compilations
from paradec.composition import compose
from paradec.console import OUT
from paradec.evals.answers import bare, filled
from paradec.guard import guarded
from paradec.models.posterior import HiddenMarkov, random_chain

RULES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "static": ("quota", {}),
    "threshold .9": ("threshold", {"tau": 0.9}),
    "LocalLeap": ("local_leap", {}),
    "credit": ("credit+threshold", {"tau": 0.9}),
    "EB .1": ("eb", {"gamma": 0.1}),
    "EB .5": ("eb", {"gamma": 0.5}),
    "FreeDave 4": ("freedave", {"drafts": 4}),
    "FreeDave 8": ("freedave", {"drafts": 8}),
    "FreeDave 32": ("freedave", {"drafts": 32}),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What to measure."""

    length: int = 64
    """Positions of a text."""
    block: int = 32
    """Block length."""
    vocab: int = 24
    """States of a chain."""
    sharpness: float = 0.1
    """Concentration of the transitions' Dirichlet law: smaller is more certain."""
    accuracies: tuple[float, ...] = (0.9, 0.7, 0.5, 0.0)
    """How often an observation is right, a row of the table each; 0: nothing is observed."""
    instances: int = 64
    """Chains and texts."""
    seed: int = 0
    """Of the chains and texts."""
    rules: tuple[str, ...] = tuple(RULES)
    """Rules of the table."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """Mean calls of a row, their standard deviation over instances, and the share of static decoding's tokens."""

    rule: str
    mean: float
    spread: float
    agreement: float


def measured(run: Run, accuracy: float) -> Iterator[Calls]:
    """One line a rule on the same instances; static decoding is always the first."""
    keys = jax.random.split(jax.random.key(run.seed), run.instances)
    draw = lambda key: random_chain(key, run.vocab, 1, run.length, accuracy=accuracy, sharpness=run.sharpness)[0]
    chains = [draw(key) for key in keys]
    static = None
    for rule in dict.fromkeys(("static", *run.rules)):
        names, options = RULES[rule]
        method = compose(HiddenMarkov(run.vocab), names, options, block=run.block)
        texts, calls = zip(*(decoded(method, chain, run.length) for chain in chains), strict=True)
        static = texts if static is None else static
        same = np.mean([np.mean(a == b) for a, b in zip(texts, static, strict=True)])
        yield Calls(rule, float(np.mean(calls)), float(np.std(calls, ddof=1)), float(same))


def decoded(method: Any, chain: Any, length: int) -> tuple[np.ndarray, int]:
    """The text of one instance, and its calls."""
    state = filled(method, chain, bare(1), np.full(1, length, np.int32), length)
    return np.asarray(state.tokens)[0], int(state.calls[0])


def main(run: Run) -> int:
    """Print the table as markdown; the status is 0."""
    for number, accuracy in enumerate(run.accuracies):
        line = list(measured(run, accuracy))
        if not number:
            OUT.print(f"| observed | {' | '.join(c.rule for c in line)} |", markup=False, soft_wrap=True)
            OUT.print("| --- |" + " --- |" * len(line), markup=False)
        cells = (f"{c.mean:.1f} ± {c.spread:.1f} ({100 * c.agreement:.0f} %)" for c in line)
        OUT.print(f"| {accuracy or 'none'} | {' | '.join(cells)} |", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    cache_compilations()
    sys.exit(guarded(lambda: main(tyro.cli(Run, description=__doc__))))
