"""How many operations a program's matrix products take, read off its jaxpr: loops count as often as they run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *args: Any) -> float:
    """Operations (two a multiply-add) of all matrix products and convolutions of `function(*args)`.

    Arguments may be abstract. Scans count their length, branches their most expensive one. What XLA's own count
    (`cost_analysis`) gets wrong is loops: it counts a body once. Raises `ValueError` for a `while` loop with products
    in it, whose turns nobody knows.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
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
    inner = [_count(body) for body in _bodies(values)]
    if name == "scan":
        return values["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("A while loop holds matrix products, and nobody knows how often it turns: use a scan.")
    return sum(inner)


def _bodies(values: dict[str, Any]) -> list[Any]:
    found = []
    for value in values.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
