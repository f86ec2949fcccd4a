"""Presets of train/masked.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from configs.lm import Devices, Shape, check_data, check_rows
from paradec.data.lists import OPERATIONS
from paradec.errors import InputError, check_least
from paradec.learn.loop import Run
from paradec.learn.objectives.masked import Noise
from paradec.learn.step import Plan


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read."""

    kind: Literal["lists", "padded", "sums", "text"] = "lists"
    """List operations with one token an item, answers of different lengths, running sums, or characters of files."""
    items: int = 6
    """Items of a list, those to be sorted at most, or digits to be summed."""
    operations: tuple[str, ...] = ()
    """What is done to lists; none named: everything, and one named twice comes twice as often."""
    files: tuple[Path, ...] = ()
    """Files of text."""
    length: int = 64
    """Characters of a row; a multiple of the block."""
    held_out: float = 0.1
    """The last share of the text, which is not trained on."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        check_data(self)


@dataclasses.dataclass(frozen=True)
class Masked:
    """Everything about one diffusion model."""

    data: Data = Data()
    shape: Shape = Shape(layers=4, width=96, heads=4, kv_heads=4, head_dim=24, mlp=288, tied=False)
    block: int = 0
    """Block-causal attention in blocks of so many tokens, counted from position 0; 0: everything sees everything."""
    noise: Noise = Noise()
    plan: Plan = Plan(steps=8000, learning_rate=2e-3, warmup=200, floor=0.01, weight_decay=0.01, average=0.998)
    batch: int = 128
    """Rows of one step, over all devices."""
    devices: Devices = Devices()
    seed: int = 0
    """Of the first weights, the order of the rows and all noise."""
    run: Run = Run(out=Path("out/lists"), evaluate_every=1000, save_every=1000)

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        check_least(self, {"block": 0})
        check_rows(self)
        if self.shape.pattern:
            raise InputError("Layers of a pattern read what stands before a token alone: leave out --shape.pattern.")


def lists() -> Masked:
    """List operations on six items, the model whose accuracy against tokens per call theory knows.

    Those with several right answers come three times as often as the others: their laws are harder to learn.
    """
    several = [name for name in OPERATIONS if name == "shuffle" or name.endswith("_random")]
    return Masked(data=Data(operations=(*OPERATIONS, *several, *several)))


def padded() -> Masked:
    """Counting, repeating and sorting, with answers of 4 to 24 tokens that are padded with end-of-text to 32."""
    run = Run(out=Path("out/padded"), evaluate_every=500, save_every=500)
    plan = dataclasses.replace(lists().plan, steps=3000, floor=0.02)
    return dataclasses.replace(lists(), data=Data(kind="padded", items=8), plan=plan, batch=64, run=run)


def sums() -> Masked:
    """Running sums of 24 digits, modulo 10: every token of the answer follows from the one before."""
    run = Run(out=Path("out/sums"), evaluate_every=500, save_every=500)
    shape = dataclasses.replace(lists().shape, layers=3)
    return dataclasses.replace(padded(), data=Data(kind="sums", items=24), shape=shape, run=run)


def shakespeare() -> Masked:
    """Characters of --data.files, everything in sight."""
    plan = Plan(steps=3000, learning_rate=1e-3, warmup=100, floor=0.1, weight_decay=0.1, beta2=0.99)
    run = Run(out=Path("out/masked-shakespeare"), evaluate_every=500, save_every=500)
    return dataclasses.replace(lists(), data=Data(kind="text"), shape=Shape(), plan=plan, batch=12, run=run)


def block_shakespeare() -> Masked:
    """The same in blocks of 8, every token learned once in each of two complementary views."""
    run = Run(out=Path("out/block-shakespeare"), evaluate_every=500, save_every=500)
    return dataclasses.replace(shakespeare(), block=8, noise=Noise(block=8, pair=True), run=run)


PRESETS = {f.__name__: (f.__doc__ or "", f()) for f in (lists, padded, sums, shakespeare, block_shakespeare)}
