"""Low-rank adapters: leaves of a parameter tree that carry their frozen weight and a trained change of low rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import params, struct
from paradec.errors import InputError
from paradec.types import Spec


@struct.dataclass
class Adapted:
    """A weight and its change: weight + scale * a b, with the matrix sides flattened. Takes the weight's place.

    Stacked dimensions lead in all three, so scans over layers slice it like a plain leaf.
    """

    weight: Float[Array, "*W"]
    a: Float[Array, "*S I R"]
    b: Float[Array, "*S R O"]
    scale: float = struct.field(pytree_node=False, default=1.0)

    def merged(self) -> Float[Array, "*W"]:
        """The weight with its change."""
        change = jnp.einsum("...ir,...ro->...io", self.a, self.b) * jnp.asarray(self.scale, self.a.dtype)
        return self.weight + change.reshape(self.weight.shape).astype(self.weight.dtype)


def is_adapted(x: Any) -> bool:
    """`is_leaf` of walks that must not enter an adapted weight."""
    return isinstance(x, Adapted)


def merged(tree: PyTree) -> PyTree:
    """The tree with every change added to its weight; one without adapters as it is.

    Models call it on a layer's slice inside their scan: over the whole stack, all weights and their gradients would
    live at once. Over a whole tree it is the export.
    """
    return jax.tree.map(lambda x: x.merged() if is_adapted(x) else x, tree, is_leaf=is_adapted)


def removed(tree: PyTree) -> PyTree:
    """The tree without its changes: the base model, such as a self-distillation's teacher."""
    return jax.tree.map(lambda x: x.weight if is_adapted(x) else x, tree, is_leaf=is_adapted)


def adapt(
    tree: PyTree,
    specs: PyTree,
    key: jax.Array,
    rank: int,
    alpha: float | None = None,
    pick: Callable[[str], bool] = lambda name: True,
) -> PyTree:
    """The tree with an adapter on every dense leaf whose name `pick` wants; it computes the same until b is trained.

    `scale` is `alpha / rank` (default: 1). a is drawn, b is 0; both float32, keyed by the leaf's name. Source: LoRA,
    2106.09685, section 4.1. Raises `InputError` when nothing is picked.
    """
    if rank < 1:
        raise InputError(f"The rank of an adapter must be at least 1; {rank} was given.")
    scale, names = 1.0 if alpha is None else alpha / rank, []

    def one(path: tuple, spec: Spec, weight: Array) -> Any:
        name = params.name(path)
        if spec.dense is None or not pick(name):
            return weight
        names.append(name)
        stack, (side, other) = spec.shape[: spec.dense[0]], _sides(spec.shape, *spec.dense)
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        a = side**-0.5 * jax.random.normal(own, (*stack, side, rank), jnp.float32)
        return Adapted(weight=weight, a=a, b=jnp.zeros((*stack, rank, other), jnp.float32), scale=scale)

    out = jax.tree.map_with_path(one, specs, tree, is_leaf=params.is_spec)
    if not names:
        raise InputError("No dense leaf is to be adapted; choose other names, such as 'blocks/qkv'.")
    return out


def trained(name: str) -> bool:
    """Whether a leaf of an adapted tree, by its name, belongs to a change: for `params.partition`."""
    return name.endswith(("/a", "/b"))


def _sides(shape: tuple[int, ...], stacked: int, inputs: int) -> tuple[int, int]:
    first = stacked + inputs
    return math.prod(shape[stacked:first]), math.prod(shape[first:])
