"""A figure as a file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from paradec.io.whole_file import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure; the suffix of `path` chooses the format, PNG if there is none."""
    path = Path(path)
    with whole(path) as half:
        figure.savefig(half, dpi=160, format=path.suffix.removeprefix(".").lower() or "png")
