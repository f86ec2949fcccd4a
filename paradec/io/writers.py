"""Where a run's numbers go: a file of JSON lines always; TensorBoard and Weights & Biases where asked (extra `log`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from paradec.errors import InputError, ResourceError
from paradec.io import text_file
from paradec.io.whole_file import cannot_write

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Writers beside the file, and the package that each needs."""


class Writer(Protocol):
    """Takes one line after the other: `step`, numbers, and groups of numbers by name (`time`, `evaluation`)."""

    def line(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def check(names: Sequence[str]) -> None:
    """Raise `InputError` for a writer that does not exist, `ResourceError` for one whose package is not installed."""
    for name in names:
        if name not in PACKAGES:
            raise InputError(f"A log is one of {', '.join(PACKAGES)}, beside metrics.jsonl; {name!r} was given.")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ResourceError(f"The log {name} needs {PACKAGES[name]}: pip install 'paradec[log]'.")


@contextlib.contextmanager
def opened(folder: Path, names: Sequence[str], first: int, config: Mapping[str, Any]) -> Iterator[list[Writer]]:
    """The writers of a run that goes on after step `first`; none but in process 0.

    What a killed run wrote of later steps is removed from the file, hidden in TensorBoard, and drawn over elsewhere.
    """
    check(names)
    made: list[Writer] = []
    try:
        if jax.process_index() == 0:
            made.append(Lines(folder / "metrics.jsonl", first, config))
            for name in names:
                made.append(KINDS[name](folder, first, config))
        yield made
    finally:
        for writer in made:
            writer.close()


class Lines:
    """One JSON object a line. The first holds the configuration, and so does one where a run goes on with another.

    Raises `ResourceError` where the file cannot be written.
    """

    def __init__(self, path: Path, first: int, config: Mapping[str, Any]):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = keep_until(path, first)
            self.file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise cannot_write(path, error) from error
        known = [line["config"] for line in kept if "config" in line]
        if known[-1:] != [config]:
            self.line({"step": first, "config": dict(config)})

    def line(self, values: Mapping[str, Any]) -> None:
        try:
            self.file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files in the run's folder `tensorboard`, one curve a number."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]):
        from tensorboardX import SummaryWriter

        path, own = str(folder / "tensorboard"), f".{first}"  # else two starts in one second would share a file
        self.events = SummaryWriter(path, purge_step=first + 1, filename_suffix=own)
        self.events.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```", first)

    def line(self, values: Mapping[str, Any]) -> None:
        for name, x in flat(values):
            self.events.add_scalar(name, x, values["step"])

    def close(self) -> None:
        self.events.close()


class WeightsAndBiases:
    """One run there for one folder here, also after a restart; WANDB_PROJECT and its like are obeyed."""

    def __init__(self, folder: Path, first: int, config: Mapping[str, Any]):
        import wandb

        name = folder / "wandb.id"
        if not name.exists():
            text_file.write(name, uuid.uuid4().hex)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "paradec"), name=folder.name, id=name.read_text().strip(),
                resume="allow", dir=folder, config=dict(config), settings=wandb.Settings(silent=True),
            )  # fmt: skip
        except wandb.Error as error:
            raise ResourceError(
                f"Weights & Biases does not start ({error}). Log in with 'wandb login', or set WANDB_MODE=offline."
            ) from error
        self.run.define_metric("*", step_metric="step")  # steps that are made again after a kill are drawn once more

    def line(self, values: Mapping[str, Any]) -> None:
        self.run.log({"step": values["step"]} | dict(flat(values)))

    def close(self) -> None:
        self.run.finish()


KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def flat(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, float]]:
    """Every number but the step, named like `time/turn`."""
    for name, x in values.items():
        if isinstance(x, Mapping):
            yield from flat(x, f"{group}{name}/")
        elif group or name != "step":
            yield f"{group}{name}", x


def evaluated(folder: Path, step: int) -> dict[str, float] | None:
    """The newest evaluation in a run's metrics file after so many steps; None where it holds none."""
    path = folder / "metrics.jsonl"
    lines = map(_parsed, path.read_text("utf-8", "replace").splitlines()) if path.is_file() else ()
    found = [line["evaluation"] for line in lines if line and line["step"] == step and "evaluation" in line]
    return found[-1] if found else None


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of a metrics file after `step`, and what a kill left half-written. Returns those that stay.

    A pipe or a device has none.
    """
    if not path.is_file():
        return []
    read = ((line, _parsed(line)) for line in path.read_text("utf-8", "replace").splitlines())
    kept = [(line, values) for line, values in read if values is not None and values["step"] <= step]
    text_file.write(path, "".join(line + "\n" for line, _ in kept))
    return [values for _, values in kept]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
        return values if isinstance(values["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
