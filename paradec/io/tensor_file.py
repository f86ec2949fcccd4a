"""One safetensors file: its tensors by name, and a write that leaves a whole file or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from paradec.errors import WeightsError
from paradec.io.names import Tensor
from paradec.io.regular_file import check_regular
from paradec.io.whole_file import cannot_write, whole

STORED = ("F64", "F32", "F16", "BF16")


def table(path: Path, extra: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of one safetensors file; its header is checked by the safetensors library.

    Raises `WeightsError` for a damaged file, and for a tensor of integers unless its name is in `extra`.
    """

    def read(name: str) -> Callable[[], np.ndarray]:
        return lambda: _with_file(path, lambda file: file.get_tensor(name))

    def shapes(file: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}

    found = _with_file(path, shapes)
    for name, (_, dtype) in found.items():
        if dtype not in STORED and name not in extra:
            raise WeightsError(f"Tensor {name!r} in {path} is stored as {dtype}; paradec reads {', '.join(STORED)}.")
    return {name: Tensor(shape, str(path), read(name)) for name, (shape, _) in found.items()}


def _with_file(path: Path, use: Callable[[Any], Any]) -> Any:
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return use(file)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing. Download the folder again.") from None
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}. Download it again.") from error


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write the file in one step: the name appears, or is replaced, when its content is complete (see `whole`)."""
    with whole(path) as half:
        try:
            save_file(dict(tensors), half, metadata={"format": "pt"} | dict(metadata or {}))
        except SafetensorError as error:  # of its writing, since the tensors are ours
            raise cannot_write(path, error) from error
