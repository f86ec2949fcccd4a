"""A text file that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from paradec.io.whole_file import whole


def write(path: Path, text: str) -> None:
    """Write the file in one step: the name appears, or is replaced, when its content is complete.

    Links, devices and pipes stay what they are (see `replacing`). Raises `ResourceError` where it cannot be written;
    what was there before stays.
    """
    with whole(path) as half:
        half.write_text(text, encoding="utf-8")
