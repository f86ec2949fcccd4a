"""One declarative map between the tensors of a checkpoint and the leaves of a parameter tree, used in both directions.

An `Entry` says which tensor, which leaf, and how their axes correspond, in a line that reads like an einsum:

    Entry("layers.{}.self_attn.q_proj.weight", "blocks.qkv", "(H G K) D -> D H G K", np.s_[:, :, :-2])

Left are the checkpoint's axes, right those of the leaf's part; parentheses join axes that are stored as one. Letters
are sizes of the model. Nothing is inferred: the shape a tensor must have, its reading and its writing all follow from
the line, so a family of models is a table, and a tensor that fits no line is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from paradec.errors import InputError, WeightsError
from paradec.models.heads import MedusaHeads
from paradec.models.transformer import Transformer
from paradec.types import Spec

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint (`{}` stands for the number of a layer or head) and its place in the parameter tree.

    `leaf` is an attribute path in the tree, or "" for a tensor that the architecture lacks and that must be zero.
    `at` indexes the leaf (of one layer, where it is stacked) when several tensors share it. Where a model has no such
    leaf, the entry is skipped and its tensor counts as unexpected.
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


Architecture = Transformer | MedusaHeads


def sizes(model: Architecture) -> dict[str, int]:
    """The letters of the axis lines: V D H G K F as everywhere in paradec, E = D, J = K/2, and I = 2."""
    if isinstance(model, MedusaHeads):
        return {"V": model.vocab_size, "D": model.width, "E": model.width}
    return {
        "V": model.vocab_size, "D": model.width, "H": model.num_kv_heads, "G": model.groups, "K": model.head_dim,
        "F": model.mlp_width, "J": model.head_dim // 2, "I": 2,
    }  # fmt: skip


Track = Callable[[Sequence[str]], Iterable[str]]
"""Passes tensor names through, one by one as they are read: the seam for a progress bar."""


def repeats(model: Architecture) -> int:
    """How many layers or heads the parameter tree stacks."""
    return model.num_heads if isinstance(model, MedusaHeads) else model.num_layers


def load(model: Architecture, entries: Sequence[Entry], tensors: Mapping[str, Tensor], track: Track = iter) -> Any:
    """The model's weights as numpy arrays of its dtype, each tensor read once and copied straight to its place.

    All names and shapes are checked before anything is allocated or read. Raises `WeightsError` for a tensor that is
    missing, unexpected, of the wrong shape, or holds a number that is not finite in the model's dtype.
    """
    if repeats(model) > len(tensors):  # a damaged layer count must not become a long loop
        raise WeightsError(f"The checkpoint names {repeats(model)} layers and holds only {len(tensors)} tensors.")
    specs, size = model.specs(), sizes(model)
    places = dict(_places(model, entries, specs))
    _check_names(places, tensors)
    for name, (entry, _) in places.items():
        if tensors[name].shape != entry.shape(size):
            raise WeightsError(
                f"Tensor {name!r} in {tensors[name].file} has shape {tensors[name].shape}; "
                f"the configuration asks for {entry.shape(size)}. The two do not belong together."
            )
    weights = jax.tree.map(lambda s: np.empty(s.shape, jax.numpy.dtype(s.dtype)), specs, is_leaf=_is_spec)
    for name in track(list(places)):
        entry, layer = places[name]
        part = entry.read(tensors[name].read(), size)
        if not entry.leaf:
            _check_zero(name, tensors[name].file, part)
        else:
            _copy(_part(weights, entry, layer), part, name, tensors[name].file)
    return weights


def store(model: Architecture, entries: Sequence[Entry], weights: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors, by name: the inverse of `load`. `weights` must be numpy arrays."""
    size, specs = sizes(model), model.specs()
    for name, (entry, layer) in _places(model, entries, specs):
        if entry.leaf:
            yield name, np.ascontiguousarray(entry.write(_part(weights, entry, layer), size))
        else:
            yield name, np.zeros(entry.shape(size), jax.numpy.dtype(model.dtype))


def _places(
    model: Architecture, entries: Iterable[Entry], specs: Any
) -> Iterator[tuple[str, tuple[Entry, int | None]]]:
    """Every tensor name the model has, with its entry and layer."""
    for entry in entries:
        if entry.leaf and _leaf(specs, entry.leaf) is None:
            continue
        if entry.stacked:
            yield from ((entry.name.format(layer), (entry, layer)) for layer in range(repeats(model)))
        else:
            yield entry.name, (entry, None)


def _leaf(tree: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), tree)


def _part(weights: Any, entry: Entry, layer: int | None) -> np.ndarray:
    leaf = _leaf(weights, entry.leaf)
    return (leaf if layer is None else leaf[layer])[entry.at]


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
