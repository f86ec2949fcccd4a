"""Over trees of `Spec`: make the parameters, place them, count them, take them apart and put them together again.

A model's `specs()` is the single source; nothing here knows a model. A leaf's name is its path, "blocks/mlp_norm".
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from paradec.errors import InputError
from paradec.mesh import TENSOR, layout
from paradec.types import Spec


def is_spec(x: Any) -> bool:
    """`is_leaf` of every walk over a Spec tree: a Spec is a tuple, which jax would walk into."""
    return isinstance(x, Spec)


def name(path: tuple) -> str:
    """The name of a leaf from the path that `jax.tree.map_with_path` passes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def init(specs: PyTree, key: Array, shardings: PyTree | None = None) -> PyTree:
    """Random parameters in one compiled call, each made where `shardings` wants it: no device ever holds them all.

    A leaf's numbers depend on the key and its name alone, so adding a leaf changes no other, and neither does the mesh.
    """
    leaves, treedef = jax.tree.flatten_with_path(specs, is_leaf=is_spec)
    named = tuple((name(path), spec._replace(dtype=np.dtype(spec.dtype))) for path, spec in leaves)
    places = None if shardings is None else tuple(treedef.flatten_up_to(shardings))
    return treedef.unflatten(_maker(named, places)(key))


@functools.lru_cache(maxsize=32)
def _maker(named: tuple[tuple[str, Spec], ...], places: tuple | None) -> Callable[[Array], tuple[Array, ...]]:
    def make(key):
        # crc32, not hash(): the same in every process and on every machine.
        return tuple(_leaf(path, spec, jax.random.fold_in(key, zlib.crc32(path.encode()))) for path, spec in named)

    return jax.jit(make, out_shardings=places)


def _leaf(path: str, spec: Spec, key: Array) -> Array:
    match spec.init:
        case "ones":
            return jnp.ones(spec.shape, spec.dtype)
        case "zeros":
            return jnp.zeros(spec.shape, spec.dtype)
        case float() | int() as scale:  # drawn in float32, so that a bfloat16 model starts as the rounded float32 one
            return (scale * jax.random.normal(key, spec.shape, jnp.float32)).astype(spec.dtype)
    raise InputError(f'The initialiser of {path!r} is {spec.init!r}; it must be a number, "ones" or "zeros".')


def shardings(specs: PyTree, mesh: Mesh, rules: Mapping = TENSOR) -> PyTree:
    """A `NamedSharding` for every leaf. See `mesh.layout` for what happens to uneven axes."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, layout(spec.axes, spec.shape, mesh, rules)), specs, is_leaf=is_spec
    )


def abstract(specs: PyTree, shardings: PyTree | None = None) -> PyTree:
    """Shapes and types without numbers: for compiling ahead of time, and as the target of a restore."""
    if shardings is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), specs, is_leaf=is_spec)
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), specs, shardings, is_leaf=is_spec
    )


def count(tree: PyTree) -> int:
    """How many numbers a tree of specs or arrays holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree, is_leaf=is_spec))


def nbytes(tree: PyTree) -> int:
    """How many bytes a tree of specs or arrays takes."""
    leaves = jax.tree.leaves(tree, is_leaf=is_spec)
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The tree with its floating-point leaves (arrays, shapes or specs) in another type; integers stay."""

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if isinstance(leaf, Spec):
            return leaf._replace(dtype=dtype)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=np.dtype(dtype))
        return leaf.astype(dtype)

    return jax.tree.map(one, tree, is_leaf=is_spec)


def partition(tree: PyTree, pick: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Two trees of the same structure: leaves whose name `pick` wants, and the others.

    The gaps are None, an empty subtree: `grad`, optax, averages and checkpoints pass over it without being told.
    """

    def side(want: bool) -> PyTree:
        keep = lambda path, leaf: leaf if bool(pick(name(path))) is want else None
        return jax.tree.map_with_path(keep, tree, is_leaf=is_spec)

    return side(True), side(False)


def merge(a: PyTree, b: PyTree) -> PyTree:
    """The inverse of `partition`: each leaf from the side that has it."""

    def one(path, x, y):
        if x is not None and y is not None:
            raise InputError(f"Both trees have the leaf {name(path)!r}; merge takes each from one side only.")
        return y if x is None else x

    return jax.tree.map_with_path(one, a, b, is_leaf=lambda x: x is None or is_spec(x))
