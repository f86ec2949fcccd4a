"""Denoisers that are exact: the true law of every open position given the committed ones, in closed form.

They are what unmasking rules are measured with: no training, a known joint law, and real trade-offs. Neither keeps a
cache, so they serve the policy "none". Off the support of the joint, where the posterior is 0 / 0, they answer with the
prior marginals, never with NaN.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.types import Denoiser, Output, Rows, Sizes, Spec

TINY = 1e-30


@struct.dataclass
class NoCache:
    """Nothing kept, in the shape of a cache."""

    length: Int32[Array, "B"]


class _Exact(Denoiser):
    """What both have in common as denoisers."""

    def sizes(self) -> Sizes:
        """The numbers that formulas need. `hidden` are the marginals."""
        return Sizes(self.vocab_size, width=self.vocab_size)

    def init_cache(self, batch: int, slots: int) -> NoCache:
        """Nothing; a posterior needs the whole canvas."""
        if slots:
            raise ValueError("An exact denoiser keeps no cache; decode it with cache='none'.")
        return NoCache(length=jnp.zeros(batch, jnp.int32))

    def extend(
        self, params: PyTree, cache: NoCache, rows: Rows, *, live: Bool[Array, "B"] | None = None
    ) -> tuple[Output, tuple]:
        """Log marginals of the rows that are read, given every committed token. Rows must be the whole canvas."""
        place = rows.place
        known = place.fresh & (rows.token != self.mask_id)
        marginal = self.marginals(params, jnp.where(known, rows.token, self.mask_id))
        if rows.read is not None:
            marginal = jnp.take_along_axis(marginal, rows.read[..., None], axis=1)
        logits = jnp.log(jnp.maximum(marginal, TINY))
        return Output(logits=logits, hidden=marginal), ()

    def store(self, cache: NoCache, delta: tuple, start: Array, count: Array, length: Array) -> NoCache:
        return cache


@struct.dataclass
class MarkovChain:
    """The parameters of a `HiddenMarkov`: probabilities, and what is known of each position beforehand."""

    start: Float[Array, "V"]
    transition: Float[Array, "V V"]  # row: from, column: to
    evidence: Float[Array, "B S V"] | None = None  # likelihood of each token at each position; None: nothing known


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HiddenMarkov(_Exact):
    """Text from a Markov chain, seen through noise: forward and backward messages by one associative scan each.

    `parallel=False` passes the messages on one by one: V times less work, S times the depth, and quick to compile.
    """

    vocab_size: int
    parallel: bool = True

    @property
    def mask_id(self) -> int:
        """One past the vocabulary: it can be shown and never proposed."""
        return self.vocab_size

    def specs(self) -> MarkovChain:
        """The parameter tree, a `Spec` at every leaf; draw real ones with `random_chain`."""
        V = self.vocab_size
        return MarkovChain(start=Spec((V,), ("vocab",), "ones"), transition=Spec((V, V), ("vocab", None), "ones"))

    def marginals(self, params: MarkovChain, token: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """p(x_s | committed tokens, evidence) for every position; `mask_id` stands at open ones."""
        B, S = token.shape
        free = jnp.ones((B, S, self.vocab_size)) if params.evidence is None else params.evidence[:B, :S]
        own = jax.nn.one_hot(token, self.vocab_size)
        both = self._smooth(params, jnp.where((token == self.mask_id)[..., None], free, own))
        prior = self._smooth(params, free)
        total = jnp.sum(both, axis=-1, keepdims=True)
        return jnp.where(total > TINY, both / jnp.maximum(total, TINY), prior)

    def _smooth(self, params: MarkovChain, seen: Float[Array, "B S V"]) -> Float[Array, "B S V"]:
        messages = self._at_once if self.parallel else self._in_turn
        forward, backward = messages(params.start[None] * seen[:, 0], params.transition, seen[:, 1:])
        return _scaled(forward * backward, law=True)

    def _in_turn(self, first: Array, move: Array, seen: Array) -> tuple[Array, Array]:
        ahead = lambda m, e: (n := _scaled(jnp.matmul(m, move, precision=lax.Precision.HIGHEST) * e), n)
        behind = lambda m, e: (n := _scaled(jnp.matmul(m * e, move.T, precision=lax.Precision.HIGHEST)), n)
        rest, last = seen.swapaxes(0, 1), jnp.ones_like(first)
        forward = lax.scan(ahead, first, rest)[1].swapaxes(0, 1)
        backward = lax.scan(behind, last, rest, reverse=True)[1].swapaxes(0, 1)
        return jnp.concatenate([first[:, None], forward], 1), jnp.concatenate([backward, last[:, None]], 1)

    def _at_once(self, first: Array, move: Array, seen: Array) -> tuple[Array, Array]:
        step = move[None, None] * seen[:, :, None]  # "B S-1 V V": from s to s + 1, and what is seen there
        ahead = lax.associative_scan(_compose, step, axis=1) if step.shape[1] else step
        behind = lax.associative_scan(lambda a, b: _compose(b, a), step, axis=1, reverse=True)
        forward = _scaled(jnp.einsum("bv,bsvw->bsw", first, ahead, precision=lax.Precision.HIGHEST))
        backward, last = _scaled(behind.sum(-1)), jnp.ones_like(first)[:, None]
        return jnp.concatenate([first[:, None], forward], 1), jnp.concatenate([backward, last], 1)


def _scaled(x: Float[Array, "... V"], law: bool = False) -> Float[Array, "... V"]:
    """Messages keep their direction only: they would leave float32 after some forty positions."""
    return x / jnp.maximum(jnp.sum(x, axis=-1, keepdims=True) if law else jnp.max(x, axis=-1, keepdims=True), TINY)


def _compose(a: Float[Array, "... V V"], b: Float[Array, "... V V"]) -> Float[Array, "... V V"]:
    product = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    return product / jnp.maximum(jnp.max(product, axis=(-2, -1), keepdims=True), TINY)


def random_chain(
    key: jax.Array,
    vocab: int,
    rows: int,
    length: int,
    *,
    sharpness: float = 0.1,
    accuracy: float | Float[Array, ""] = 0.7,
) -> tuple[MarkovChain, Int32[Array, "B S"]]:
    """A chain with Gamma(sharpness) rows, and for each of `rows` a text with noisy evidence of it.

    Evidence: with probability `accuracy` the true token is shown, else a uniform one; accuracy 0 knows nothing.
    Consumes the key.
    """
    k_t, k_0, k_x, k_o, k_r = jax.random.split(key, 5)
    # Gamma(sharpness) by Gamma(sharpness + 1) and a power of a uniform, in logs: small shapes underflow else.
    log_g = jnp.log(jax.random.gamma(k_t, sharpness + 1, (vocab, vocab)))
    log_g = log_g + jnp.log(jax.random.uniform(k_0, (vocab, vocab), minval=TINY)) / sharpness
    transition = jax.nn.softmax(log_g, axis=-1)
    keys = jax.random.split(k_x, length)
    first = jax.random.randint(keys[0], (rows,), 0, vocab)
    move = lambda x, k: (y := jax.random.categorical(k, jnp.log(transition)[x], axis=-1), y)
    text = jnp.concatenate([first[None], lax.scan(move, first, keys[1:])[1]], axis=0).T.astype(jnp.int32)
    shown = jnp.where(
        jax.random.uniform(k_o, text.shape) < accuracy, text, jax.random.randint(k_r, text.shape, 0, vocab)
    )
    evidence = accuracy * jax.nn.one_hot(shown, vocab) + (1 - accuracy) / vocab
    return MarkovChain(start=jnp.full(vocab, 1 / vocab), transition=transition, evidence=evidence), text


@struct.dataclass
class JointTexts:
    """The parameters of a `JointTable`: every text that can occur, and its probability."""

    text: Int32[Array, "N S"]
    weight: Float[Array, "N"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JointTable(_Exact):
    """Any joint law over short texts, as the list of its support: at most a few ten thousand texts."""

    vocab_size: int

    @property
    def mask_id(self) -> int:
        """One past the vocabulary: it can be shown and never proposed."""
        return self.vocab_size

    def marginals(self, params: JointTexts, token: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        """p(x_s | committed tokens) for every position; `mask_id` stands at open ones."""
        S = params.text.shape[1]
        token = token[:, :S]
        each = jax.nn.one_hot(params.text, self.vocab_size)
        # Committed places in which a text agrees, counted by one product: "B N", and never "B N S".
        agree = jnp.einsum("bsv,nsv->bn", jax.nn.one_hot(token, self.vocab_size), each)
        committed = jnp.sum(token != self.mask_id, axis=-1, dtype=jnp.float32)
        weight = jnp.where(agree > committed[:, None] - 0.5, params.weight[None], 0.0)
        weight = jnp.where(weight.sum(-1, keepdims=True) > 0, weight, params.weight[None])
        total = jnp.einsum("bn,nsv->bsv", weight, each, precision=lax.Precision.HIGHEST)
        return total / jnp.sum(total, axis=-1, keepdims=True)
