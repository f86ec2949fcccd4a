"""What every kernel is put through: values and cotangents against the plain form, interpreted on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def agree(kernel: Callable, plain: Callable, *arguments: Any, rtol: float = 2e-6) -> None:
    """Values of both, and cotangents of every argument under one push, within `rtol` of each leaf's greatest entry.

    Both widen bfloat16 arguments, so what is compared is the arithmetic; their cotangents come back rounded (2^-8).
    """
    got, pull = _run(kernel)(*arguments)
    want, pull_want = _run(plain)(*arguments)
    jax.tree.map(lambda x, y: _close(x, y, rtol), got, want)
    push = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype), want)
    jax.tree.map(lambda x, y: _close(x, y, 4 * rtol), _pull(pull, push), _pull(pull_want, push))


def _close(x: jax.Array, y: jax.Array, rtol: float) -> None:
    assert x.dtype == y.dtype and x.shape == y.shape
    rtol = max(rtol, 2**-7) if x.dtype == jnp.bfloat16 else rtol
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(1e-3, np.abs(y).max(initial=0.0)))


@cache
def _run(function: Callable) -> Callable:
    return jax.jit(lambda *arguments: jax.vjp(function, *arguments))


_pull = jax.jit(lambda pull, push: pull(push))
