"""A trained `ConfidenceFilter` as a file: four tensors, and a JSON beside it that says for which model and block."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paradec.errors import WeightsError
from paradec.io import tensor_file, text_file
from paradec.io.regular_file import read_json
from paradec.models.heads import ConfidenceFilter, FilterWeights

FORMAT = "paradec filter 1"
TENSORS = ("into", "bias", "out", "out_bias")


@dataclasses.dataclass(frozen=True)
class TrainedFilter:
    """A filter as it is stored. `facts` is the JSON: base, base_digest, block, command, config, metrics."""

    filter: ConfidenceFilter
    weights: FilterWeights
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def save_filter(path: Path, trained: TrainedFilter) -> None:
    """Write `path` (.safetensors) and the JSON of the same name. Each is replaced whole, the JSON last."""
    weights = jax.device_get(trained.weights)
    tensor_file.write(path, {name: np.ascontiguousarray(getattr(weights, name)) for name in TENSORS})
    facts = {"format": FORMAT, "block": trained.filter.length} | trained.facts
    text_file.write(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")


def load_filter(path: Path) -> TrainedFilter:
    """A filter that `save_filter` wrote, in float32. Raises `WeightsError` for files that are damaged or no filter."""
    tensors, facts = tensor_file.table(path), _facts(path.with_suffix(".json"))
    if set(tensors) != set(TENSORS):
        raise WeightsError(f"{path} holds {', '.join(sorted(tensors))} and no filter, which is {', '.join(TENSORS)}.")
    shape = {name: tensors[name].shape for name in TENSORS}
    length, width = shape["into"] if len(shape["into"]) == 2 else (0, 0)
    filter = ConfidenceFilter(length, width)
    wanted = {name: getattr(filter.specs(), name).shape for name in TENSORS}
    if shape != wanted or facts.get("block") != length:
        raise WeightsError(
            f"The tensors of {path} have shapes {list(shape.values())}, which are no filter of a block of "
            f"{facts.get('block')}. Export it again."
        )
    weights = FilterWeights(**{name: tensors[name].read().astype(np.float32) for name in TENSORS})
    return TrainedFilter(filter, weights, facts)


def _facts(path: Path) -> dict[str, Any]:
    """The JSON, without which nobody knows whose confidences the filter reads."""
    try:
        facts = read_json(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing. Export the filter again.") from None
    if facts.get("format") != FORMAT:
        raise WeightsError(f"{path} does not describe a filter ({FORMAT}). Export the filter again.")
    return facts
