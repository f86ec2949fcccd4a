"""Configurations: frozen dataclasses, as JSON, from the command line, and compared with each other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")
MISSING = "(not there)"


def several(value: Any) -> tuple[Any, ...]:
    """What was named, as a tuple: many things, or one string or path by itself."""
    return (value,) if isinstance(value, str | Path) else tuple(value)


def as_json(config: Any) -> dict[str, Any]:
    """A dataclass as JSON would give it back: tuples as lists, paths as strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


def kept(config: Any, *fields: str) -> dict[str, Any]:
    """What of a configuration a checkpoint remembers and a second start must repeat: these fields, else all.

    Never `run`, which says where a run lies and how often it saves. What the files of these fields hold now belongs to
    it, as `contents`: a run that goes on with other data, another alphabet even, is no longer the one that was begun.
    """
    everything = as_json(config)
    names = [name for name in fields or everything if name != "run"]
    read = {str(path): digest(path) for name in names for path in _files(getattr(config, name))}
    return {name: everything[name] for name in names} | ({"contents": read} if read else {})


def digest(path: Path) -> str:
    """The size of a file and a hash of its content, to be read by people and compared by programs."""
    if not path.is_file():
        return "no regular file"  # a pipe can be read once alone
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stat().st_size:,} bytes, sha256 {found[:16]}"


def _files(value: Any) -> Iterator[Path]:
    """Every path in a configuration, or in a part of one."""
    if isinstance(value, Path):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _files(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _files(item)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A configuration holds numbers, strings, tuples and dataclasses, not {value!r}.")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for every field in which two configurations differ: `plan.steps: 100 → 200`."""
    lines = []
    for name in sorted({*old, *new}):
        a, b, where = old.get(name, MISSING), new.get(name, MISSING), f"{prefix}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{where}.")
        elif a != b:
            lines.append(f"{where}: {a} → {b}")
    return lines


def from_command_line(presets: Mapping[str, tuple[str, Config]], argv: Sequence[str] | None = None) -> Config:
    """The preset that the first word names, with `--field value` changes. A misspelt field names the nearest one."""
    words = list(sys.argv[1:] if argv is None else argv)
    return tyro.extras.overridable_config_cli(dict(presets), args=words, config=(tyro.conf.FlagCreatePairsOff,))
