"""Files that are files: a pipe, a device or a folder in a file's place is refused before anyone waits for it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from paradec.errors import WeightsError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Raise `WeightsError` unless `path` is a regular file or leads to one. A missing one raises FileNotFoundError."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise WeightsError(f"{path} is {kind} and no regular file. Put the file itself there, or a link to it.")


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file. Raises `WeightsError` where it is damaged, FileNotFoundError where missing."""
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as text: {error}. Download or export it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises what `read_text` raises, and `WeightsError` for anything else in it."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}. Download or export it again.") from error
    if not isinstance(found, dict):
        raise WeightsError(
            f"{path} should hold a JSON object, not {type(found).__name__}. Download or export it again."
        )
    return found
