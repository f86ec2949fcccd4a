"""Pieces that are wrong on purpose. A law that no mutant can break proves nothing; each of these is caught by one.

Most are mistakes found in public code. Never use them to decode.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from paradec import struct
from paradec.decode.sampling import NEXT, gumbel, warp
from paradec.decode.seams import Accept
from paradec.decode.verify import Match, Rejection, at_path
from paradec.types import DecodeState, Model, Output, Rows, Scored, Tree, Verdict


def last_of(verdict: Verdict) -> Int[Array, "B 1"]:
    """The index of the target's own token in each row's verdict."""
    return verdict.count[:, None] - 1


def with_last(verdict: Verdict, token: Int[Array, "B 1"]) -> Verdict:
    """The verdict with another final token."""
    here = lax.broadcasted_iota(jnp.int32, verdict.token.shape, 1) == last_of(verdict)
    return verdict.replace(token=jnp.where(here, token, verdict.token))


@struct.dataclass
class NoResidual(Accept):
    """Rejection that, after a refusal, draws from p instead of max(p - q, 0): refused tokens get a second chance."""

    needs_logits = True

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        verdict = Rejection()(tree, scored, state, depth)
        return with_last(verdict, at_path(scored.choice, at_path(verdict.path, last_of(verdict))))


@struct.dataclass
class StaleLaw(Accept):
    """Rejection that divides by the draft law of the node before: the token was not drawn from it."""

    needs_logits = True

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        return Rejection()(tree.replace(logq=jnp.roll(tree.logq, 1, axis=1)), scored, state, depth)


@struct.dataclass
class SharedMinimum(Accept):
    """Match that lets every row accept only what the worst row of the batch accepts."""

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        verdict = Match()(tree, scored, state, depth)
        worst = jnp.min(jnp.where(state.done, depth + 1, verdict.count))
        return verdict.replace(count=jnp.minimum(verdict.count, worst))


@struct.dataclass
class Redraw(Accept):
    """Match that throws the sample away that did not match and draws again: drafted tokens get a second chance."""

    needs_logits = True

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        verdict = Match()(tree, scored, state, depth)
        node = at_path(verdict.path, last_of(verdict))
        weights = warp(jnp.take_along_axis(scored.logits, node[:, :, None], axis=1), state.sampling)
        again = gumbel(state.key, state.length[:, None] + last_of(verdict), weights.shape[-1], NEXT + 100)
        return with_last(verdict, jnp.argmax(weights + again, axis=-1).astype(jnp.int32))


@struct.dataclass
class UnverifiedTail(Accept):
    """Match that commits one more drafted token than it checked."""

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        verdict = Match()(tree, scored, state, depth)
        child = jnp.minimum(verdict.count, tree.token.shape[1] - 1)[:, None]  # of a chain
        verdict = with_last(verdict, at_path(tree.token, child))
        path = lax.broadcasted_iota(jnp.int32, verdict.path.shape, 1)
        token = jnp.where(path == verdict.count[:, None], at_path(scored.choice, child), verdict.token)
        return verdict.replace(path=path, token=token, count=jnp.minimum(verdict.count + 1, depth + 1))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wrapped(Model):
    """A model that hands everything on to another one; the mutants below change one thing."""

    model: Model

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def specs(self) -> PyTree:
        return self.model.specs()

    def forward(self, params: PyTree, token: Int[Array, "B T"], **facts: Any) -> Output:
        return self.model.forward(params, token, **facts)

    def init_cache(self, batch: int, slots: int) -> PyTree:
        return self.model.init_cache(batch, slots)

    def init_delta(self, batch: int, rows: int) -> PyTree:
        return self.model.init_delta(batch, rows)

    def extend(self, params: PyTree, cache: PyTree, rows: Rows, *rest: Any, **options: Any) -> tuple[Output, PyTree]:
        return self.model.extend(params, cache, rows, *rest, **options)

    def commit(self, cache: PyTree, delta: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
        return self.model.commit(cache, delta, path, count)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SiblingsSee(Wrapped):
    """A tree mask that is causal in the order of the nodes: siblings see each other."""

    def extend(self, params: PyTree, cache: PyTree, rows: Rows, *rest: Any, **options: Any) -> tuple[Output, PyTree]:
        if rows.parent is not None:
            index = lax.broadcasted_iota(jnp.int32, rows.parent.shape, 1)
            rows = rows.replace(parent=jnp.maximum(index - 1, 0))
        return self.model.extend(params, cache, rows, *rest, **options)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NoCompaction(Wrapped):
    """A commit that keeps the first `count` nodes of the tree instead of the accepted path."""

    def commit(self, cache: PyTree, delta: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
        return self.model.commit(cache, delta, None, count)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Slides(Wrapped):
    """A commit whose windows slide down over what is stored where they would stick out behind the cache's end."""

    def commit(self, cache: PyTree, delta: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
        wide = jax.tree.leaves(delta)[0].shape[3] if path is None else path.shape[1]
        start = jnp.minimum(cache.length, cache.k.shape[3] - wide)
        new = self.model.commit(cache.replace(length=start), delta, path, count)
        return new.replace(length=cache.length + count)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Copies(Wrapped):
    """A commit that selects between the old and the new cache: right, and as slow as copying all of it."""

    def commit(self, cache: PyTree, delta: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
        new = self.model.commit(cache, delta, path, count)
        some = (count > 0)[None, :, None, None, None]
        return jax.tree.map(lambda a, b: jnp.where(some, a, b) if a.ndim == 5 else a, new, cache)
