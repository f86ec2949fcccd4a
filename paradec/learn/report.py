"""What a run says: one line a step to its writers, and a bar with loss, tokens a second, utilisation and time left."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paradec import chips
from paradec.io.writers import Writer


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step of all devices does: tokens read, and operations of the model (None: not known)."""

    tokens: int | None = None
    flops: float | None = None


class Clock:
    """Seconds of the parts of one turn of the loop."""

    def __init__(self) -> None:
        self.begin, self.parts = time.perf_counter(), {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - begin


class RunReport:
    """The metrics of a run, written down and on the terminal; process 0 alone speaks.

    The writers get a line a step: `step`, the metrics, and under `time` the seconds since the line before (`turn`), for
    input, dispatch and waiting for the device, and the tokens a second and utilisation that follow.
    """

    def __init__(self, writers: Sequence[Writer], first: int, last: int, work: Work):
        self.writers, self.work, self.first, self.last = writers, work, first, last
        self.primary = jax.process_index() == 0
        self.console = Console(stderr=True, highlight=False, quiet=not self.primary)
        self.chip, self.smooth, self.spoke = chips.here(), None, 0.0
        self.before = time.perf_counter()

    def __enter__(self) -> RunReport:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
        show = self.primary and self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, disable=not show, refresh_per_second=4)
        self.bar.start()
        self.task = self.bar.add_task("", total=self.last, completed=self.first, said="compiling")
        if self.first:
            self.say(f"Going on after step {self.first}.")
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def step(self, n: int, values: Mapping[str, float], clock: Clock) -> None:
        """One step's metrics."""
        now = time.perf_counter()
        turn, self.before = now - self.before, now
        spent = {"turn": turn} | clock.parts | self._speed(turn)
        self._write({"step": n} | dict(values) | {"time": {name: round(x, 6) for name, x in spent.items()}})
        if n > self.first + 1:  # the first turn holds the compilation
            self.smooth = turn if self.smooth is None else 0.95 * self.smooth + 0.05 * turn
        said = self._sentence(values)
        self.bar.update(self.task, completed=n, said=said)
        if not self.console.is_terminal and (now - self.spoke > 30 or n == self.last):
            self.spoke = now
            self.say(f"step {n}/{self.last}  {said}")

    def evaluated(self, n: int, values: Mapping[str, float]) -> None:
        """The metrics of an evaluation after step n."""
        self._write({"step": n, "evaluation": dict(values)})
        self.say(f"step {n}: held out " + ", ".join(f"{name} {x:.4f}" for name, x in values.items()))
        self.before = time.perf_counter()

    def say(self, sentence: str) -> None:
        """A line for people."""
        self.console.print(sentence, markup=False)

    def _sentence(self, values: Mapping[str, float]) -> str:
        parts = [f"loss {values['loss']:.4f}"]
        if self.smooth is not None:
            speed = self._speed(self.smooth)
            parts += [f"{speed['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in speed else []
            parts += [f"{speed['utilisation']:.1%} of peak"] if "utilisation" in speed else []
        return "  ".join(parts)

    def _speed(self, seconds: float) -> dict[str, float]:
        """Tokens a second, and the model's operations as a share of what all chips could do in bfloat16."""
        out = {}
        if self.work.tokens:
            out["tokens_per_second"] = self.work.tokens / seconds
        if self.work.flops and self.chip:
            out["utilisation"] = self.work.flops / seconds / (self.chip.flops * jax.device_count())
        return out

    def _write(self, line: dict[str, Any]) -> None:
        for writer in self.writers:
            writer.line(line)
