"""A Kalman filter over a sequence in parallel, number by number: the damped step of ELK (arXiv 2407.19115)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def filtered(
    f: Float[Array, "T ..."],
    b: Float[Array, "T ..."],
    y: Float[Array, "T ..."],
    damping: Float[Array, ""],
    first: Float[Array, "..."],
) -> Float[Array, "T ..."]:
    """Means of a Kalman filter, number by number: `h_t = f_t h_{t-1} + b_t + noise` is observed as `y_t`.

    The noise of a step has variance 1, that of an observation `1 / damping`. At step 0 the state is expected to be
    `first`; `f[0]` and `b[0]` are not read. With damping 0 nothing is observed: the linear recurrence. Parallel in T,
    by the associative elements of Särkkä and García-Fernández (arXiv 1905.13002) for scalars, as ELK has them.
    """
    gain = damping / (1 + damping)
    f, b = f.at[0].set(0), b.at[0].set(first)
    keep, seen = 1 - gain, gain * (y - b)

    def combine(early: tuple, late: tuple) -> tuple:
        (A1, b1, C1, e1, J1), (A2, b2, C2, e2, J2) = early, late
        share = 1 / (C1 * J2 + 1)
        return (
            A1 * A2 * share, A2 * (C1 * e2 + b1) * share + b2, C1 * A2 * A2 * share + C2,
            A1 * (e2 - J2 * b1) * share + e1, J2 * A1 * A1 * share + J1,
        )  # fmt: skip

    elements = (keep * f, b + seen, jnp.broadcast_to(keep, f.shape), f * seen, f * f * gain)
    return lax.associative_scan(combine, elements)[1]
