"""Block sizes of the kernels, stored per kind of device in `blocks.json`; the tuner that writes them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax

STORED = Path(__file__).with_name("blocks.json")


@functools.cache
def stored(path: Path = STORED) -> dict[str, dict[str, dict[str, int]]]:
    """The table: kind of device (or "tpu", "gpu" for those not measured) -> kernel -> block sizes."""
    return json.loads(path.read_text(encoding="utf-8"))


def blocks(kernel: str, platform: str) -> dict[str, int]:
    """The block sizes of a kernel on this process' device, or on a typical one of the platform."""
    here = jax.devices()[0]
    known = stored()
    mine = known.get(here.device_kind, {}) if here.platform == platform else {}
    return mine.get(kernel, known[platform][kernel])
