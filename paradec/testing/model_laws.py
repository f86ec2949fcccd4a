"""What every `types.Model` owes: its cached, tree-shaped, ragged passes are its `forward`, whatever was refused."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from paradec.types import Model, Output, Rows


class ReadingPlan(NamedTuple):
    """A ragged schedule of C calls: how many tokens each row keeps, and where they stand among the call's nodes."""

    count: Int[np.ndarray, "C B"]
    path: Int[np.ndarray, "C B M"]
    parent: Int[np.ndarray, "C B N"]
    depth: Int[np.ndarray, "C B N"]


def plan(seed: int, calls: int, batch: int, most: int, nodes: int) -> ReadingPlan:
    """A random schedule: in each call each row keeps 0 to `most` nodes of a random tree of `nodes`.

    The kept nodes are a path from node 0 at increasing places; the rest hang anywhere before them or are unused.
    """
    rng = np.random.default_rng(seed)
    path = np.stack([np.sort(rng.permutation(nodes - 1)[: most - 1]) + 1 for _ in range(calls * batch)])
    path = np.concatenate([np.zeros((len(path), 1), int), path], axis=1)
    parent = np.tile(np.arange(nodes), (len(path), 1))
    for tree, kept in zip(parent, path, strict=True):
        for n in range(1, nodes):
            tree[n] = n if rng.random() < 0.2 else rng.integers(n)
        tree[kept[1:]] = kept[:-1]
    depth = np.zeros_like(parent)
    for n in range(1, nodes):
        above = np.take_along_axis(depth, parent[:, n : n + 1], axis=1)[:, 0]
        depth[:, n] = np.where(parent[:, n] == n, 0, above + 1)
    count = rng.integers(0, most + 1, (calls, batch))
    shape = lambda x: np.asarray(x.reshape(calls, batch, -1), np.int32)
    return ReadingPlan(np.asarray(count, np.int32), shape(path), shape(parent), shape(depth))


@partial(jax.jit, static_argnums=(0, 4, 5))
def replay(
    model: Model, params: PyTree, token: Int[Array, "B T"], plan: ReadingPlan, chain: bool, taps: tuple[int, ...]
) -> tuple[Output, Int[Array, "C B"], PyTree]:
    """Read `token` by the plan, junk on every other node: outputs along each path, where each call began, the cache.

    With `chain` the call's rows are the path itself (`parent=None`), and rows that are not kept read junk.
    """
    batch, nodes = plan.parent.shape[1:]
    cache = model.init_cache(batch, token.shape[1] + nodes)

    def call(cache: PyTree, step: ReadingPlan) -> tuple[PyTree, tuple[Output, Array]]:
        path = jnp.arange(step.path.shape[1])[None] * jnp.ones_like(step.path) if chain else step.path
        depth = path if chain else step.depth
        at = cache.length[:, None] + depth
        text = jnp.take_along_axis(token, jnp.minimum(at, token.shape[1] - 1), axis=1)
        kept = jnp.arange(path.shape[1])[None] < step.count[:, None]
        mine = jax.vmap(lambda p, k: jnp.zeros(depth.shape[1], bool).at[p].max(k))(path, kept)
        rows = Rows(token=jnp.where(mine, text, (text * 3 + 1 + depth) % model.vocab_size), depth=depth)
        out, delta = model.extend(params, cache, rows if chain else rows.replace(parent=step.parent), taps=taps)
        along = jax.tree.map(lambda x: jnp.take_along_axis(x, path[:, :, None], axis=1), out)
        return model.commit(cache, delta, None if chain else path, step.count), (along, cache.length)

    cache, (out, start) = jax.lax.scan(call, cache, plan)
    return out, start, cache


def cache(
    model: Model, params: PyTree, token: Int[Array, "B T"], plan: ReadingPlan, *, chain: bool, atol: float = 1e-4
) -> None:
    """Any ragged split of a text into extend and commit calls is one forward: logits, hidden states and taps.

    On a chain or on trees, with junk rows refused in every call: so this is the law of rollback, of path compaction
    and of "a tree node is the chain of its ancestors" at once.
    """
    taps = tuple(range(getattr(model, "num_layers", 0)))
    whole = jax.jit(lambda p, t: model.forward(p, t, taps=taps).replace(info=None))  # a cached pass solves nothing
    want = jax.device_get(whole(params, token))
    out, start, end = jax.device_get(replay(model, params, token, plan, chain, taps))
    assert (end.length == plan.count.sum(0)).all(), "the cache's length is not the number of kept rows"
    assert (end.length <= token.shape[1]).all(), "the plan is longer than the text"
    for c, b in np.ndindex(plan.count.shape):
        n, s = plan.count[c, b], start[c, b]
        for got, right in zip(jax.tree.leaves(out), jax.tree.leaves(want), strict=True):
            apart = _apart(got[c, b, :n], right[b, s : s + n])
            assert apart < atol, f"row {b}, tokens {s} to {s + n} read in call {c}: {apart:.2g} away from forward"


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference; a logit of -inf in both is none."""
    same = a == b
    return float(np.abs(np.where(same, 0, a) - np.where(same, 0, b)).max(initial=0))


@partial(jax.jit, static_argnums=0)
def prefill(model: Model, params: PyTree, token: Int[Array, "B T"], count: Int[Array, "B"]) -> PyTree:
    """A cache of the first `count` tokens of each row, with room for all of them and eight more."""
    _, delta = model.extend(params, model.init_cache(token.shape[0], token.shape[1] + 8), Rows.chain(token))
    return model.commit(model.init_cache(token.shape[0], token.shape[1] + 8), delta, None, count)


@partial(jax.jit, static_argnums=0)
def refused(model: Model, params: PyTree, cache: PyTree, token: Int[Array, "B T"]) -> PyTree:
    """The cache after an extend of which nothing is kept."""
    _, delta = model.extend(params, cache, Rows.chain(token))
    return model.commit(cache, delta, jnp.zeros_like(token), jnp.zeros_like(cache.length))


def untouched(model: Model, params: PyTree, token: Int[Array, "B T"]) -> None:
    """`commit` with count 0 keeps every bit of the cache, wherever the rows stand."""
    before = prefill(model, params, token, jnp.arange(token.shape[0]) % token.shape[1])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(refused(model, params, before, token)), strict=True):
        assert np.array_equal(old, new), f"a count of 0 changed a leaf {old.shape} of the cache"


@partial(jax.jit, static_argnums=(0, 4))
def in_parts(model: Model, params: PyTree, cache: PyTree, rows: Rows, cuts: tuple[int, ...]) -> tuple[Array, PyTree]:
    """Logits and delta of `rows`, computed in several calls on one delta that is cut at `cuts`."""
    delta, logits, edges = model.init_delta(*rows.token.shape), [], (0, *cuts, rows.token.shape[1])
    for start, end in itertools.pairwise(edges):
        part = rows.replace(token=rows.token[:, start:end], depth=rows.depth[:, start:end], start=start)
        out, delta = model.extend(params, cache, part, delta)
        logits.append(out.logits)
    return jnp.concatenate(logits, axis=1), delta


def pending(model: Model, params: PyTree, token: Int[Array, "B T"], parent: Int[np.ndarray, "B N"] | None) -> None:
    """Rows computed in several calls on one delta, the later ones on the pending earlier ones, are one call."""
    B, T = token.shape
    N = 6 if parent is None else parent.shape[1]
    depth = np.tile(np.arange(N), (B, 1))
    if parent is not None:
        for b, n in np.ndindex(B, N):
            depth[b, n] = 0 if parent[b, n] == n else depth[b, parent[b, n]] + 1
    cache = prefill(model, params, token, T - N - jnp.arange(B) % 3)
    rows = Rows(token=token[:, -N:], depth=jnp.asarray(depth), parent=None if parent is None else jnp.asarray(parent))
    whole, once = jax.jit(model.extend)(params, cache, rows)
    logits, delta = in_parts(model, params, cache, rows, (2, 3))
    apart = _apart(np.asarray(logits), np.asarray(whole.logits))
    assert apart < 1e-4, f"rows computed in three calls are {apart:.2g} away from the same rows computed in one"
    for a, b in zip(jax.tree.leaves(delta), jax.tree.leaves(once), strict=True):
        assert np.allclose(a, b, atol=1e-4), "the delta filled by three calls is not the delta of one"


@partial(jax.jit, static_argnums=0)
def slopes(model: Model, params: Any, facts: dict[str, Any], like: Bool[Array, "B T T"]) -> Float[Array, "B T T"]:
    """How much, at most, position t's hidden state changes with the embedding of position s, in each row."""
    B, T = like.shape[:2]
    token = jnp.arange(B * T).reshape(B, T)  # a token of its own for every place

    def summary(embed: Float[Array, "V D"]) -> Float[Array, "T"]:
        hidden = model.forward(params.replace(embed=embed), token, **facts).hidden
        return jnp.sum(hidden @ jnp.cos(jnp.arange(hidden.shape[2], dtype=hidden.dtype)), axis=0)

    # One position after the other: jacrev, a vmap over them, is compiled wrong by XLA on CPU (jaxlib 0.10.2) where the
    # layers are scanned and their norms reduce over the last axis.
    pull = jax.vjp(summary, params.embed)[1]
    slope = jax.lax.map(lambda one: pull(one)[0][: B * T], jnp.eye(T))
    return jnp.abs(slope).max(-1).reshape(T, B, T).swapaxes(0, 1)


def causality(model: Model, params: Any, see: Bool[np.ndarray, "B T T"], **facts: Any) -> None:
    """Gradients of position t's hidden state reach the embeddings that `see[b, t]` allows, and no others.

    `facts` are those of `forward` that should mean `see`, such as its mask. `params.embed` must be the embedding table,
    of at least B * T tokens. Through layers a relation that is not transitive reaches further: it is raised to the
    power of `num_layers`.
    """
    reach = np.linalg.matrix_power(see.astype(float) + np.eye(see.shape[1]), model.num_layers) > 0
    slope = np.asarray(slopes(model, params, facts, jnp.asarray(see)))
    leaks, blind = np.argwhere((slope > 0) & ~reach), np.argwhere((slope == 0) & reach)
    for found, what in ((leaks, "depends on position {2}, which the mask forbids"),
                        (blind, "does not depend on position {2}, which the mask allows")):  # fmt: skip
        assert not len(found), ("row {0}: position {1} " + what).format(*found[0])
