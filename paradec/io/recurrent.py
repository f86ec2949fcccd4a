"""Folders of a `RecurrentLM`: its structure in config.json, and one tensor for every leaf of its parameter tree.

No format of others can say which mixers a model has, so this one is paradec's own: a dataclass is a JSON object with
its class under "class", and a tensor has the name of its leaf, with the axis of layers in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from paradec import params
from paradec.errors import InputError, WeightsError, check_kinds, shown
from paradec.io.names import Tensor, Track, check_dtype
from paradec.models.mixers import CLASSES
from paradec.models.recurrent import RecurrentLM, RecurrentWeights

MODEL_TYPE = "paradec_recurrent"
KINDS: Mapping[str, type] = {"RecurrentLM": RecurrentLM, **CLASSES}
"""What a structure is made of: the model, its mixers, and what they hold."""


def is_recurrent(values: Any) -> bool:
    """Whether this is the config.json of such a folder."""
    return isinstance(values, Mapping) and values.get("model_type") == MODEL_TYPE


def write_recurrent(model: RecurrentLM) -> dict[str, Any]:
    """The content of config.json. Raises `InputError` for a mixer that paradec does not know."""
    return {"model_type": MODEL_TYPE, "architectures": ["RecurrentLM"], "structure": _written(model)}


def _written(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        kind = type(value).__name__
        if KINDS.get(kind) is not type(value):
            raise InputError(f"{kind} has no place in a config.json: paradec writes {', '.join(KINDS)}.")
        return {"class": kind} | {f.name: _written(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_written(x) for x in value] if isinstance(value, tuple) else value


def read_recurrent(values: Any, where: str, dtype: str | None = None) -> RecurrentLM:
    """The model that config.json describes. Raises `WeightsError` for a mixer or a field that paradec does not know."""
    try:
        model = _read(values.get("structure"), f"{where}: structure")
    except (InputError, TypeError, ValueError) as error:
        raise WeightsError(f"{where} describes no model: {error}") from None
    if not isinstance(model, RecurrentLM):
        raise WeightsError(f"{where}: structure is {shown(values.get('structure'))}, not a RecurrentLM.")
    if dtype is not None:
        check_dtype(dtype)
    return model if dtype is None else dataclasses.replace(model, dtype=dtype)


def _read(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        kind = value.get("class")
        if kind not in KINDS:
            raise WeightsError(f"{where} is of the class {shown(kind)}; paradec knows {', '.join(KINDS)}.")
        made = {name: _read(x, f"{where}.{name}") for name, x in value.items() if name != "class"}
        known = {f.name for f in dataclasses.fields(KINDS[kind])}
        if strange := sorted(set(made) - known):
            raise WeightsError(f"{where}: {kind} has no {strange[0]!r}; its fields are {', '.join(sorted(known))}.")
        built = KINDS[kind](**made)
        check_kinds(built)
        return built
    return tuple(_read(x, f"{where}[{i}]") for i, x in enumerate(value)) if isinstance(value, list) else value


def leaf_name(path: tuple) -> str:
    """The tensor's name of a leaf."""
    return params.name(path).replace("/", ".")


def recurrent_tensors(weights: RecurrentWeights) -> dict[str, np.ndarray]:
    """Every leaf as a tensor, by its name."""
    found = jax.tree.leaves_with_path(jax.device_get(weights))
    return {leaf_name(path): np.ascontiguousarray(x) for path, x in found}


def load_recurrent(model: RecurrentLM, tensors: Mapping[str, Tensor], track: Track = iter) -> RecurrentWeights:
    """The weights as numpy arrays. Raises `WeightsError` for a tensor that is missing, left over or misshapen."""
    specs, tree = jax.tree.flatten_with_path(model.specs(), is_leaf=params.is_spec)
    wanted = {leaf_name(path): spec for path, spec in specs}
    problems = [f"lacks tensor {name!r}" for name in wanted if name not in tensors]
    problems += [f"holds tensor {name!r}, which has no place" for name in tensors if name not in wanted]
    problems += [
        f"has {name!r} in shape {tensors[name].shape}, not {spec.shape}"
        for name, spec in wanted.items()
        if name in tensors and tensors[name].shape != spec.shape
    ]
    if problems:
        file = next((tensor.file for tensor in tensors.values()), "The folder")
        raise WeightsError(f"{file} {problems[0]}. It does not fit its config.json: write or download both again.")
    names: Sequence[str] = list(wanted)
    read = {name: tensors[name].read().astype(wanted[name].dtype) for name in track(names)}
    return jax.tree.unflatten(tree, [read[name] for name in names])
