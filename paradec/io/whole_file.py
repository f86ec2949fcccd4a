"""A file that is written whole or not at all, and whether it could be, asked before the work that fills it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paradec.errors import InputError, ResourceError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name to write to: `path` appears, or is replaced, when the block ends without an error.

    A link keeps pointing where it does, and what is no regular file (a pipe, a device) is written to as it stands.
    Raises `ResourceError` where that cannot be; what was there before stays.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        half = target
    else:
        half = target.with_name(f"{target.name[:50]}.{os.getpid()}.partial{target.suffix[:10]}")
    try:
        yield half
        if half is not target:
            half.replace(target)
    except OSError as error:
        raise ResourceError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if half is not target:
            half.unlink(missing_ok=True)


def check(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raise `InputError` where a file of that name, with one of these suffixes if any are given, cannot be written."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{_shown(path)} must end in {' or '.join(suffixes)}: the ending says what is drawn.")
    if "\0" in str(path):
        raise InputError("The name of a file cannot hold a zero byte.")
    try:
        if path.is_dir():
            raise InputError(f"{_shown(path)} is a folder; name a file in it.")
        if not path.absolute().parent.is_dir():
            raise InputError(f"There is no folder {_shown(path.parent)} to write {path.name[:50]} to; make it first.")
        if path.exists() and not path.is_file():
            return  # a pipe or a device
        with whole(path) as half, half.open("xb"):
            raise _Enough
    except _Enough:
        return
    except (OSError, ResourceError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rpartition(": ")[2].rstrip(".")
        raise InputError(f"{_shown(path)} cannot be written: {reason}.") from error


def check_all(paths: Mapping[str, tuple[Path | None, Sequence[str]]]) -> None:
    """`check` every option's path that is given, and that no two are one file: option → (path, suffixes)."""
    seen: dict[str, str] = {}
    for option, (path, suffixes) in paths.items():
        if path is None:
            continue
        check(path, suffixes)
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise InputError(f"{other} and {option} name one file, {path}; give each its own.")


class _Enough(Exception):
    """The file could be opened, and is not wanted yet."""


def _shown(path: Path) -> str:
    name = str(path)
    return name if len(name) <= 100 else f"{name[:60]}…{name[-20:]}"
