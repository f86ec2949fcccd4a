"""What `affine_scan(implementation="kernel")` calls: scans by kernel, time on axis 0, float32 out, differentiable."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from paradec.ops.kernels import affine
from paradec.ops.kernels.affine import AffineForm


def diagonal(
    a: Float[Array, "T ..."],
    b: Float[Array, "T ..."],
    h0: Float[Array, "..."] | None = None,
    reverse: bool = False,
    *,
    platform: str | None = None,
) -> Float[Array, "T ..."]:
    """`h_t = a_t h_{t-1} + b_t` for every cell: the states after every step, float32.

    `a` broadcasts over `b`'s trailing axes (written out: the kernel reads it at `b`'s size); h0 None is zero.
    `platform` "tpu" or "gpu" fixes the kernel; None takes that of the platform which the program is lowered for,
    and on a CPU interprets the TPU kernel.
    """
    a = jnp.broadcast_to(a.reshape(a.shape + (1,) * (b.ndim - a.ndim)), b.shape)
    h0 = jnp.zeros(b.shape[1:], jnp.float32) if h0 is None else h0
    return affine.scan(((a,),), (b,), (h0,), AffineForm(reverse, platform=platform))[0]


def block(
    a: affine.Matrix,
    b: affine.Cells,
    h0: affine.State | None = None,
    reverse: bool = False,
    *,
    platform: str | None = None,
) -> affine.Cells:
    """`h_t = A_t h_{t-1} + b_t` with a k x k block for every cell, k <= 4: `a[i][j]`, `b[i]`, `h0[i]` of one shape."""
    h0 = tuple(jnp.zeros(x.shape[1:], jnp.float32) for x in b) if h0 is None else h0
    return affine.scan(a, b, h0, AffineForm(reverse, platform=platform))
