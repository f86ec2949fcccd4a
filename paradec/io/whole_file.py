"""A file that is written whole or not at all, and whether it could be, asked before the work that fills it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paradec.errors import InputError, ResourceError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write for `path`, which takes its place when the block is left, unless by an exception.

    A link stays a link, and what it leads to is replaced. A device or a pipe stays what it is, and gets the content.
    Raises `ResourceError` where that cannot be; what was there before stays then.
    """
    place = _place(path)
    folder, name = (Path(tempfile.gettempdir()), path.name) if place is None else (place.parent, place.name)
    half = folder / f"{name[:50]}.{os.getpid()}.partial{path.suffix[:10]}"
    try:
        yield half
        if place is None:
            with half.open("rb") as content, path.open("ab") as out:
                shutil.copyfileobj(content, out)
        else:
            half.replace(place)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> ResourceError:
    """What to raise for an error of writing, with what to do about a full disk."""
    if getattr(error, "errno", None) in FULL or "No space left" in str(error):
        return ResourceError(f"Cannot write {path}: the disk is full. Make room there, or name another disk's folder.")
    return ResourceError(f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.")


def _place(path: Path) -> Path | None:
    """The regular file that a path is or leads to, also one that is not there yet; None for anything else.

    A process' own stdout is written to and never replaced, whatever it was redirected to.
    """
    if str(path).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/")):
        return None
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:  # nothing there, or no way to it, which writing will say
        regular = True
    return Path(os.path.realpath(path)) if regular else None


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
