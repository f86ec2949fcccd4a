"""The real model files that some tests need."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from paradec.errors import ResourceError
from paradec.io.resolve import PRESETS, resolve
from paradec.io.wheels import cache_dir


@functools.cache
def _resolved(name: str) -> Path | ResourceError:
    try:
        return resolve(name).path
    except ResourceError as error:
        return error


def real_model(name: str, download: bool = True) -> Path:
    """The GGUF file of a preset. Skips the test when it cannot be had, or is not cached and `download` is off."""
    cached = cache_dir() / name / PRESETS[name].model.file
    if not download and not cached.is_file():
        pytest.skip(f"{name} is not in the cache: fetch it once with paradec.io.resolve.resolve({name!r})")
    found = _resolved(name)
    if isinstance(found, ResourceError):
        pytest.skip(f"{name} cannot be had here: {found}")
    if found.suffix != ".gguf":
        pytest.skip(f"{name} came from the hub, not from its wheel: {found}")
    return found
