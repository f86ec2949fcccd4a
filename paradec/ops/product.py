"""A product of two arrays of one type with a float32 result, whose gradient is computed in that type too."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


def wide_einsum(subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum` of two arrays of one type, summed and returned in float32: scores and logits are kept that wide.

    The gradient of such a result is float32, and jax would multiply it as it is with the narrow operands: two products
    of every three in float32. Here it is rounded to their type first, as mixed precision does everywhere else.
    """
    if a.dtype == jnp.float32:
        return jnp.einsum(subscripts, a, b)
    return _wide(subscripts, a, b)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


@partial(_wide.defjvp, symbolic_zeros=True)
def _tangent(subscripts: str, operands: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The product rule in the operands' type. Backwards the cast comes first, which is what it is for."""
    (a, b), (da, db) = operands, tangents
    pairs = [(x, y) for moved, x, y in ((da, da, b), (db, a, db)) if not isinstance(moved, SymbolicZero)]
    change = reduce(jnp.add, (jnp.einsum(subscripts, x, y).astype(jnp.float32) for x, y in pairs))
    return _wide(subscripts, a, b), change
