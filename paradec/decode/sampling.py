"""From logits to tokens: the transforms, and noise keyed by (row, absolute position, purpose).

Sampling is `argmax(warped logits + Gumbel noise)`. The noise depends on nothing that a method decides, so two exact
methods with the same keys return the same tokens at every temperature, and a row in a batch the same as the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from paradec.ops.argmax import argmax
from paradec.types import DecodeState, Sampling, Tree

NEXT, ACCEPT, RESIDUAL, DRAFT, ORDER, NOISE = range(6)  # purposes of noise; one stream each

# The transforms of `Sampling` in order, as in transformers: repetition, temperature, top-k, top-p, min-p.


def row_keys(seed: int | Sequence[int], rows: Sequence[int]) -> jax.Array:
    """One threefry key per row, from the seed and the row's number in its data set (not in its batch).

    Each row may have a seed of its own.
    """
    seeds = np.broadcast_to(np.asarray(seed, np.uint32), (len(rows),))
    return _row_keys(seeds, np.asarray(rows, np.uint32))


@jax.jit
def _row_keys(seeds: Array, rows: Array) -> jax.Array:
    # Written out: under vmap, rbg keys would give a row other noise than the row alone.
    key = lambda seed, row: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), row)
    return jax.vmap(key)(seeds, rows)


def gumbel(key: jax.Array, position: Int[Array, "B M"], vocab: int, purpose: int) -> Float[Array, "B M V"]:
    """Standard Gumbel noise for the token at each absolute position. Keys are folded, not consumed."""

    def one(key: jax.Array, position: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, position), purpose), (vocab,))

    return jax.vmap(jax.vmap(one, (None, 0)))(key, position)


def uniform(key: jax.Array, position: Int[Array, "B M"], purpose: int) -> Float[Array, "B M"]:
    """One uniform in [0, 1) for each absolute position."""

    def one(key: jax.Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, position), purpose))

    return jax.vmap(jax.vmap(one, (None, 0)))(key, position)


def integers(key: jax.Array, position: Int[Array, "B M"], below: int, purpose: int) -> Int32[Array, "B M"]:
    """One whole number from 0 to `below` - 1, all alike probable, for each absolute position."""

    def one(key: jax.Array, position: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(jax.random.fold_in(key, position), purpose), (), 0, below)

    return jax.vmap(jax.vmap(one, (None, 0)))(key, position)


def warp(logits: Float[Array, "B N V"], s: Sampling) -> Float[Array, "B N V"]:
    """Log weights (unnormalised, float32) of the law each row samples from; forbidden tokens are -inf.

    Rows at temperature 0 become one-hot at their argmax, so greedy is a special case of everything downstream.
    Tokens tied with the last one that top-k or top-p keeps are kept too.
    """
    scaled, best = filtered(logits, s), argmax(logits.astype(jnp.float32))[..., None]
    onehot = jnp.where(lax.broadcasted_iota(best.dtype, logits.shape, 2) == best, 0.0, -jnp.inf)
    return jnp.where((s.temperature <= 0)[:, None, None], onehot, scaled)


def filtered(logits: Float[Array, "B N V"], s: Sampling) -> Float[Array, "B N V"]:
    """Logits in float32 after temperature and filters; rows at temperature 0 are filtered as they stand."""
    heat = jnp.where(s.temperature > 0, s.temperature, 1.0)[:, None, None]
    active = jnp.any((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
    keep = lambda x: jnp.where(x >= _threshold(x, s), x, -jnp.inf)
    return lax.cond(active, keep, lambda x: x, logits.astype(jnp.float32) / heat)


def _threshold(x: Float[Array, "B N V"], s: Sampling) -> Float[Array, "B N 1"]:
    """The smallest log weight that top-k, then top-p of what is left, then min-p keep.

    All three are thresholds on the log weight, so a token is kept where it reaches the largest of them. Top-k: fewer
    than k tokens weigh more. Top-p: tokens that weigh more have less than p together, so the one that crosses p is
    kept. Min-p: at least min_p times the largest weight (2407.01082), which needs no sum.
    """
    top_k, top_p, min_p = (v[:, None, None] for v in (s.top_k, s.top_p, s.min_p))
    top = jnp.max(x, axis=-1, keepdims=True)
    kth = _above(x, jnp.ones_like(x), jnp.where(top_k > 0, top_k.astype(jnp.float32), jnp.inf), top)
    p = jax.nn.softmax(jnp.where(x >= kth, x, -jnp.inf), axis=-1)
    nucleus = _above(x, p, jnp.where(top_p < 1, jnp.maximum(top_p, 1e-30), jnp.inf), top)
    relative = top + jnp.where(min_p > 0, jnp.log(jnp.maximum(min_p, 1e-30)), -jnp.inf)
    return jnp.maximum(jnp.maximum(kth, nucleus), relative)


def _above(
    x: Float[Array, "B N V"], weight: Float[Array, "B N V"], bound: Float[Array, "B #N 1"], top: Float[Array, "B N 1"]
) -> Float[Array, "B N 1"]:
    """The smallest t such that the entries of x above t weigh less than `bound`: an entry of x, or -inf if all do.

    Example of top-k, weights of 1, bound 2, x = (3, 1, 2, 0): above 2 there is one entry, above 1 there are two, so t
    is 2, and x >= t keeps 3 and 2. Of top-p, probabilities (.5, .3, .15, .05), bound .7: above the second entry lie .5,
    above the third .8, so t is the second entry, and .5 and .3 are kept.

    Found by halving the range of float32 bit patterns, 32 sums over V. To sort a vocabulary that is sharded would
    gather it, and for 18 rows of 128256 take 128 MiB and half a minute of compilation on a TPU.
    """

    def ordered(bits: Array | np.int32) -> Array | np.int32:  # sorts like the float of these bits; its own inverse
        return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # the answer is above low, and at most high
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        fits = jnp.sum(jnp.where(key > middle, weight, 0.0), axis=-1, keepdims=True) < bound
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    # Floats of one sign sort like their bits, and negative ones backwards, which `ordered` turns round. So 32 halvings
    # of an interval of int32 end at one float exactly; it begins just below -inf, and at the largest entry.
    key, high = (ordered(lax.bitcast_convert_type(v, jnp.int32)) for v in (x, top))
    low = jnp.full_like(high, ordered(np.float32(-np.inf).view(np.int32)) - 1)
    _, found = lax.fori_loop(0, 32, halve, (low, high))
    return lax.bitcast_convert_type(ordered(found), jnp.float32)


def seen(state: DecodeState, token: Int[Array, "B N"], see: Bool[Array, "B N N"], vocab: int) -> Bool[Array, "B N V"]:
    """Which tokens the text up to each node holds: the row's own text and the node's ancestors."""

    # `max` with False leaves an entry as it is, so padding behind the text marks nothing.
    def text(tokens: Array, length: Array) -> Array:
        return jnp.zeros(vocab, bool).at[tokens].max(lax.iota(jnp.int32, tokens.shape[0]) < length)

    def path(j: Array | int, so_far: Array) -> Array:
        here = lax.broadcasted_iota(jnp.int32, (1, 1, vocab), 2) == token[:, j, None, None]
        return so_far | (see[:, :, j, None] & here)

    # Node by node: as one scatter it takes 324 MiB on a TPU, for 8 rows of 11 nodes and 49152 tokens.
    before = jax.vmap(text)(state.tokens, state.length)
    return lax.fori_loop(0, token.shape[1], path, jnp.broadcast_to(before[:, None], (*token.shape, vocab)))


def penalise(logits: Float[Array, "B N V"], seen: Bool[Array, "B N V"], s: Sampling) -> Float[Array, "B N V"]:
    """Repetition penalty: seen tokens' logits divided by it where positive, multiplied where negative (1909.05858)."""
    penalty = s.repetition[:, None, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def next_tokens(
    logits: Float[Array, "B N V"],
    s: Sampling,
    key: jax.Array,
    first: Int[Array, "B"],
    depth: Int[Array, "B N"],
    span: int,
    purpose: int = NEXT,
) -> Int32[Array, "B N"]:
    """The token each node's row would emit: argmax, or argmax of warped logits plus noise.

    `first` is the absolute position of the token after a node of depth 0. Noise is drawn once per position (depths
    0..span), not per node, so siblings share it and a tree samples exactly like the chain it holds. A text of 5 tokens:
    the root (depth 0) chooses the token of position 5, and both of its children that of position 6, under one noise.
    """

    def sampled(x: Array) -> Array:
        position = first[:, None] + lax.iota(jnp.int32, span + 1)[None]
        noise = gumbel(key, position, x.shape[-1], purpose)
        noise = noise if span == 0 else jnp.take_along_axis(noise, depth[:, :, None], axis=1)
        return argmax(warp(x, s) + noise)

    # Token ids leave the branches, not logits: noise over a vocabulary can cost more than the model on a CPU.
    return lax.cond(jnp.any(s.temperature > 0), sampled, argmax, logits)


def choose(
    logits: Float[Array, "B N V"], tree: Tree, see: Bool[Array, "B N N"], state: DecodeState, span: int
) -> tuple[Int32[Array, "B N"], Float[Array, "B N V"]]:
    """The target's own next token after every node of a tree, and its logits with the repetition penalty applied."""

    def penalised(x: Array) -> Array:
        return penalise(x, seen(state, tree.token, see, x.shape[-1]), state.sampling)

    logits = lax.cond(jnp.any(state.sampling.repetition != 1), penalised, lambda x: x, logits)
    return next_tokens(logits, state.sampling, state.key, state.length, tree.depth, span), logits


def sampling(
    rows: int,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition: float | Sequence[float] = 1.0,
) -> Sampling:
    """`Sampling` for a batch; each argument is one value for all rows or one per row."""

    def spread(value: float | Sequence[float], dtype: type) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype), (rows,))

    return jax.device_put(
        Sampling(
            temperature=spread(temperature, np.float32),
            top_k=spread(top_k, np.int32),
            top_p=spread(top_p, np.float32),
            min_p=spread(min_p, np.float32),
            repetition=spread(repetition, np.float32),
        )
    )
