"""The chunkwise form of gated linear attention, with its own gradient: what `ops.gla.gla` runs over long sequences.

Inside, arrays lie in chunks: n chunks, B rows, H heads of keys with G queries each, C steps a chunk of sub-chunks of c.
Gates are at most 0, and every factor that is taken to a power is at most 1: no exponent is ever positive.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from paradec.ops.recurrent import state_dtype

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Form(NamedTuple):
    """How it is computed. It is static: another one is another program."""

    scale: float
    chunk: int
    sub_chunk: int

    def of(self, steps: int) -> Form:
        """For so many steps: a short sequence is one chunk of as few sub-chunks as it needs."""
        c = min(self.sub_chunk, steps)
        return Form(self.scale, min(self.chunk, -(-steps // c) * c), c)


def floor(dtype: Any) -> float:
    """A gate that leaves nothing: its `exp` is 0."""
    return -750.0 if dtype == jnp.float64 else -120.0


def bounded(g: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gates no lower than `floor`: no decay changes, and sums of gates keep their last digits."""
    return jnp.maximum(g, floor(g.dtype))


class Inputs(NamedTuple):
    """The steps of all chunks, wide. At a `border` the state is emptied before the step. Queries are scaled."""

    q: Float[Array, "n B H G C K"]
    k: Float[Array, "n B H C K"]
    v: Float[Array, "n B H C V"]
    g: Float[Array, "n B H C K"]
    border: Bool[Array, "n B C"]


def _chunks(form: Form, x: Shaped[Array, "B T H K"]) -> Shaped[Array, "n B H C K"]:
    """Time in chunks; behind the last step are zeros."""
    B, T, H, K = x.shape
    C = form.chunk
    n = -(-T // C)
    x = jnp.pad(x, ((0, 0), (0, n * C - T), (0, 0), (0, 0)))
    return x.reshape(B, n, C, H, K).transpose(1, 0, 3, 2, 4)


def _grouped(x: Float[Array, "n B Q C K"], heads: int) -> Float[Array, "n B H G C K"]:
    """Queries by the key head that serves them."""
    return x.reshape(*x.shape[:2], heads, -1, *x.shape[3:])


def _numbers(form: Form, q: Array, k: Array, v: Array, g: Array) -> tuple[Array, ...]:
    """The first four of `Inputs`, from operands in time."""
    dtype = state_dtype(q)
    q, k, v, g = (_chunks(form, x.astype(dtype)) for x in (q, k, v, bounded(g)))
    return _grouped(q, k.shape[2]) * form.scale, k, v, g


def _borders(form: Form, border: Bool[Array, "B T"]) -> Bool[Array, "n B C"]:
    return _chunks(form, border[..., None, None])[:, :, 0, :, 0]


class Decays(NamedTuple):
    """What is left of a key's entry after some steps, of one chunk; 0 across a border.

    `pairs` and `far` are the two levels of chunking (arXiv 2312.06635, section 4.2). Within sub-chunk i, `pairs` is the
    decay from key s to query t > s. From an earlier sub-chunk j it is `far[i, j] * near[i]`: to the end of sub-chunk
    i - 1, and from there to the query.
    """

    start: Float[Array, "B H C K"]  # from the chunk's start to each step, its own gate included
    end: Float[Array, "B H C K"]  # from behind each step to the chunk's end
    whole: Float[Array, "B H K"]  # from start to end
    near: Float[Array, "B H C K"]
    far: Float[Array, "B H n n c K"]
    pairs: Float[Array, "B H n c c K"]
    earlier: Bool[Array, "B C C"]  # the key stands before the query, and in its segment


def decays(g: Float[Array, "B H C K"], border: Bool[Array, "B C"], c: int) -> Decays:
    """The decays of one chunk.

    Sums of gates begin anew in every sub-chunk, so that a decay between steps that are close, which is the one that is
    not nearly 0, is a difference of small numbers. With c = 2 and gates a b | c d, `near` holds a, a + b | c, c + d;
    `far[1, 0]` holds b, 0: the key of gate a has b to go until its sub-chunk ends.
    """
    B, H, C, K = g.shape
    n = C // c
    blocks = g.reshape(B, H, n, c, K)
    local = jnp.cumsum(blocks, axis=3)
    total, rest = local[:, :, :, -1], local[:, :, :, -1:] - local
    after = jnp.cumsum(total, axis=2)  # up to the end of each sub-chunk
    before = after - total
    start = (before[:, :, :, None] + local).reshape(B, H, C, K)
    end = (after[:, :, -1:, None] - after[:, :, :, None] + rest).reshape(B, H, C, K)
    between = before[:, :, :, None] - after[:, :, None]  # query's sub-chunk i, key's j: the sub-chunks in between
    i, t = jnp.arange(n), jnp.arange(c)
    later = i[:, None, None, None] > i[None, :, None, None]
    far = jnp.where(later, between[:, :, :, :, None] + rest[:, :, None], -jnp.inf)
    step = local[:, :, :, :, None] - local[:, :, :, None]
    pairs = jnp.exp(jnp.where(t[:, None, None] > t[None, :, None], step, -jnp.inf))
    count = jnp.cumsum(border, axis=1)  # borders met so far in the chunk
    steps = jnp.arange(C)
    return Decays(
        start=jnp.exp(jnp.where((count == 0)[:, None, :, None], start, -jnp.inf)),
        end=jnp.exp(jnp.where((count == count[:, -1:])[:, None, :, None], end, -jnp.inf)),
        whole=jnp.exp(jnp.where((count[:, -1] == 0)[:, None, None], start[:, :, -1], -jnp.inf)),
        near=jnp.exp(local).reshape(B, H, C, K), far=jnp.exp(far), pairs=pairs,
        earlier=(count[:, :, None] == count[:, None, :]) & (steps[:, None] > steps[None, :])[None],
    )  # fmt: skip


def scores(q: Float[Array, "B H G C K"], k: Float[Array, "B H C K"], d: Decays) -> Float[Array, "B H G C C"]:
    """How much of every earlier step's value each query reads: `sum over K of q_t k_s exp(b_t - b_s)`, s < t."""
    B, H, G, C, K = q.shape
    n, c = d.pairs.shape[2], d.pairs.shape[3]
    q_blocks, k_blocks = q.reshape(B, H, G, n, c, K), k.reshape(B, H, n, c, K)
    # Within a sub-chunk the exponents differ from pair to pair, so this is a sum and no matrix product.
    own = jnp.sum(q_blocks[:, :, :, :, :, None] * (k_blocks[:, :, :, None] * d.pairs)[:, :, None], axis=-1)
    if n == 1:
        found = own[:, :, :, 0]
    else:
        near = q_blocks * d.near.reshape(B, H, 1, n, c, K)
        found = _einsum("bhgitk,bhijsk->bhgitjs", near, k_blocks[:, :, None] * d.far)
        same = jnp.eye(n, dtype=bool)[None, None, None, :, None, :, None]
        found = jnp.where(same, own[:, :, :, :, :, None], found).reshape(B, H, G, C, C)
    return jnp.where(d.earlier[:, None, None], found, 0)


def attend(
    q: Float[Array, "B H G C K"],
    k: Float[Array, "B H C K"],
    v: Float[Array, "B H C V"],
    own: Float[Array, "B H G C"],
    state: Float[Array, "B H K V"],
    d: Decays,
) -> tuple[Float[Array, "B H G C V"], Float[Array, "B H K V"]]:
    """The outputs of one chunk, and the state after it. `own` is `q_t · k_t`: a query reads its own step undecayed."""
    # Groups are rows of the product. As an axis of their own, some compilations of a gradient on a CPU gave NaN, and
    # none without XLA's YNNPACK (jaxlib 0.10.2): the same program and numbers, now right, now not.
    rows = (q * d.start[:, :, None]).reshape(*k.shape[:2], -1, k.shape[3])
    past = _einsum("bhtk,bhkv->bhtv", rows, state).reshape(*q.shape[:4], -1)
    inside = _einsum("bhgts,bhsv->bhgtv", scores(q, k, d), v)
    return past + inside + own[..., None] * v[:, :, None], advance(k, v, state, d)


def advance(k: Array, v: Array, state: Float[Array, "B H K V"], d: Decays) -> Float[Array, "B H K V"]:
    """The state after one chunk."""
    return d.whole[..., None] * state + _einsum("bhsk,bhsv->bhkv", k * d.end, v)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked(
    form: Form,
    q: Float[Array, "B T Q K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H K"],
    state: Float[Array, "B H K V"],
    border: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T Q V"], Float[Array, "B H K V"]]:
    """The outputs, in q's type, and the state after the last step, in its own type, which is wide.

    The backward pass keeps the operands as they were given. It computes the state before every chunk again
    ("n B H K V") and goes through the chunks in reverse; the gradient of the gates is in closed form.
    """
    form = form.of(q.shape[1])
    x = Inputs(*_numbers(form, q, k, v, g), _borders(form, border))

    def chunk(state: Array, each: Inputs) -> tuple[Array, Array]:
        own = jnp.sum(each.q * each.k[:, :, None], axis=-1)
        o, state = attend(each.q, each.k, each.v, own, state, decays(each.g, each.border, form.sub_chunk))
        return state, o

    state, o = lax.scan(chunk, state, x)
    o = o.transpose(1, 0, 4, 2, 3, 5).reshape(q.shape[0], -1, q.shape[2], v.shape[3])
    return o[:, : q.shape[1]].astype(q.dtype), state


def _forward(form: Form, *operands: Array) -> tuple[Any, tuple[Array, ...]]:
    return chunked(form, *operands), operands


def _backward(form: Form, saved: tuple[Array, ...], given: tuple[Array, Array]) -> tuple[Any, ...]:
    *operands, first, border = saved
    form = form.of(border.shape[1])
    numbers, to_time = jax.vjp(partial(_numbers, form), *operands)
    x = Inputs(*numbers, _borders(form, border))
    d_o = _grouped(_chunks(form, given[0].astype(first.dtype)), x.k.shape[2])

    def forth(state: Array, each: Inputs) -> tuple[Array, Array]:
        return advance(each.k, each.v, state, decays(each.g, each.border, form.sub_chunk)), state

    def back(d_state: Array, each: tuple[Inputs, Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        now, state, d_o = each
        d, own = decays(now.g, now.border, form.sub_chunk), jnp.sum(now.q * now.k[:, :, None], axis=-1)
        (_, after), pull = jax.vjp(lambda *terms: attend(*terms, d), now.q, now.k, now.v, own, state)
        d_q, d_k, d_v, d_own, d_before = pull((d_o, d_state))
        d_g = of_gates(now, d_q, d_k, jnp.sum(after * d_state, axis=-1))
        d_q = d_q + d_own[..., None] * now.k[:, :, None]
        d_k = d_k + jnp.sum(d_own[..., None] * now.q, axis=2)
        return d_before, (d_q, d_k, d_v, d_g)

    _, before = lax.scan(forth, first, x)
    d_first, grads = lax.scan(back, given[1], (x, before, d_o), reverse=True)
    return (*to_time(grads), d_first, None)


def of_gates(
    x: Inputs, d_q: Float[Array, "B H G C K"], d_k: Float[Array, "B H C K"], end: Float[Array, "B H K"]
) -> Float[Array, "B H C K"]:
    """The gradient of one chunk's gates: `sum over s >= t of (q_s dq_s - k_s dk_s)`, and `end`, the sum over V of the
    state after the chunk times its cotangent (arXiv 2312.06635, appendix C, per chunk).

    A gate at t decays what steps before t left to those from t on. All that reaches a query s >= t, less what steps
    s >= t gave to any, is just that; so is what the state holds in the end, less what these steps gave to it. What a
    step gives to its own query is in both sums, and left out of both. Sums stop at borders.
    """
    change = jnp.sum(x.q * d_q, axis=2) - x.k * d_k
    count, steps = jnp.cumsum(x.border, axis=1), jnp.arange(change.shape[2])
    later = (count[:, :, None] == count[:, None, :]) & (steps[:, None] <= steps[None, :])[None]
    total = _einsum("bts,bhsk->bhtk", later.astype(change.dtype), change)
    last = (count == count[:, -1:])[:, None, :, None]
    return jnp.where(x.border[:, None, :, None], 0, total + jnp.where(last, end[:, :, None], 0))


chunked.defvjp(_forward, _backward)
