"""Block sizes of the kernels, stored per kind of device in `blocks.json`; the tuner that measures and writes them.

python -m paradec.ops.kernels.tune --write   # on the machine in question: every kernel, at sizes of a real layer
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax

STORED = Path(__file__).with_name("blocks.json")

Blocks = tuple[tuple[str, int], ...]
"""Block sizes as something static, for the forms of kernels: (("time", 256), ("cells", 512))."""


@functools.cache
def stored(path: Path = STORED) -> dict[str, dict[str, dict[str, int]]]:
    """The table: kind of device (or "tpu", "gpu" for those not measured) -> kernel -> block sizes."""
    return json.loads(path.read_text(encoding="utf-8"))


def blocks(kernel: str, platform: str, given: Blocks | None = None) -> dict[str, int]:
    """The block sizes of a kernel: those that are given, or those stored for this process' device, or for a typical one
    of the platform."""
    if given is not None:
        return dict(given)
    here = jax.devices()[0]
    known = stored()
    mine = known.get(here.device_kind, {}) if here.platform == platform else {}
    return mine.get(kernel, known[platform][kernel])


def store(kernel: str, found: Mapping[str, int], path: Path = STORED) -> None:
    """Write what was found best for a kernel on this process' kind of device; other entries stay."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table.setdefault(jax.devices()[0].device_kind, {})[kernel] = dict(found)
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    stored.cache_clear()
