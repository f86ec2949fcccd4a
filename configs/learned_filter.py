"""Presets of train/learned_filter.py."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from configs.lm import check_rows
from paradec.config import several
from paradec.errors import check_fields, check_least
from paradec.io.names import check_dtype
from paradec.learn.loop import Run
from paradec.learn.step import Plan


@dataclasses.dataclass(frozen=True)
class Calls:
    """What the base model is asked, and how it is decoded while its calls are recorded."""

    task: Literal["padded", "sums", "lists", "files"] = "padded"
    """A task of train/masked.py, or JSONL files with a prompt, a question or turns in each line."""
    items: int = 8
    """As for train/masked.py."""
    files: tuple[Path, ...] = ()
    """JSONL files with a prompt, a question, messages or turns in each line, for the task `files`."""
    prompts: int = 4096
    """Prompts of the task; of each file, at most."""
    new_tokens: int = 32
    """Tokens of an answer."""
    block: int = 8
    """Block length, for which alone the filter is good then."""
    along: tuple[str, ...] = ("oracle",)
    """Rules that are walked along, with their defaults; all prompts are decoded with each."""
    batch: int = 64
    """Rows decoded together."""
    held_out: int = 10
    """The calls of every so manieth prompt measure the filter and are not trained on."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        for name in ("files", "along"):
            object.__setattr__(self, name, several(getattr(self, name)))
        check_least(self, {"items": 1, "prompts": 1, "new_tokens": 1, "block": 1, "batch": 1, "held_out": 2})
        check_fields(self, {"along": (bool(self.along), "the name of a rule, or several")})


@dataclasses.dataclass(frozen=True)
class Filter:
    """The filter and what it is told."""

    width: int = 64
    """Width of its hidden layer."""
    wrong: float = 1.0
    """What a proposal that is not final counts, beside one that is: above 1 the filter is more careful."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        check_least(self, {"width": 1})
        check_fields(self, {"wrong": (0 < self.wrong < math.inf, "above 0 and finite")})


@dataclasses.dataclass(frozen=True)
class LearnedFilter:
    """Everything about one filter."""

    model: str = "out/padded/model"
    """The base: a diffusion model's folder, or a hub id."""
    calls: Calls = Calls()
    filter: Filter = Filter()
    plan: Plan = Plan(steps=20_000, learning_rate=1e-2, warmup=0, floor=0.05, weight_decay=0.01, beta2=0.999)
    batch: int = 1024
    """Calls of one step."""
    dtype: str = "float32"
    """Of the base model."""
    seed: int = 0
    """Of the filter's first weights and the order of the calls."""
    run: Run = Run(out=Path("out/filter-padded"), evaluate_every=5000, save_every=5000)

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        check_dtype(self.dtype)
        check_rows(self)


def padded() -> LearnedFilter:
    """A filter for the model that `train/masked.py padded` leaves; a few minutes on two CPU cores."""
    return LearnedFilter()


def sums() -> LearnedFilter:
    """The same for running sums, of which only the next is ever certain."""
    calls = Calls(task="sums", items=24, new_tokens=24)
    run = dataclasses.replace(padded().run, out=Path("out/filter-sums"))
    return dataclasses.replace(padded(), model="out/sums/model", calls=calls, run=run)


def llada() -> LearnedFilter:
    """The published setting, for prompts in --calls.files: LLaDA-8B in blocks of 32."""
    calls = Calls(task="files", new_tokens=256, block=32, batch=8)
    plan = dataclasses.replace(padded().plan, steps=40_000, learning_rate=3e-3)
    run = dataclasses.replace(padded().run, out=Path("out/filter-llada"))
    model = "GSAI-ML/LLaDA-8B-Instruct"
    return dataclasses.replace(
        padded(), model=model, calls=calls, filter=Filter(width=32), plan=plan, dtype="bfloat16", run=run
    )


PRESETS = {f.__name__: (f.__doc__ or "", f()) for f in (padded, sums, llada)}
