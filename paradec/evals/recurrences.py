"""How long recurrences take in each of their forms, over the length of the sequence, against the least they must move.

`paradec bench ops`. Forms of one recurrence are timed in turn, round after round, so that what else the machine does
meets all of them; what is told is the median. The floor is the bytes of operands and results, each once, which no form
can do without.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from paradec.errors import UnknownName
from paradec.models.cells.para_gru import ParaGRU
from paradec.ops.gla import gla
from paradec.ops.newton import solve
from paradec.ops.scan import affine_scan

Form = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Timing:
    """One form of a recurrence at one length: medians in milliseconds, forward alone and with gradients."""

    recurrence: str
    form: str
    length: int
    width: int
    batch: int
    forward: float
    gradient: float
    floor: int
    """Bytes that the forward pass must move at least."""

    @property
    def microseconds_per_step(self) -> float:
        """Of the forward pass."""
        return 1000 * self.forward / self.length


@dataclasses.dataclass(frozen=True)
class Forms:
    """A recurrence: its operands at a length, and the forms that compute it from them."""

    operands: Callable[[np.random.Generator, int, int, int], tuple[PyTree, ...]]
    forms: Mapping[str, Form]


def _drawn(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _diagonal(rng: np.random.Generator, length: int, batch: int, width: int) -> tuple[PyTree, ...]:
    return jax.nn.sigmoid(_drawn(rng, length, batch, width) + 2), _drawn(rng, length, batch, width)


def _block(rng: np.random.Generator, length: int, batch: int, width: int) -> tuple[PyTree, ...]:
    some = lambda scale: scale * _drawn(rng, length, batch, width)
    return ((some(0.3), some(0.2)), (some(0.2), some(0.3))), (some(1.0), some(1.0))


def _cell(rng: np.random.Generator, length: int, batch: int, width: int) -> tuple[PyTree, ...]:
    a = 2 / (5 * width) ** 0.5 * _drawn(rng, 3, width)
    return a, _drawn(rng, length, batch, 3, width)


def _attention(rng: np.random.Generator, length: int, batch: int, width: int) -> tuple[PyTree, ...]:
    heads = max(width // 64, 1)
    one = lambda: _drawn(rng, batch, length, heads, width // heads)
    return one(), one(), one(), jax.nn.log_sigmoid(one()) / 16


def _scan(kind: str, implementation: str, **options: Any) -> Form:
    return lambda a, b: affine_scan(a, b, kind=kind, implementation=implementation, **options)


def _solved(method: str, **options: Any) -> Form:
    def form(a: Array, u: Array) -> Array:
        width = a.shape[-1]
        cell = ParaGRU(1, width)
        weights = cell.specs(1, width, "float32").replace(recurrent=a, peephole=None, input=None, bias=None)
        h0 = jnp.zeros(u.shape[1:2] + (width,))
        return solve(cell.step, weights, u, h0, structure=cell.structure, method=method, **options)[0]

    return form


SCANS = ("sequential", "associative", "lanes", "chunk", "kernel")
CASES: Mapping[str, Forms] = {
    "diagonal": Forms(_diagonal, {name: _scan("diagonal", name) for name in SCANS}),
    "block": Forms(_block, {name: _scan("block", name) for name in SCANS}),
    "para_gru": Forms(
        _cell,
        {
            "sequential": _solved("sequential"),
            "newton, windows of 512": _solved("newton", window=512),
            "newton, windows of 64": _solved("newton", window=64, scan="sequential"),
            "newton, whole": _solved("newton", window=None),
        },
    ),
    "gla": Forms(
        _attention,
        {name: (lambda q, k, v, g, name=name: gla(q, k, v, g, implementation=name)[0])
         for name in ("recurrent", "chunk", "kernel")},
    ),
}  # fmt: skip
"""What can be timed."""


def measure(
    names: Sequence[str], lengths: Sequence[int], width: int, batch: int, rounds: int, seed: int = 0
) -> Iterator[Timing]:
    """Time the forms of these recurrences at these lengths, float32, as each becomes known.

    Kernels are timed on accelerators alone: interpreted, they say nothing. Raises `UnknownName` for another recurrence.
    """
    for name in names:
        if name not in CASES:
            raise UnknownName("recurrence", name, CASES)
    for name in names:
        for length in lengths:
            yield from _compared(name, length, width, batch, rounds, np.random.default_rng(seed))


def _compared(
    name: str, length: int, width: int, batch: int, rounds: int, rng: np.random.Generator
) -> Iterator[Timing]:
    """All forms of one recurrence at one length, in turn in every round."""
    case, here = CASES[name], jax.default_backend()
    operands = case.operands(rng, length, batch, width)
    programs = {}
    for form, run in case.forms.items():
        if form == "kernel" and here == "cpu":
            continue
        value = lambda *x, run=run: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(*x)))
        slopes = jax.grad(value, argnums=tuple(range(len(operands))))
        programs[form] = tuple(jax.jit(f).lower(*operands).compile() for f in (run, slopes))
    floor = sum(x.nbytes for x in jax.tree.leaves(operands))
    floor += sum(x.size * 4 for x in jax.tree.leaves(jax.eval_shape(next(iter(case.forms.values())), *operands)))
    spent: dict[str, tuple[list[float], list[float]]] = {form: ([], []) for form in programs}
    for _ in range(rounds + 1):  # the first is not counted
        for form, pair in programs.items():
            for program, times in zip(pair, spent[form], strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(program(*operands))
                times.append(1000 * (time.perf_counter() - begin))
    for form, times in spent.items():
        forward, gradient = (statistics.median(t[1:]) for t in times)
        yield Timing(name, form, length, width, batch, forward, gradient, floor)
