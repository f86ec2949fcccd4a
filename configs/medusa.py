"""Presets of train/medusa.py."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from configs.lm import check_rows, check_split
from paradec.config import several
from paradec.errors import InputError, check_fields, check_least
from paradec.io.names import check_dtype
from paradec.learn.loop import Run
from paradec.learn.step import Plan


@dataclasses.dataclass(frozen=True)
class Text:
    """What the base model is asked, so that its own answers can be recorded."""

    instructions: int = 700
    """Built-in instructions."""
    prompts: tuple[Path, ...] = ()
    """JSONL files with a prompt, a question, messages or turns in each line."""
    prompts_each: int = 500
    """Lines read from each of them, at most."""
    imagined: int = 0
    """Prompts that the model writes itself, as the user of a chat: they are as varied as what it was trained on."""
    retold: int = 0
    """Prompts made of the model's own answers, which it is to summarise, to question and to tell again."""
    new_tokens: int = 128
    """Tokens of an answer at most."""
    batch: int = 32
    """Rows decoded together."""
    length: int = 256
    """Tokens of one text, prompt included, from which hidden states are computed; twice as many where it is retold."""
    held_out: int = 20
    """Every so manieth text measures the heads and is not trained on."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        object.__setattr__(self, "prompts", several(self.prompts))
        least = {"instructions": 0, "prompts_each": 1, "imagined": 0, "retold": 0, "new_tokens": 1, "batch": 1}
        check_least(self, least | {"length": 3, "held_out": 2})


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads and the tree that is grown from their accuracy."""

    count: int = 4
    """Heads, each for one token further ahead."""
    layers: int = 1
    """Residual blocks of a head."""
    short_list: int = 4096
    """Tokens that drafting may choose from, the most frequent ones; 0: the whole vocabulary."""
    decay: float = 0.8
    """Head k's loss counts decay**k."""
    nodes: int = 63
    """Nodes of the tree; a decode may use fewer (num_draft)."""
    ranks: int = 10
    """Guesses of one head that the tree may use."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        check_least(self, {"count": 1, "layers": 1, "short_list": 0, "nodes": 1, "ranks": 1})
        check_fields(self, {"decay": (0 < self.decay < math.inf, "above 0 and finite")})


@dataclasses.dataclass(frozen=True)
class Joint:
    """Medusa-2: a second stage in which the base learns too, by adapters and its final norm. Off with 0 steps."""

    steps: int = 0
    """Steps of this stage; 0 is off."""
    learning_rate: float = 5e-4
    """Of the adapters; the heads learn four times as fast."""
    rank: int = 32
    """Rank of the adapters."""
    alpha: float = 16.0
    """What the adapters add is multiplied by alpha over rank."""
    weight: float = 0.2
    """Of the heads' loss beside the base's."""
    rise: Literal["constant", "sine", "linear"] = "constant"
    """How the heads' loss gets its weight: at once, as after a first stage, or over the run (one stage alone)."""
    distil: bool = True
    """The base learns the law it had without adapters (self-distillation), not the text's tokens."""
    rows: int = 4
    """Rows of `length` tokens in a step."""
    length: int = 256
    """Tokens of a row."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        check_least(self, {"rank": 1, "rows": 1, "length": 2})
        check_fields(self, {
            "steps": (0 <= self.steps < 2**31, "0 (off) or more, and below 2**31"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0 and finite"),
            "alpha": (0 < self.alpha < math.inf, "above 0 and finite"),
            "weight": (0 <= self.weight < math.inf, "0 or more, and finite"),
        })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Medusa:
    """Everything about one set of heads."""

    model: str = "smollm2-135m"
    """The base: a preset, a folder, a .gguf file or a hub id."""
    text: Text = Text()
    heads: Heads = Heads()
    joint: Joint = Joint()
    plan: Plan = Plan(steps=900, learning_rate=2e-3, warmup=40, floor=0.0, weight_decay=0.0)
    batch: int = 8
    """Texts of one step."""
    dtype: str = "float32"
    """Of the base model."""
    seed: int = 0
    """Of the heads' first weights, the texts and the order of the rows."""
    run: Run = Run(out=Path("out/medusa"))

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        check_dtype(self.dtype)
        check_rows(self, least=0)
        if self.joint.steps:
            check_split("joint.rows", self.joint.rows, self.plan.micro)
        elif not self.plan.steps:
            raise InputError("Neither stage has a step to learn in; set --plan.steps, --joint.steps or both.")


def smollm2() -> Medusa:
    """The heads that paradec ships: SmolLM2-135M-Instruct on its own answers; about two hours on two CPU cores."""
    return Medusa()


def quick() -> Medusa:
    """The same in a few minutes, to see that everything works."""
    few = Text(instructions=64, new_tokens=48, length=128)
    plan = dataclasses.replace(smollm2().plan, steps=100)
    return dataclasses.replace(smollm2(), text=few, plan=plan, run=Run(out=Path("out/medusa-quick")))


def two_stage() -> Medusa:
    """Medusa-2 after Medusa-1: heads first, then heads and adapters under self-distillation."""
    return dataclasses.replace(smollm2(), joint=Joint(steps=300), run=Run(out=Path("out/medusa-two-stage")))


def one_stage() -> Medusa:
    """Medusa-2 from new heads, whose loss rises along a quarter of a sine."""
    joint = Joint(steps=300, rise="sine")
    plan = dataclasses.replace(smollm2().plan, steps=0, warmup=0)
    return dataclasses.replace(smollm2(), joint=joint, plan=plan, run=Run(out=Path("out/medusa-one-stage")))


PRESETS = {f.__name__: (f.__doc__ or "", f()) for f in (smollm2, quick, two_stage, one_stage)}
