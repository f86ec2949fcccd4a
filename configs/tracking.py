"""Presets of train/tracking.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from configs.lm import Shape, check_rows
from paradec.data.tracking import TASKS, Tracking
from paradec.errors import InputError, UnknownName, check_fields, check_least
from paradec.learn.loop import Run
from paradec.learn.step import Plan


@dataclasses.dataclass(frozen=True)
class Words:
    """What is read."""

    task: str = "parity"
    """parity, counter (modulo `modulus`), s3 or s5 (compositions of permutations)."""
    length: int = 40
    """Symbols of a word that is trained on."""
    test_length: int = 0
    """Symbols of a word that is asked in the end; 0: four times as many."""
    modulus: int = 5
    """States of the counter."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a task or a number that is none."""
        check_least(self, {"length": 1, "test_length": 0, "modulus": 2})
        if self.task not in TASKS:
            raise InputError(str(UnknownName("task of state tracking", self.task, TASKS)))

    def source(self, rows: int, seed: int) -> Tracking:
        """Rows of the task."""
        return Tracking(self.task, self.length, self.test_length, self.modulus, rows, seed)


@dataclasses.dataclass(frozen=True)
class StateTracking:
    """Everything about training one model to say, after each symbol, in which state a machine is."""

    words: Words = Words()
    shape: Shape = Shape(layers=1, width=32, heads=1, kv_heads=1, head_dim=64, mlp=0, tied=False, pattern=("lstm",))
    plan: Plan = Plan(steps=600, learning_rate=3e-3, warmup=50, weight_decay=0.0)
    batch: int = 64
    """Rows of one step, over all devices."""
    rows: int = 200_000
    """Words to train on, drawn anew from the seed."""
    seed: int = 0
    """Of the first weights, and of the order of the words."""
    run: Run = Run(out=Path("out/tracking"), evaluate_every=200)

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        check_rows(self)
        check_least(self, {"rows": 1})
        check_fields(self, {"shape": (bool(self.shape.pattern), "layers with a pattern, such as --shape.pattern lstm")})


def parity() -> StateTracking:
    """Whether the number of ones so far is odd, by one layer of LSTM; half a minute."""
    return StateTracking(run=Run(out=Path("out/tracking-parity"), evaluate_every=200))


def parity_gla() -> StateTracking:
    """The same by two layers of gated linear attention, which do not learn it."""
    return _beside(parity(), ("gla",), "parity-gla", heads=4, head_dim=8, mlp=64)


def parity_transformer() -> StateTracking:
    """The same by two layers of attention, which do not learn it for longer words."""
    return _beside(parity(), ("attention",), "parity-transformer", heads=4, head_dim=8, mlp=64)


def s5() -> StateTracking:
    """How five things lie after swaps of neighbours, by one layer of LSTM; three minutes."""
    base = parity()
    shape = dataclasses.replace(base.shape, width=64, head_dim=128)
    return dataclasses.replace(
        base, words=Words("s5", length=24), shape=shape, plan=dataclasses.replace(base.plan, steps=3000),
        run=Run(out=Path("out/tracking-s5"), evaluate_every=500),
    )  # fmt: skip


def s5_gla() -> StateTracking:
    """The same by two layers of gated linear attention with as many parameters."""
    return _beside(s5(), ("gla",), "s5-gla", heads=4, head_dim=16, mlp=184)


def s5_transformer() -> StateTracking:
    """The same by two layers of attention with as many parameters."""
    return _beside(s5(), ("attention",), "s5-transformer", heads=4, head_dim=16, mlp=184)


def _beside(base: StateTracking, pattern: tuple[str, ...], name: str, **sizes: int) -> StateTracking:
    """The same task, plan and tokens with two layers of another kind."""
    sizes = sizes | {"kv_heads": sizes["heads"], "layers": 2}
    shape = dataclasses.replace(base.shape, pattern=pattern, **sizes)
    run = dataclasses.replace(base.run, out=Path(f"out/tracking-{name}"))
    return dataclasses.replace(base, shape=shape, run=run)


PUBLISHED = (parity, parity_gla, parity_transformer, s5, s5_gla, s5_transformer)
PRESETS = {f.__name__: (f.__doc__ or "", f()) for f in PUBLISHED}
