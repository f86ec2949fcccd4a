"""What a run says: one line of JSON a step, and a bar with loss, tokens a second, utilisation and time left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paradec import chips
from paradec.errors import ResourceError


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


class Report:
    """The metrics of a run, on disk and on the terminal; process 0 alone speaks.

    `path` gets a line a step: `step`, the metrics, and under `time` the seconds since the line before (`turn`), for
    input, dispatch and waiting for the device, and the tokens a second and utilisation that follow. Lines after step
    `first` belong to a run that was killed, and are removed.
    """

    def __init__(self, path: Path, first: int, last: int, work: Work):
        self.work, self.first, self.last = work, first, last
        self.primary = jax.process_index() == 0
        self.console = Console(stderr=True, highlight=False, quiet=not self.primary)
        self.chip, self.smooth, self.spoke = chips.here(), None, 0.0
        self.before = time.perf_counter()
        self.path, self.file = path, None

    def __enter__(self) -> Report:
        if self.primary:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                keep_until(self.path, self.first)
                self.file = self.path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise ResourceError(f"Cannot write {self.path}: {error}.") from error
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
        if self.file is not None:
            self.file.close()

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
        if self.file is not None:
            try:
                self.file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise ResourceError(f"Cannot write {self.path}: {error}. Is the disk full?") from error


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, and whatever a kill left half-written."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    half = path.with_suffix(".partial")
    half.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    half.replace(path)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
