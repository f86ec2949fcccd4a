"""The tasks for small diffusion models, by name: what `train/` teaches and `infer/` asks."""

from __future__ import annotations

from paradec.data.lists import Lists
from paradec.data.padded import Padded
from paradec.data.sums import Sums

TASKS = {"lists": Lists, "padded": Padded, "sums": Sums}
RAGGED = ("lists",)
"""Tasks whose rows are of different lengths."""
