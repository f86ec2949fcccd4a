"""How many operations a program's matrix products take, read off its jaxpr: loops count as often as they run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def count(function: Callable[..., Any], *args: Any) -> float:
    """Operations (two a multiply-add) of all matrix products and convolutions of `function(*args)`.

    Arguments may be abstract. Scans count their length, branches their most expensive one. What XLA's own count
    (`cost_analysis`) gets wrong is loops: it counts a body once. Raises `ValueError` for a `while` loop with products
    in it, whose turns nobody knows.
    """
    return sum(by_type(function, *args).values())


def by_type(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """The same, apart by the type that a product runs in: the wider of its two operands'."""
    return dict(_count(jax.make_jaxpr(function)(*args).jaxpr))


def _count(jaxpr: Any) -> Counter:
    return sum((_equation(equation) for equation in jaxpr.eqns), Counter())


def _equation(equation: Any) -> Counter:
    name, values = equation.primitive.name, equation.params
    own = _product(equation)
    if own:
        widest = max((x.aval.dtype for x in equation.invars[:2]), key=lambda dtype: jnp.dtype(dtype).itemsize)
        return Counter({jnp.dtype(widest).name: own})
    inner = [_count(body) for body in _bodies(values)]
    if name == "cond":
        return max(inner, key=Counter.total)
    turns = values["length"] if name == "scan" else 1
    every = sum(inner, Counter())
    if name == "while" and every:
        raise ValueError("A while loop holds matrix products, and nobody knows how often it turns: use a scan.")
    return Counter({dtype: turns * operations for dtype, operations in every.items()})


def _product(equation: Any) -> float:
    """The operations of one equation that is a product, else 0."""
    name, values = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = values["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
    if name == "ragged_dot_general":  # every row meets the matrix of one group
        return 2.0 * math.prod(equation.invars[0].aval.shape) * equation.outvars[0].aval.shape[-1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out = values["dimension_numbers"].rhs_spec[0]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[out]
    return 0.0


def _bodies(values: dict[str, Any]) -> list[Any]:
    found = []
    for value in values.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
