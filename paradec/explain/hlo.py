"""Reading what the compiler made: its collectives, and whether it moves a whole cache.

Optimised HLO hides both. The TPU compiler writes a reduce-scatter as a fusion around a computation named
`all-reduce-scatter`, and an asynchronous collective as a fusion around an `AsyncCollectiveStart` call, repeated in
every fusion that overlaps with it; other backends write `-start` and `-done` instructions. So computations are read
with their callers, not lines by their name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
MOVES = ("copy", "transpose", "gather", "reshape", "convert", "concatenate", "pad", "reverse", "sort", "select")
WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r"body=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication of one array. `bytes` is the result's, on one device, each time."""

    kind: str
    shape: str
    bytes: int
    count: int  # places in the program; one inside a loop body runs at every turn
    loops: int  # how many loops are around it
    overlapped: bool  # asynchronous: started, and finished later


@dataclasses.dataclass(frozen=True)
class Move:
    """An instruction that rewrites an array of a cache's shape: the cost of the whole cache, in every step."""

    kind: str
    shape: str
    count: int
    loops: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO: what it makes (for a tuple, its arrays), and from what."""

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    rest: str


class Module:
    """The instructions of every computation, and how many loops each computation runs in."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = defaultdict(list)
        calls: dict[str, set[str]] = defaultdict(set)
        bodies: set[str] = set()
        here = ""
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                here = head[1]
            elif found := _INSTRUCTION.match(line):
                name, types, opcode, rest = found.groups()
                arrays = tuple((d, tuple(map(int, s.split(","))) if s else ()) for d, s in _ARRAY.findall(types))
                self.computations[here].append(Instruction(name, opcode, arrays, rest))
                calls[here].update(_CALLED.findall(rest))
                for branches in _BRANCHES.findall(rest):
                    calls[here].update(name.strip().lstrip("%") for name in branches.split(","))
                bodies.update(_BODY.findall(rest))
        self.loops = _nesting(calls, bodies)

    def __iter__(self) -> Iterator[tuple[str, Instruction]]:
        return ((name, i) for name, instructions in self.computations.items() for i in instructions)


def _nesting(calls: Mapping[str, set[str]], bodies: set[str]) -> Counter[str]:
    """The most loops around each computation; 0, and left out, where there is none. Calls never go in circles."""
    found: Counter[str] = Counter()
    todo = [(name, 1) for name in bodies]
    while todo:
        name, loops = todo.pop()
        if loops > found[name]:
            found[name] = loops
            todo.extend((called, loops + (called in bodies)) for called in calls.get(name, ()))
    return found


def written(array: tuple[str, tuple[int, ...]]) -> str:
    """`bf16[2,9,4096]`."""
    return f"{array[0]}[{','.join(map(str, array[1]))}]"


def nbytes(array: tuple[str, tuple[int, ...]]) -> int:
    """Bytes of an array, without the padding of its layout."""
    return WIDTH.get(array[0], 4) * math.prod(array[1])


def collectives(module: Module) -> tuple[Collective, ...]:
    """Every collective once, asynchronous ones where they start; largest first."""
    found: Counter[tuple[str, str, int, int, bool]] = Counter()
    for name, instructions in module.computations.items():
        targets = {t for i in instructions for t in re.findall(r'custom_call_target="(\w+)"', i.rest)}
        if name.startswith("async_collective_fusion") or "AsyncCollectiveDone" in targets:
            continue  # goes on with what was counted where it started
        for i in instructions:
            kind = i.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            made = i.arrays if i.opcode in (kind, "all-reduce-start") else i.arrays[1:2]  # (operand, result, context…)
            if name.startswith("all-reduce-scatter"):
                kind, made = "reduce-scatter", instructions[-1].arrays
            overlapped = i.opcode.endswith("-start") or "AsyncCollectiveStart" in targets
            shapes = " ".join(map(written, made))
            found[kind, shapes, sum(map(nbytes, made)), module.loops[name], overlapped] += 1
    rows = [Collective(k, s, b, n, loops, late) for (k, s, b, loops, late), n in found.items()]
    return tuple(sorted(rows, key=lambda c: (-c.bytes * c.count, c.kind, c.shape)))


def moves(module: Module, caches: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[Move, ...]:
    """Copies, transposes, gathers and collectives whose result has a cache's shape, dimensions in any order.

    `caches` are pairs (shape on one device, whole shape); a gather over one axis of the mesh makes a mixture of both.
    """
    shapes = {key for local, whole in caches for key in map(_key, itertools.product(*zip(local, whole, strict=True)))}
    found: Counter[tuple[str, str, int]] = Counter()
    for name, i in module:
        kind = i.opcode.removesuffix("-start")
        if kind in (*MOVES, *COLLECTIVES):
            for array in {a for a in i.arrays if _key(a[1]) in shapes}:
                found[kind, written(array), module.loops[name]] += 1
    return tuple(Move(kind, shape, n, loops) for (kind, shape, loops), n in sorted(found.items()))


def _key(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n != 1))
