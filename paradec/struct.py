"""Frozen dataclasses that are pytrees: `flax.struct` with its one dangerous corner repaired.

flax registers with `jax.tree_util.register_dataclass`, and the tree structures of two such classes compare *equal* if
their fields do, whatever the classes (jaxlib 0.8 to 0.12: only their hashes differ). `jit` then runs, in about one case
of a hundred, the program compiled for one class on an object of the other, without a word: `Causal()` and `Full()`, or
two selection rules with one threshold each. Structures registered as custom nodes compare their classes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def field(*, pytree_node: bool = True, **options: Any) -> Any:
    """`dataclasses.field`; with `pytree_node=False` it is structure: hashable, compared by value, never traced."""
    return dataclasses.field(metadata={"pytree_node": pytree_node}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(field, dataclasses.field))
def dataclass(cls: type[T] | None = None, /, **options: Any) -> Any:
    """`cls` as a frozen dataclass and a pytree, with `replace(**changes)`. `options` are those of `dataclasses`.

    jax rebuilds objects without `__init__`, because then leaves may be anything: shapes, specs, shardings, None.
    """
    if cls is None:
        return functools.partial(dataclass, **options)
    made = dataclasses.dataclass(**({"frozen": True} | options))(cls)
    split: dict[bool, list[str]] = {True: [], False: []}
    for each in dataclasses.fields(made):
        split[each.metadata.get("pytree_node", True)].append(each.name)
    data, static = split.values()
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(x: T) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(x, name) for name in data], tuple(getattr(x, name) for name in static)

    def flatten_with_keys(x: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        leaves, structure = flatten(x)
        return list(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], leaves: Any) -> T:
        new = object.__new__(made)
        new.__dict__.update(zip(data, leaves, strict=True))
        new.__dict__.update(zip(static, structure, strict=True))
        return new

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    made.replace = dataclasses.replace
    return made
