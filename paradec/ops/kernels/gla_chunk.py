"""One chunk of gated linear attention, forward and backward, on two-dimensional values: what the TPU kernel is made of.

Within a chunk of C rows, with b the cumulative log-decay of the chunk up to and including a row, S the state before it:

    o_t = scale * ((q_t * e^{b_t}) S + sum_{j <= t} A_tj v_j),   A_tj = sum_k q_tk k_jk e^{b_tk - b_jk}
    S'  = e^{b_C} * S + (k * e^{b_C - b})^T v

(Gated Linear Attention, 2312.06635.) No exponent is ever positive: rows are taken in sub-blocks of c; a sub-block
meets earlier keys by one product whose two factors are both measured from its first row, and its own keys pair by
pair. Everything is float32; `precision` is that of the products with q, k and v.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

HIDDEN = -1e30  # an exponent whose exp is 0; finite, so that differences of hidden ones stay numbers


def product(x: Array, y: Array, contract: str = "k", precision: Any = lax.Precision.HIGHEST) -> Float[Array, "M N"]:
    """`x @ y` ("k"), `x @ y.T` ("nt") or `x.T @ y` ("tn"), accumulated in float32."""
    axes = {"k": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}[contract]
    return lax.dot_general(x, y, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def cumulative(g: Float[Array, "C K"], backwards: bool = False) -> Float[Array, "C K"]:
    """Sums from the first row up to and including each (`backwards`: from each to the last); a triangular product."""
    row, column = (lax.broadcasted_iota(jnp.int32, (g.shape[0],) * 2, axis) for axis in (0, 1))
    return product(jnp.where(row <= column if backwards else row >= column, 1.0, 0.0), g)


def after(
    S: Float[Array, "K V"], k: Float[Array, "C K"], v: Float[Array, "C V"], b: Float[Array, "C K"], precision: Any
) -> Array:
    """The state after the chunk."""
    end = b[-1:]
    return jnp.exp(end).T * S + product(k * jnp.exp(end - b), v, "tn", precision)


def outputs(q: Array, k: Array, v: Array, b: Array, S: Array, sub: int, precision: Any) -> Float[Array, "C V"]:
    """`o` without its scale."""
    inter = product(q * jnp.exp(b), S, "k", precision)
    blocks = []
    for first in range(0, q.shape[0], sub):
        own = slice(first, first + sub)
        o = product(_diagonal(q[own], k[own], b[own]), v[own], "k", precision)
        if first:
            qs, ks, _, _ = _measured(q, k, b, first, sub)
            o += product(product(qs, ks, "nt", precision), v[:first], "k", precision)
        blocks.append(o)
    return inter + jnp.concatenate(blocks)


def cotangents(
    q: Array, k: Array, v: Array, b: Array, S: Array, end: Array, do: Array, dS: Array, sub: int, precision: Any
) -> tuple[Array, Array, Array, Array, Array]:
    """Of q, k, v, g and S. `end` is the state after the chunk, dS its cotangent, do that of `outputs`.

    That of g is in closed form, without the gradients of any exponential: row t's g scales all that later rows (and the
    state after the chunk) take from keys before t, so dg_t = sum_{s >= t} (q_s dq_s - k_s dk_s) + sum_V end dS.
    """
    grow, left = jnp.exp(b), jnp.exp(b[-1:] - b)
    dq = product(do, S, "nt", precision) * grow
    dk = product(v, dS, "nt", precision) * left
    dv = product(k * left, dS, "k", precision)
    dqs, dks, dvs = [], [jnp.zeros_like(k)], [jnp.zeros_like(v)]
    for first in range(0, q.shape[0], sub):
        own = slice(first, first + sub)
        dA = product(do[own], v[own], "nt", precision)
        dqi, dki, A = _diagonal_cotangents(q[own], k[own], b[own], dA)
        inner = [(dki, product(A, do[own], "tn", precision))]
        if first:
            qs, ks, q_decay, k_decay = _measured(q, k, b, first, sub)
            dA = product(do[own], v[:first], "nt", precision)
            dqi += product(dA, ks, "k", precision) * q_decay
            earlier = product(dA, qs, "tn", precision) * k_decay
            inner.insert(0, (earlier, product(product(qs, ks, "nt", precision), do[own], "tn", precision)))
        dqs.append(dqi)
        rest = q.shape[0] - first - sub
        for whole, part in ((dks, 0), (dvs, 1)):
            pieces = [x[part] for x in inner]
            if rest:
                pieces.append(jnp.zeros((rest, pieces[0].shape[1]), jnp.float32))
            whole.append(jnp.concatenate(pieces))
    dq, dk, dv = dq + jnp.concatenate(dqs), dk + sum(dks), dv + sum(dvs)
    dg = cumulative(q * dq - k * dk, backwards=True) + jnp.sum(end * dS, axis=1, keepdims=True).T
    return dq, dk, dv, dg, jnp.exp(b[-1:]).T * dS + product(q * grow, do, "tn", precision)


def _measured(q: Array, k: Array, b: Array, first: int, sub: int) -> tuple[Array, Array, Array, Array]:
    """A sub-block's queries and all keys before it, decayed to and from its first row; and the two decays."""
    own, origin = slice(first, first + sub), b[first : first + 1]
    q_decay, k_decay = jnp.exp(b[own] - origin), jnp.exp(origin - b[:first])
    return q[own] * q_decay, k[:first] * k_decay, q_decay, k_decay


def _diagonal(q: Array, k: Array, b: Array) -> Float[Array, "c c"]:
    """A within one sub-block, a column (one key) at a time."""
    row, column = (lax.broadcasted_iota(jnp.int32, (q.shape[0],) * 2, axis) for axis in (0, 1))
    A = jnp.zeros(row.shape, jnp.float32)
    for j in range(q.shape[0]):
        A = jnp.where(column == j, jnp.sum(q * k[j : j + 1] * _decay(b, j), axis=1, keepdims=True), A)
    return A


def _diagonal_cotangents(q: Array, k: Array, b: Array, dA: Array) -> tuple[Array, Array, Array]:
    """Of q and k within one sub-block; and A."""
    row, column = (lax.broadcasted_iota(jnp.int32, (q.shape[0],) * 2, axis) for axis in (0, 1))
    A, dq, dk = jnp.zeros(row.shape, jnp.float32), jnp.zeros_like(q), []
    for j in range(q.shape[0]):
        decay = _decay(b, j)
        A = jnp.where(column == j, jnp.sum(q * k[j : j + 1] * decay, axis=1, keepdims=True), A)
        decay *= dA[:, j : j + 1]
        dq += decay * k[j : j + 1]
        dk.append(jnp.sum(decay * q, axis=0, keepdims=True))
    return dq, jnp.concatenate(dk), A


def _decay(b: Float[Array, "c K"], j: int) -> Float[Array, "c K"]:
    """From key j to each row of the sub-block; 0 for the rows before it."""
    row = lax.broadcasted_iota(jnp.int32, b.shape, 0)
    return jnp.exp(jnp.where(row >= j, b - b[j : j + 1], HIDDEN))
