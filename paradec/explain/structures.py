"""Models as JSON: how a structure reaches the process in which it is compiled, and in which type it computes there."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any, cast

from paradec.errors import InputError
from paradec.models.shapes import from_fields, shape
from paradec.types import Denoiser, Model

CLASS = "class"
"""The key that says of which class a structure is, "module:name". No field can have this name."""


def as_json(structure: Any) -> Any:
    """A frozen dataclass as its fields and its class, those in its fields alike; a name or None as it is.

    Raises `InputError` for what another process cannot build: a class that is not in a module, or a value that is not
    a number, a text, a tuple or another structure.
    """
    if structure is None or isinstance(structure, (bool, int, float, str)):
        return structure
    if isinstance(structure, (tuple, list)):
        return [as_json(item) for item in structure]
    kind = type(structure)
    if not dataclasses.is_dataclass(structure):
        raise InputError(f"explain compiles in a process of its own, and cannot hand a {kind.__name__} to it.")
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise InputError(
            f"explain compiles in a process of its own, which cannot find {kind.__qualname__}; define it in a module."
        )
    fields = {field.name: as_json(getattr(structure, field.name)) for field in dataclasses.fields(structure)}
    return {CLASS: f"{kind.__module__}:{kind.__qualname__}"} | fields


def name_of(structure: str | Mapping[str, Any]) -> str:
    """What people call the model of a request."""
    if isinstance(structure, str):
        return structure
    return "the given " + structure.get(CLASS, "model").rpartition(":")[2]


def built(structure: str | Mapping[str, Any], dtype: str) -> Any:
    """The model that a request means, computing in `dtype`: a name of `models.shapes`, or what `as_json` made.

    Fields without a class are those of the model that `models.shapes` builds. Raises `InputError` for a model that
    computes in one type alone, and another was asked for.
    """
    if isinstance(structure, str):
        return in_dtype(shape(structure), dtype)
    return in_dtype(_parsed(structure) if CLASS in structure else from_fields(structure), dtype)


def in_dtype(model: Any, dtype: str) -> Any:
    """The model with its field `dtype` changed, or that of the model which it wraps."""
    if model.sizes().dtype == dtype:
        return model
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    if "dtype" in fields:
        return dataclasses.replace(model, dtype=dtype)
    inner = {key: in_dtype(value, dtype) for key, value in fields.items() if isinstance(value, (Model, Denoiser))}
    if not inner:
        have = model.sizes().dtype
        raise InputError(f"{type(model).__name__} computes in {have} only; ask for dtype={have!r}.")
    return dataclasses.replace(model, **inner)


def _parsed(value: Any) -> Any:
    """The inverse of `as_json`. Sequences become tuples, because a structure is compared by value."""
    if isinstance(value, list):
        return tuple(_parsed(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    module, _, name = value[CLASS].partition(":")
    kind = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    return cast(Any, kind)(**{key: _parsed(item) for key, item in value.items() if key != CLASS})
