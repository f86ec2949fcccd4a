"""What may be asked of `explain`, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from paradec.chips import CHIPS, Chip
from paradec.errors import InputError, UnknownName
from paradec.explain.hlo import Collective, Move
from paradec.io.names import check_dtype

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ProgramRequest:
    """One program to compile. `model` and `draft` name a shape of `models.shapes`, or are `structures.as_json`."""

    method: str = "ar"
    model: str | dict[str, Any] = "smollm2-135m"
    program: str = "decode"  # the loop of the method's steps; or "train", one step of training
    target: str = "cpu"  # or a TPU topology: "v5e:1x1", "v5e:16x16", "v6e:…", "v5p:2x2x1", …
    batch: int = 1  # rows, over all devices
    slots: int = 2048  # cache slots of a row; tokens of a row where program is "train"
    mesh: tuple[int, int] = (1, 1)  # data, model
    dtype: str = "bfloat16"
    block: int = 0  # above 0 the model is a block-diffusion denoiser with blocks of so many, and the method a rule
    draft: str | dict[str, Any] | None = None
    short_list: int = 0  # tokens that draft heads choose from; 0: all
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.program not in ("decode", "train"):
            raise UnknownName("program", self.program, ("decode", "train"))
        check_dtype(self.dtype)
        data, model = self.mesh
        if self.target != "cpu":
            if self.chip is None:
                known = ["cpu", *(f"{name}:…" for name in CHIPS)]
                raise UnknownName("target", self.target, known, hint="A TPU target is written v5e:16x16.")
            if data * model != self.chips:
                raise InputError(f"{self.target} has {self.chips} chips, not {data} × {model}.")
        if min(self.batch, self.slots, data, model) < 1:
            raise InputError("batch, slots and both sides of the mesh must be at least 1.")
        if self.short_list < 0:
            raise InputError(f"short_list is a number of tokens, or 0 for all; {self.short_list} was given.")
        if self.block < 0 or (self.block and self.slots % self.block):
            raise InputError(f"{self.slots} slots do not split into blocks of {self.block}; block 0 is no diffusion.")
        if self.batch % data:
            raise InputError(f"A batch of {self.batch} rows does not split over a data axis of {data} devices.")

    @property
    def chip(self) -> Chip | None:
        """The TPU chip of the target; None for a CPU."""
        return CHIPS.get(self.target.partition(":")[0])

    @property
    def chips(self) -> int:
        """How many chips the target's topology has."""
        sides = self.target.partition(":")[2].split("x")
        if not all(side.isdigit() for side in sides):
            raise InputError(f"Target {self.target!r} has no topology: write v5e:16x16 or v5p:2x2x1.")
        n = 1
        for side in sides:
            n *= int(side)
        return n


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip, as the compiler has assigned them."""

    arguments: int
    outputs: int
    aliased: int  # of the outputs: written into an argument's place
    temporaries: int
    code: int
    peak: int

    @property
    def needed(self) -> int:
        """Bytes that must be free for the program to run. (The compiler's own peak leaves some kinds out.)"""
        return max(self.peak, self.arguments + self.outputs - self.aliased + self.temporaries + self.code)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations and bytes of one chip for one run of the program. None: not counted."""

    flops: float
    weights: float | None = None  # bytes of parameters read
    cache: float | None = None  # bytes of the caches read with every slot in use
    accessed: float | None = None  # all bytes, from the compiler
    exchanged: float | None = None  # bytes that a chip sends to others, by the formula of `programs.exchanged`
    model_flops: float | None = None  # of training, without what is computed again to save memory


@dataclasses.dataclass(frozen=True)
class Report:
    """What a program costs on one chip of its target, without running it."""

    request: ProgramRequest
    title: str
    device: str
    counted: Cost  # from shapes: the truth for whole loops
    memory: Memory | None = None  # None: the compiler refused
    compiler: Cost | None = None  # its own count, in which a loop's body counts once
    collectives: tuple[Collective, ...] = ()
    moves: tuple[Move, ...] = ()  # of arrays with a cache's shape; there should be none
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    refused: str | None = None  # the compiler's sentence, where the program does not fit

    @property
    def hbm(self) -> int | None:
        """Usable bytes of memory of one chip."""
        chip = self.request.chip
        return None if chip is None else chip.hbm

    @property
    def fits(self) -> bool:
        """Whether the chip's memory holds it. A CPU's always does, here."""
        return self.memory is not None and (self.hbm is None or self.memory.needed <= self.hbm)

    @property
    def floor_seconds(self) -> float | None:
        """No run can be faster: the counted bytes at the chip's bandwidth, or flops at its peak. Not a prediction."""
        chip = self.request.chip
        if chip is None:
            return None
        read = (self.counted.weights or 0) + (self.counted.cache or 0)
        return max(read / chip.bandwidth, self.counted.flops / chip.flops)

    @property
    def step_seconds(self) -> tuple[float, float] | None:
        """A training step by formula, at the chip's published peaks: if all exchange hides behind computation, and if
        none does. Real steps reach half of the peak or so; not a measurement."""
        chip, counted = self.request.chip, self.counted
        if chip is None or chip.links is None or counted.exchanged is None:
            return None
        compute, exchange = counted.flops / chip.flops, counted.exchanged / chip.links
        return max(compute, exchange), compute + exchange

    def public(self) -> dict[str, Any]:
        """The report as JSON, with what follows from it."""
        derived = {"hbm": self.hbm, "fits": self.fits, "floor_seconds": self.floor_seconds}
        derived |= {"step_seconds": self.step_seconds}
        return dataclasses.asdict(self) | derived

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Report:
        """The inverse of `public`."""
        own = {f.name: fields[f.name] for f in dataclasses.fields(cls)}
        own["request"] = ProgramRequest(**own["request"] | {"mesh": tuple(own["request"]["mesh"])})
        own["counted"] = Cost(**own["counted"])
        for name, kind in (("memory", Memory), ("compiler", Cost)):
            own[name] = None if own[name] is None else kind(**own[name])
        own["collectives"] = tuple(Collective(**c) for c in own["collectives"])
        own["moves"] = tuple(Move(**m) for m in own["moves"])
        return cls(**own)
