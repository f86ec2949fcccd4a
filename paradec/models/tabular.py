"""Language models that are tables: small enough that every probability of every text can be written down."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from paradec import struct
from paradec.types import Model, Output, Rows, Sizes, Spec, Stacks


@struct.dataclass
class Table:
    """The parameter tree of a `ConditionalTable`."""

    logits: Float[Array, "C V"]  # of the next token after each context


@struct.dataclass
class Recent:
    """The last `order` tokens of each row; V stands for "before the text"."""

    token: Int32[Array, "B order"]
    length: Int32[Array, "B"]


@struct.dataclass
class Fed:
    """The tokens of a call's rows."""

    token: Int32[Array, "B N"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ConditionalTable(Model):
    """The next token's law depends on the last `order` tokens, and is a row of a table of logits.

    Exact in every way a `types.Model` can be asked: caches, pending rows and trees included. Laws of sampling are
    tested on it against the enumerated joint law, which no neural model allows.
    """

    vocab_size: int
    order: int = 2
    spread: float = 1.5  # standard deviation of the initial logits

    def specs(self) -> Table:
        """The parameter tree, a `Spec` at every leaf."""
        contexts = (self.vocab_size + 1) ** self.order
        return Table(logits=Spec((contexts, self.vocab_size), (None, "vocab"), self.spread))

    def sizes(self) -> Sizes:
        """The numbers that formulas need. `hidden` is the token, one-hot."""
        return Sizes(self.vocab_size, width=self.vocab_size)

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""
        return Stacks(lookup=("logits",))

    def forward(self, params: Table, token: Int[Array, "B T"], *, taps: tuple[int, ...] = (), **facts: Any) -> Output:
        """Whole sequences at once. The table is causal, so masks and other facts are refused."""
        if facts:
            raise TypeError(f"A table has no use for {', '.join(facts)}: it reads from left to right.")
        return self.extend(params, self.init_cache(token.shape[0], 0), Rows.chain(token), taps=taps)[0]

    def init_cache(self, batch: int, slots: int) -> Recent:
        """Nothing read yet. The cache does not grow, so `slots` is not needed."""
        before = jnp.full((batch, self.order), self.vocab_size, jnp.int32)
        return Recent(token=before, length=jnp.zeros(batch, jnp.int32))

    def init_delta(self, batch: int, rows: int) -> Fed:
        """A delta of `rows` rows that several `extend` calls may fill."""
        return Fed(token=jnp.zeros((batch, rows), jnp.int32))

    def extend(
        self,
        params: Table,
        cache: Recent,
        rows: Rows,
        pending: Fed | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, Fed]:
        """Look up `rows`; see `types.Model`. `hidden` and every tap are the row's token, one-hot."""
        token = rows.token
        if pending is not None:
            token = lax.dynamic_update_slice_in_dim(pending.token, token, rows.start, axis=1)
        recent = self._recent(cache, token, rows.parent)
        recent = lax.dynamic_slice_in_dim(recent, rows.start, rows.token.shape[1], axis=1)
        place = jnp.asarray((self.vocab_size + 1) ** np.arange(self.order), jnp.int32)
        hidden = jax.nn.one_hot(recent[:, :, 0], self.vocab_size)
        return Output(logits=params.logits[recent @ place], hidden=hidden, taps=(hidden,) * len(taps)), Fed(token=token)

    def _recent(self, cache: Recent, token: Int[Array, "B N"], parent: Int[Array, "B N"] | None) -> Int[Array, "B N O"]:
        """The last `order` tokens up to each row, newest first: its own, its ancestors', then the cache's."""
        index = lax.broadcasted_iota(jnp.int32, token.shape, 1)
        parent = jnp.maximum(index - 1, 0) if parent is None else parent
        here, outside, recent = index, jnp.zeros_like(index), []  # `outside`: steps taken beyond the delta's root
        for _ in range(self.order):
            old = jnp.take_along_axis(cache.token, (self.order - outside) % self.order, axis=1)
            recent.append(jnp.where(outside > 0, old, jnp.take_along_axis(token, here, axis=1)))
            up = jnp.take_along_axis(parent, here, axis=1)
            outside = outside + (up == here).astype(jnp.int32)
            here = up
        return jnp.stack(recent, axis=-1)

    def commit(self, cache: Recent, delta: Fed, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> Recent:
        """The cache after reading delta rows `path[:count]`; a count of 0 keeps the old one."""
        kept = delta.token if path is None else jnp.take_along_axis(delta.token, path, axis=1)
        text = jnp.concatenate([cache.token, kept], axis=1)
        at = count[:, None] + lax.iota(jnp.int32, self.order)[None]
        return Recent(token=jnp.take_along_axis(text, at, axis=1), length=cache.length + count)
