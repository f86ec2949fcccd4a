"""A text file that is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from paradec.errors import ResourceError


def write(path: Path, text: str) -> None:
    """Write the file in one step: the name appears, or is replaced, when its content is complete.

    Raises `ResourceError` where that cannot be; what was there before stays.
    """
    half = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise ResourceError(f"Cannot write {path}: {error}. Is the disk full?") from error
