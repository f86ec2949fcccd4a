"""Presets of train/lm.py."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from paradec.config import several
from paradec.errors import InputError, UnknownName, check_fields, check_kinds, check_least
from paradec.learn.loop import Run
from paradec.learn.step import Plan
from paradec.models.mixers import KINDS, LayerSizes
from paradec.models.recurrent import RecurrentLM


@dataclasses.dataclass(frozen=True)
class Shape:
    """A new decoder. Its vocabulary is the data's."""

    layers: int = 4
    """Layers."""
    width: int = 128
    """Width of the residual stream."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 4
    """Heads of keys and values."""
    head_dim: int = 32
    """Width of a head."""
    mlp: int = 344
    """Width inside an MLP; 0: none, in layers of a pattern."""
    tied: bool = True
    """The embedding is also the output's table."""
    theta: float = 10_000.0
    """Base of the rotary positions."""
    pattern: tuple[str, ...] = ()
    """Kinds of layers, repeated until there are enough: see `paradec.models.mixers.KINDS`. Empty: a transformer."""

    def __post_init__(self) -> None:
        """Raise `InputError` for numbers that make no decoder."""
        check_least(self, dict.fromkeys(("layers", "width", "heads", "kv_heads", "head_dim"), 1) | {"mlp": 0})
        check_fields(self, {
            "mlp": (self.mlp >= 1 or bool(self.pattern), "at least 1"),
            "heads": (self.heads % self.kv_heads == 0, f"a multiple of kv_heads ({self.kv_heads})"),
            "head_dim": (self.head_dim % 2 == 0, "even, since rotary positions turn pairs"),
            "theta": (0 < self.theta < math.inf, "above 0 and finite"),
        })  # fmt: skip
        if unknown := next((name for name in self.pattern if name not in KINDS), None):
            raise InputError(str(UnknownName("kind of layer", unknown, KINDS)))
        if self.pattern and self.layers % len(self.pattern):
            raise InputError(f"{self.layers} layers are no whole number of patterns of {len(self.pattern)}.")

    def recurrent(self, vocab_size: int) -> RecurrentLM:
        """The structure that `pattern` asks for."""
        sizes = LayerSizes(self.width, self.heads, self.kv_heads, self.head_dim, self.theta)
        return RecurrentLM(
            vocab_size=vocab_size, width=self.width, pattern=tuple(KINDS[kind](sizes) for kind in self.pattern),
            repeats=self.layers // len(self.pattern), mlp_width=self.mlp, tied=self.tied,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read."""

    kind: Literal["markov", "text", "chats"] = "markov"
    """Synthetic text of known entropy, plain text files, or JSONL conversations."""
    files: tuple[Path, ...] = ()
    """Files of text or conversations."""
    tokens: str = "characters"
    """How text becomes tokens: its characters, or the name of a model whose tokenizer does it."""
    length: int = 65
    """Tokens of a row: one more than are predicted."""
    held_out: float = 0.1
    """The last share of the data, which is not trained on."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        check_data(self)


def check_data(data: Any) -> None:
    """Raise `InputError` for rows that predict nothing, or a share that leaves nothing; a single file is a file."""
    object.__setattr__(data, "files", several(data.files))
    check_kinds(data)
    check_fields(data, {
        "length": (data.length >= 2, "at least 2"),
        "held_out": (0 < data.held_out < 1, "between 0 and 1"),
    })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Devices:
    """How the devices are used: rows over `data` (-1: all that are left), heads and widths over `model`."""

    data: int = -1
    """Devices over which rows are split; -1: all that are left."""
    model: int = 1
    """Devices over which heads and widths are split."""
    rules: Literal["replicated", "tensor", "fsdp"] = "fsdp"
    """How weights lie: whole on every device, split over `model`, or split over all."""

    def __post_init__(self) -> None:
        """Raise `InputError` for no devices."""
        check_kinds(self)
        check_fields(self, {
            "data": (self.data == -1 or self.data >= 1, "at least 1, or -1 for all devices that are left"),
            "model": (self.model >= 1, "at least 1"),
        })  # fmt: skip


def check_rows(config: Any, least: int = 1) -> None:
    """What every recipe needs: steps, a batch that splits into micro-batches, a seed. Raises `InputError`."""
    check_least(config, {"batch": 1})
    check_fields(config, {"seed": (0 <= config.seed < 2**31, "0 or more, and below 2**31")})
    if config.plan.steps < least:
        raise InputError(f"plan.steps must be at least {least}; {config.plan.steps} was given.")
    check_split("batch", config.batch, config.plan.micro)


def check_split(name: str, rows: int, micro: int) -> None:
    """Raise `InputError` for a batch that micro-batches cannot share."""
    if rows % micro:
        raise InputError(f"{rows} rows do not split into {micro} micro-batches; change --{name} or --plan.micro.")


@dataclasses.dataclass(frozen=True)
class Lm:
    """Everything about training one causal language model on next tokens."""

    base: str = ""
    """A model to go on from; empty: a new one of `shape`."""
    shape: Shape = Shape()
    data: Data = Data()
    plan: Plan = Plan(steps=300, learning_rate=3e-3, warmup=20, beta2=0.99)
    batch: int = 16
    """Rows of one step, over all devices."""
    lora: int = 0
    """Rank of adapters on all matrices of the layers; 0: all weights learn."""
    remat: bool = False
    """Compute each layer again in the backward pass: less memory, a third more work."""
    devices: Devices = Devices()
    seed: int = 0
    """Of the first weights, the order of the rows and all noise."""
    run: Run = Run(out=Path("out/lm"))

    def __post_init__(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        check_least(self, {"lora": 0})
        check_rows(self)


def tiny() -> Lm:
    """A synthetic language whose best loss is known; a minute on a laptop, no files needed."""
    return Lm(run=Run(out=Path("out/lm-tiny"), evaluate_every=100, save_every=100))


def shakespeare() -> Lm:
    """Characters of --data.files, sized as nanoGPT's recipe for laptops: 4 layers of 128, 2000 steps of 12 x 64."""
    plan = Plan(steps=2000, learning_rate=1e-3, warmup=100, floor=0.1, weight_decay=0.1, beta2=0.99)
    run = Run(out=Path("out/lm-shakespeare"), evaluate_every=500, save_every=500)
    return dataclasses.replace(tiny(), data=Data(kind="text"), plan=plan, batch=12, run=run)


def _of_layers(kind: str, mlp: int) -> Lm:
    """`shakespeare` with another kind of layer, and MLPs that make up for its parameters: 800 thousand, to 0.5 %."""
    plain = shakespeare()
    shape = dataclasses.replace(plain.shape, pattern=(kind,), mlp=mlp)
    run = dataclasses.replace(plain.run, out=Path(f"out/lm-shakespeare-{kind.replace('_', '-')}"))
    return dataclasses.replace(plain, shape=shape, run=run)


def shakespeare_gla() -> Lm:
    """`shakespeare` by gated linear attention: as many parameters, steps and tokens."""
    return _of_layers("gla", 336)


def shakespeare_pararnn() -> Lm:
    """`shakespeare` by ParaGRU layers, nonlinear recurrences that Newton's method solves in parallel."""
    return _of_layers("para_gru", 352)


def shakespeare_slstm() -> Lm:
    """`shakespeare` by sLSTM layers, whose recurrent matrices no scan can take apart."""
    return _of_layers("slstm", 256)


def shakespeare_gpu() -> Lm:
    """The same at nanoGPT's size for a GPU: 6 layers of 384, 5000 steps of 64 x 256."""
    shape = Shape(layers=6, width=384, heads=6, kv_heads=6, head_dim=64, mlp=1024)
    plan = dataclasses.replace(shakespeare().plan, steps=5000, compute="bfloat16")
    data = Data(kind="text", length=257)
    run = Run(out=Path("out/lm-shakespeare-gpu"))
    return dataclasses.replace(shakespeare(), shape=shape, data=data, plan=plan, batch=64, run=run)


def smollm2() -> Lm:
    """Fine-tune SmolLM2-135M-Instruct on the conversations of --data.files, with adapters of rank 16."""
    data = Data(kind="chats", tokens="smollm2-135m", length=512)
    plan = Plan(steps=200, learning_rate=5e-4, warmup=20, weight_decay=0.0)
    run = Run(out=Path("out/lm-smollm2"), evaluate_every=100, save_every=100)
    return dataclasses.replace(tiny(), base="smollm2-135m", data=data, plan=plan, batch=8, lora=16, run=run)


def llama3_8b() -> Lm:
    """A new model of Llama 3 8B's shape on text, in bfloat16 with float32 masters, for a pod of 256 chips."""
    shape = Shape(
        layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp=14_336, tied=False, theta=500_000.0
    )  # fmt: skip
    plan = Plan(steps=100_000, learning_rate=3e-4, warmup=2000, compute="bfloat16")
    data = Data(kind="text", tokens="meta-llama/Meta-Llama-3-8B", length=4097)
    run = Run(out=Path("out/lm-llama3-8b"), save_every=1000, evaluate_every=1000)
    devices = Devices(data=64, model=4)
    return dataclasses.replace(
        tiny(), shape=shape, data=data, plan=plan, batch=256, remat=True, devices=devices, run=run
    )  # fmt: skip


PUBLISHED = (
    tiny, shakespeare, shakespeare_gla, shakespeare_pararnn, shakespeare_slstm, shakespeare_gpu, smollm2, llama3_8b,
)  # fmt: skip
PRESETS = {f.__name__: (f.__doc__ or "", f()) for f in PUBLISHED}
