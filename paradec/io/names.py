"""One declarative map between the tensors of a checkpoint and the leaves of a parameter tree, used in both directions.

An `TensorEntry` says which tensor, which leaf, and how their axes correspond, in a line that reads like an einsum:

    TensorEntry("layers.{}.self_attn.q_proj.weight", "blocks.qkv", "(H G K) D -> D H G K", np.s_[:, :, :-2])

Left are the checkpoint's axes, right those of the leaf's part; parentheses join axes that are stored as one. Letters
are sizes of the model. Entries of one name share their tensor: its rows are theirs, in the order of the table. Nothing
is inferred: the shape a tensor must have, its reading and its writing all follow from the line, so a family of models
is a table, and a tensor that fits no line is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from paradec.errors import InputError, WeightsError
from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.models.dit import DiT
from paradec.models.heads import MedusaHeads
from paradec.models.recurrent import RecurrentLM
from paradec.models.transformer import Transformer
from paradec.types import Spec

DTYPES = ("float32", "bfloat16", "float16")
WORKERS = min(4, os.cpu_count() or 1)
"""Tensors that are read, converted and copied at a time, which numpy does side by side; so many are in memory."""
FREQUENCIES = 256  # of which a diffusion transformer's noise level is embedded


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint and its place in the parameter tree.

    `{}` in a name stands for the number of a layer or head, a second one for that of an expert.

    `leaf` is an attribute path in the tree, or "" for a tensor that the architecture lacks and that must be zero.
    `at` indexes the leaf (of one layer, where it is stacked) when several tensors share it; a further axis in front
    counts the experts. Where a model has no such leaf, the entry is skipped and its tensor counts as unexpected.
    """

    name: str
    leaf: str
    axes: str
    at: Any = ...

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{}" in self.name

    def shape(self, size: Mapping[str, int]) -> tuple[int, ...]:
        """The shape the checkpoint's tensor must have."""
        return tuple(math.prod(size[a] for a in group) for group in _sides(self.axes)[0])

    def read(self, tensor: np.ndarray, size: Mapping[str, int]) -> np.ndarray:
        """The leaf's part as a view of a checkpoint tensor."""
        left, right = _sides(self.axes)
        return _rearrange(tensor, left, right, size)

    def write(self, part: np.ndarray, size: Mapping[str, int]) -> np.ndarray:
        """The checkpoint tensor that holds a leaf's part: the inverse of `read`."""
        left, right = _sides(self.axes)
        return _rearrange(part, right, left, size)


class Tensor(NamedTuple):
    """A tensor that has not been read yet: its shape, the file to name in errors, and how to get it as an array."""

    shape: tuple[int, ...]
    file: str
    read: Callable[[], np.ndarray]


def check_dtype(dtype: str) -> None:
    """Raise `InputError` for a dtype that weights cannot have."""
    if dtype not in DTYPES:
        raise InputError(f"Weights cannot be loaded as {dtype!r}. Use {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")


Architecture = Transformer | DiT | MedusaHeads | DiffusionGemma | RecurrentLM


def sizes(model: Architecture) -> dict[str, int]:
    """The letters of the axis lines: V D H G K F as everywhere in paradec, E = D, J = K/2, and I = 2.

    Where there are experts, X counts them, R is the width of one and S that of the MLP beside them. A diffusion
    transformer embeds N frequencies of its noise level in C = E numbers, and M = 3 things lie together in its files.
    Of GLA, K and E are the sizes of a head's keys and values, R is the rank of its gates, W the width of convolutions.
    """
    if isinstance(model, MedusaHeads):
        return {"V": model.vocab_size, "D": model.width, "E": model.width}
    if isinstance(model, DiffusionGemma):
        return model.letters()
    if isinstance(model, RecurrentLM):
        mixer = model.pattern[0].letters(model.width)
        return mixer | {"V": model.vocab_size, "D": model.width, "F": model.mlp_width}
    found = {
        "V": model.vocab_size, "D": model.width, "H": model.num_kv_heads, "G": model.groups, "K": model.head_dim,
        "F": model.mlp_width, "J": model.head_dim // 2, "I": 2,
    }  # fmt: skip
    if isinstance(model, DiT):
        return found | {"C": model.level_width, "E": model.level_width, "N": FREQUENCIES, "M": 3}
    if (experts := model.experts) is None:
        return found
    return found | {"X": experts.count, "R": experts.width, "S": experts.shared}


Track = Callable[[Sequence[str]], Iterable[str]]
"""Passes tensor names through, one by one as they are read: the seam for a progress bar."""


def repeats(model: Architecture) -> int:
    """How many layers or heads the parameter tree stacks."""
    return model.num_heads if isinstance(model, MedusaHeads) else model.num_layers


def load(
    model: Architecture, entries: Sequence[TensorEntry], tensors: Mapping[str, Tensor], track: Track = iter
) -> Any:
    """The model's weights as numpy arrays of its dtype, each tensor read once and copied straight to its place,
    `WORKERS` of them at a time.

    All names and shapes are checked before anything is allocated or read. Raises `WeightsError` for a tensor that is
    missing, unexpected, of the wrong shape, or holds a number that is not finite in the model's dtype.
    """
    if repeats(model) > len(tensors):  # a damaged count must not become a long loop
        raise WeightsError(f"The checkpoint names {repeats(model)} layers and holds only {len(tensors)} tensors.")
    if repeats(model) * _experts(model) > len(tensors) + _leading(model) * _experts(model):
        raise WeightsError(f"The checkpoint names {_experts(model)} experts and holds only {len(tensors)} tensors.")
    specs, size = model.specs(), sizes(model)
    places = _places(model, entries, specs)
    _check_names(places, tensors)
    for name, parts in places.items():
        shapes = [part.entry.shape(size) for part in parts]
        wanted = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if tensors[name].shape != wanted:
            raise WeightsError(
                f"Tensor {name!r} in {tensors[name].file} has shape {tensors[name].shape}; "
                f"the configuration asks for {wanted}. The two do not belong together."
            )
    weights = jax.tree.map(lambda s: np.empty(s.shape, jax.numpy.dtype(s.dtype)), specs, is_leaf=_is_spec)
    fill = lambda name: _fill(weights, tensors[name], name, places[name], size)
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead = [pool.submit(fill, name) for name in places]
        try:
            for tensor in track(ahead):
                tensor.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return weights


def _fill(weights: Any, tensor: Tensor, name: str, places: list[_Place], size: Mapping[str, int]) -> None:
    """Read one tensor and copy its rows to their places."""
    whole, start = tensor.read(), 0
    for place in places:
        stop = start + place.entry.shape(size)[0]
        part = place.entry.read(whole[start:stop], size)
        if not place.entry.leaf:
            _check_zero(name, tensor.file, part)
        else:
            _copy(_part(weights, place), part, name, tensor.file)
        start = stop


def store(model: Architecture, entries: Sequence[TensorEntry], weights: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors, by name: the inverse of `load`. `weights` must be numpy arrays."""
    size, dtype = sizes(model), jax.numpy.dtype(model.dtype)
    for name, places in _places(model, entries, model.specs()).items():
        parts = [
            place.entry.write(_part(weights, place), size)
            if place.entry.leaf
            else np.zeros(place.entry.shape(size), dtype)
            for place in places
        ]
        yield name, np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


class _Place(NamedTuple):
    """An entry with the index of a layer in its leaf, and of an expert."""

    entry: TensorEntry
    layer: int | None = None
    expert: int | None = None


def _places(model: Architecture, entries: Iterable[TensorEntry], specs: Any) -> dict[str, list[_Place]]:
    """Every tensor name the model has, with what its rows are."""
    found: dict[str, list[_Place]] = {}
    for entry in entries:
        if entry.leaf and _leaf(specs, entry.leaf) is None:
            continue
        for index, layer in enumerate(_layers(model, entry.leaf)) if entry.stacked else ((None, None),):
            for expert in range(_experts(model)) if entry.name.count("{}") == 2 else (None,):
                found.setdefault(entry.name.format(layer, expert), []).append(_Place(entry, index, expert))
    return found


def _layers(model: Architecture, leaf: str) -> Sequence[int]:
    """Which layers of the model the stack holds that a leaf belongs to."""
    stack = leaf.partition(".")[0]
    if isinstance(model, DiffusionGemma):
        return model.layer_numbers()[stack]
    leading = _leading(model)
    first = leading if stack == "blocks" else 0
    return range(first, leading if stack == "leading" else repeats(model))


def _experts(model: Architecture) -> int:
    return model.experts.count if isinstance(model, Transformer) and model.experts else 0


def _leading(model: Architecture) -> int:
    return model.experts.leading if isinstance(model, Transformer) and model.experts else 0


def _leaf(tree: Any, path: str) -> Any:
    step = lambda node, name: node and (node[int(name)] if name.isdigit() else getattr(node, name))
    return functools.reduce(step, path.split("."), tree)


def _part(weights: Any, place: _Place) -> np.ndarray:
    leaf = _leaf(weights, place.entry.leaf)
    part = (leaf if place.layer is None else leaf[place.layer])[place.entry.at]
    return part if place.expert is None else part[place.expert]


def _check_names(places: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    missing, unexpected = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected, n=1)
        hint = f" The nearest name in the checkpoint is {near[0]!r}." if near else ""
        raise WeightsError(f"The checkpoint lacks tensor {missing[0]!r}{_and_more(missing)}.{hint}")
    if unexpected:
        near = difflib.get_close_matches(unexpected[0], places, n=1)
        hint = f" The nearest name it has is {near[0]!r}." if near else ""
        raise WeightsError(
            f"Tensor {unexpected[0]!r} in {tensors[unexpected[0]].file}{_and_more(unexpected)} "
            f"has no place in this architecture.{hint}"
        )


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _check_zero(name: str, file: str, part: np.ndarray) -> None:
    if np.any(part):
        raise WeightsError(f"Tensor {name!r} in {file} is not zero, and paradec's architecture has no such weight.")


def _copy(target: np.ndarray, part: np.ndarray, name: str, file: str) -> None:
    with np.errstate(all="ignore"):  # overflow is caught below, whatever dtype it happened in
        target[...] = part
    if not np.isfinite(target).all():
        overflow = bool(np.isfinite(part).all())
        raise WeightsError(
            f"Tensor {name!r} in {file} does not fit {target.dtype}. Load it with dtype='bfloat16' or 'float32'."
            if overflow
            else f"Tensor {name!r} in {file} holds NaN or infinity. The file is damaged; download it again."
        )


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, Spec)


@functools.cache
def _sides(axes: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both sides of an axis line, each a tuple of groups: "(H K) D -> D H K" is (("HK", "D"), ("D", "H", "K"))."""

    def groups(side: str) -> tuple[str, ...]:
        return tuple((many or one).replace(" ", "") for many, one in re.findall(r"\(([^)]+)\)|(\w)", side))

    left, right = (groups(side) for side in axes.split("->"))
    if sorted("".join(left)) != sorted("".join(right)):
        raise ValueError(f"The two sides of {axes!r} name different axes.")
    return left, right


def _rearrange(x: np.ndarray, left: Sequence[str], right: Sequence[str], size: Mapping[str, int]) -> np.ndarray:
    """`x` with axis groups `left` as groups `right`; a view wherever numpy can make one."""
    source, target = "".join(left), "".join(right)
    spread = x.reshape([size[a] for a in source]).transpose([source.index(a) for a in target])
    return spread.reshape([math.prod(size[a] for a in group) for group in right])
