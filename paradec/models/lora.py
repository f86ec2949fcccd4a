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

    Stacked dimensions lead in all three, so scans over layers slice it like a plain leaf. Models multiply with it
    through `changed` and `product`, which never add the change to the weight: in bfloat16 the sum would round it away
    where it is small, and the gradient of the sum takes as long as the weight's own.
    """

    weight: Float[Array, "*W"]
    a: Float[Array, "*S I R"]
    b: Float[Array, "*S R O"]
    scale: float = struct.field(pytree_node=False, default=1.0)

    def __getitem__(self, index: int) -> Adapted:
        """One of a stack."""
        return Adapted(weight=self.weight[index], a=self.a[index], b=self.b[index], scale=self.scale)

    def merged(self) -> Float[Array, "*W"]:
        """The weight with its change, in the weight's type: in bfloat16 what is below its last bit is lost."""
        wide = (x.astype(jnp.float32) for x in (self.a, self.b))
        change = self.scale * jnp.einsum("...ir,...ro->...io", *wide).reshape(self.weight.shape)
        return (self.weight.astype(jnp.float32) + change).astype(self.weight.dtype)


def is_adapted(x: Any) -> bool:
    """`is_leaf` of walks that must not enter an adapted weight."""
    return isinstance(x, Adapted)


def changed(
    w: Array | Adapted, plain: Callable[[Array], Array], low: Callable[[Array, Array], Array]
) -> Float[Array, "..."]:
    """What is linear in a weight: `plain(weight)`, and of an adapted one `scale * low(a, b)` more."""
    if not is_adapted(w):
        return plain(w)
    out = plain(w.weight)
    change = low(*(x.astype(w.weight.dtype) for x in (w.a, w.b)))
    return out + (change * jnp.asarray(w.scale, change.dtype)).astype(out.dtype)


def product(
    subscripts: str, x: Array, w: Array | Adapted, einsum: Callable[..., Array] = jnp.einsum
) -> Float[Array, "..."]:
    """`einsum(subscripts, x, w)`. The letters of either side of the matrix stand together in w, inputs first."""

    def low(a: Array, b: Array) -> Array:
        operands, out = subscripts.split("->")
        mine, letters = operands.split(",")
        n = next(n for n in range(len(letters)) if math.prod(w.weight.shape[:n]) == len(a))
        a, b = a.reshape(*w.weight.shape[:n], -1), b.reshape(-1, *w.weight.shape[n:])
        return jnp.einsum(f"{mine},{letters[:n]}R,R{letters[n:]}->{out}", x, a, b)  # in the order that costs least

    return changed(w, lambda weight: einsum(subscripts, x, weight), low)


def merged(tree: PyTree) -> PyTree:
    """The tree with every change added to its weight, as it is exported; one without adapters as it is."""
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
