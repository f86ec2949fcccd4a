"""A layer stack taken apart, and its layers written out: the form of a decode step on a CPU.

A scan slices each layer's weights out of the stack, and XLA's CPU backend copies the slice before a library product.
That is cheap only while the cache that all cores share holds the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from paradec.models import lora


def taken_apart(stack: Any) -> tuple[Any, ...]:
    """The layers of a stack, each as its own `apart()` lays it out. Of numpy arrays all are views."""
    depth = len(jax.tree.leaves(stack)[0])
    return tuple(_pick(stack, i).apart() for i in range(depth))


def pair(both: Any) -> tuple[Any, Any] | None:
    """The two matrices of a leaf that holds a pair of them, such as gate and up."""
    return None if both is None else (_pick(both, 0), _pick(both, 1))


def matrix(out: Any) -> Any:
    """An output projection, "H G K D", as one matrix, "H*G*K D"."""
    flat = lambda x: x.reshape(-1, x.shape[-1])
    return out.replace(weight=flat(out.weight)) if lora.is_adapted(out) else flat(out)


def in_turn(layer: Callable, x: Array, layers: tuple[Any, ...], each: PyTree) -> tuple[Array, PyTree]:
    """What `lax.scan(layer, x, (stacked, *each))` returns, of layers that are not stacked."""
    layer, made = jax.jit(layer), []  # traced once
    for i, w in enumerate(layers):
        x, out = layer(x, (w, *_pick(each, i)))
        made.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


def once(make: Callable[[], PyTree], count: Int[Array, ""]) -> PyTree:
    """What `make` returns, computed once: every layer that is written out would compute it for itself.

    A compiler does not look into a branch, and does not know that a count is not negative.
    """
    blank = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(make))
    return jax.lax.cond(count >= 0, make, blank)


def held_back(delta: PyTree, x: Float[Array, "B M D"]) -> PyTree:
    """`delta`, but known no earlier than `x`, what the last layer returns.

    Layers that are written out read the cache at times of their own. Could it be written before the last has read it,
    the compiler would keep a copy of it all. No compiler knows that x holds numbers.
    """
    broken = jnp.all(jnp.isnan(x[:, :, 0]))
    return jax.tree.map(lambda new: jnp.where(broken, jnp.full_like(new, jnp.nan), new), delta)


def _pick(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)
