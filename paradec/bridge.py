"""Models of others behind paradec's seam: a causal function of tokens, a flax linen module, a flax nnx module.

    model, params = from_linen(module, variables)
    lm = paradec.LanguageModel("mine", model, params, tokenizer)
    lm.generate("Name three colours.", method="prompt_lookup", raw=True)

Each `from_…` returns a model and its parameters, on which every method runs that reads no hidden states, with the
promises of the catalogue. What a call costs is said at `models.bridged.Bridged`. Only this file imports linen and nnx,
and only where they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from paradec.decoder import precision
from paradec.errors import InputError, at_least
from paradec.models.bridged import UNBOUNDED, Bridged, Leaf, TokenCache
from paradec.types import Rows

__all__ = ["TokenCache", "from_function", "from_linen", "from_nnx"]

Logits = Callable[[Any], Array]
"""What takes the logits out of a module's output."""

EVALUATION = {"deterministic": True, "train": False, "training": False, "is_training": False}
"""Arguments of a linen module's call that mean "no dropout", and the value with which they do."""

PROBE = 12
"""Tokens of the texts that a new model is asked about."""


def from_function(
    apply: Callable[[PyTree, Array], Array],
    params: PyTree,
    vocab_size: int | None = None,
    *,
    max_length: int | None = None,
    cache: TokenCache | None = None,
    check: bool = True,
) -> tuple[Bridged, PyTree]:
    """`apply(params, token "B T") -> logits "B T V"`, a causal function, as a model; and `params` as arrays of jax.

    `logits[b, t]` are those of the token after `token[b, t]`. Without `vocab_size` it is read off the logits.
    `max_length` is the longest text that the function may be given, where it has such a limit (learned positions). With
    `cache` the function is asked for new tokens alone; without, for the whole canvas in every call.

    Models are equal, and share compiled programs, where their functions are: so bridge a function once, and not a new
    lambda in every call. Raises `InputError` where the function does not give such logits, and with `check` also where
    an earlier position's logits depend on a later token, the last position's on none, or where those with the cache
    are others than those without it.
    """
    params = _arrays(params)
    longest = UNBOUNDED if max_length is None else at_least("max_length", max_length, 2)
    V = _vocabulary(apply, params, min(PROBE, longest))
    if vocab_size is not None and at_least("vocab_size", vocab_size, 1) != V:
        raise InputError(f"vocab_size is {vocab_size} and the function gives {V} logits a token; make them agree.")
    leaves, tree = jax.tree.flatten(params)
    shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
    kept = _kept(cache, longest) if cache is not None else (None, ())
    model = Bridged(apply, V, longest, tree, shapes, cache, *kept)
    if check:
        _check_causal(model, params)
    if check and cache is not None:
        _check_cache(model, params)
    return model, params


def from_linen(
    module: Any,
    variables: Mapping[str, PyTree],
    *,
    call: Mapping[str, Any] | None = None,
    logits: Logits | None = None,
    max_length: int | None = None,
    cache: TokenCache | None = None,
    check: bool = True,
) -> tuple[Bridged, PyTree]:
    """A linen module whose `__call__(token "B T")` gives logits "B T V", and its `variables` (of `module.init`).

    The parameters are the variables, all collections of them, without the boxes of partitioned ones. `call` are more
    keyword arguments of the call; `deterministic`, `train`, `training` and `is_training` are set so that nothing is
    dropped out, where `__call__` has them. `logits` takes the logits out of another output: `lambda out: out[0]`.
    `cache.apply` is given the bound module where a function's is given parameters. linen's own `decode=True` caches
    have one index for all rows, which a ragged batch cannot use. The rest is as for `from_function`.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise InputError(f"from_linen takes a flax.linen module; a {type(module).__name__} was given.")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError('from_linen takes the variables that module.init returns, {"params": …}.')
    known = inspect.signature(type(module).__call__).parameters
    given = {name: value for name, value in EVALUATION.items() if name in known} | dict(call or {})
    function = _comparable(_Linen(module, tuple(given.items()), logits))
    if cache is not None:
        cache = dataclasses.replace(cache, apply=_comparable(_Bound(module, cache.apply)))
    params = linen.meta.unbox(dict(variables))
    return from_function(function, params, max_length=max_length, cache=cache, check=check)


def from_nnx(
    module: Any,
    *,
    call: Mapping[str, Any] | None = None,
    logits: Logits | None = None,
    max_length: int | None = None,
    cache: TokenCache | None = None,
    check: bool = True,
) -> tuple[Bridged, PyTree]:
    """An nnx module whose `__call__(token "B T")` gives logits "B T V". The module itself is left as it is.

    It runs in evaluation mode (`module.eval()`: no dropout, running averages). The parameters are a dict of the arrays
    of its state, without its random number generators; a parameter that stands in two places is one of them. What the
    module assigns to its own variables in a call is lost. `call` and `logits` are as for `from_linen`; `cache.apply` is
    given the module where a function's is given parameters. The rest is as for `from_function`.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise InputError(f"from_nnx takes a flax.nnx module; a {type(module).__name__} was given.")
    ours = nnx.merge(*nnx.split(module))
    ours.eval()
    graph, generators, state = nnx.split(ours, nnx.RngState, ...)
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(generators))
    build = _Nnx(graph, tree, tuple(map(_generator, leaves)))
    function = _comparable(_Called(build, tuple((call or {}).items()), logits))
    if cache is not None:
        cache = dataclasses.replace(cache, apply=_comparable(_Built(build, cache.apply)))
    return from_function(function, nnx.to_pure_dict(state), max_length=max_length, cache=cache, check=check)


# Functions of parameters that modules become. They are compared by value, so that two equal modules never recompile.


@dataclasses.dataclass(frozen=True)
class _Linen:
    """Logits of a linen module."""

    module: Any
    call: tuple[tuple[str, Any], ...]
    logits: Logits | None

    def __call__(self, variables: PyTree, token: Int[Array, "B T"]) -> Any:
        from flax import errors

        try:
            out = self.module.apply(variables, token, **dict(self.call))
        except (errors.InvalidRngError, errors.ModifyScopeVariableError) as error:
            reason = str(error).split(" (http")[0]
            raise InputError(
                f"{type(self.module).__name__} is no function of its variables ({reason}); put it into evaluation "
                "mode, for instance with call={'deterministic': True}."
            ) from error
        return out if self.logits is None else self.logits(out)


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A cached call of a linen module."""

    module: Any
    apply: Callable

    def __call__(self, variables: PyTree, *rest: Any) -> Any:
        return self.apply(self.module.bind(variables), *rest)


@dataclasses.dataclass(frozen=True)
class _Nnx:
    """An nnx module made of its arrays. Its random number generators, which nobody asks, are all seeded with 0."""

    graph: Any
    tree: Any
    generators: tuple[tuple[tuple[int, ...], Any, str | None], ...]

    def __call__(self, state: PyTree) -> Any:
        from flax import nnx

        def fresh(shape: tuple[int, ...], dtype: Any, impl: str | None) -> Array:
            return jnp.zeros(shape, dtype) if impl is None else jnp.broadcast_to(jax.random.key(0, impl=impl), shape)

        return nnx.merge(self.graph, state, self.tree.unflatten([fresh(*each) for each in self.generators]))


def _generator(x: Array) -> tuple[tuple[int, ...], Any, str | None]:
    """Shape, type and implementation of a key or a count."""
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return x.shape, x.dtype, str(jax.random.key_impl(x)) if is_key else None


@dataclasses.dataclass(frozen=True)
class _Called:
    """Logits of an nnx module."""

    build: _Nnx
    call: tuple[tuple[str, Any], ...]
    logits: Logits | None

    def __call__(self, state: PyTree, token: Int[Array, "B T"]) -> Any:
        out = self.build(state)(token, **dict(self.call))
        return out if self.logits is None else self.logits(out)


@dataclasses.dataclass(frozen=True)
class _Built:
    """A cached call of an nnx module."""

    build: _Nnx
    apply: Callable

    def __call__(self, state: PyTree, *rest: Any) -> Any:
        return self.apply(self.build(state), *rest)


def _comparable(function: Callable) -> Callable:
    """The function; in a wrapper that is compared by identity where a part of it, such as an array, has no hash."""
    return function if _hashable(function) else functools.partial(function)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


# What is asked of a function before it becomes a model.


def _arrays(params: PyTree) -> PyTree:
    """The tree with arrays of jax as leaves."""

    def one(path: tuple, x: Any) -> Array:
        if not isinstance(x, (jax.Array, np.ndarray, np.generic, int, float)):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(f"params must be a tree of arrays; {where or 'it'} is a {type(x).__name__}.")
        return jnp.asarray(x)

    return jax.tree.map_with_path(one, params)


def _vocabulary(apply: Callable, params: PyTree, tokens: int) -> int:
    """How many logits the function gives each token. Computes shapes alone."""
    if not _hashable(apply):
        raise InputError("The function must be hashable, since models are compared by it; give a plain function.")
    out = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((2, tokens), jnp.int32))
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise InputError(
            f"The model returns a {type(out).__name__} where logits were expected; pass logits=lambda out: …, or a "
            "function that returns them alone."
        )
    if out.ndim != 3 or out.shape[:2] != (2, tokens):
        raise InputError(f"For tokens (2, {tokens}) logits are (2, {tokens}, vocabulary); the model's are {out.shape}.")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise InputError(f"Logits are floating-point numbers; the model returns {out.dtype}.")
    return out.shape[2]


def _kept(cache: TokenCache, longest: int) -> tuple[Any, tuple[Leaf, ...]]:
    """The structure of what a cache keeps, and of each leaf its axes: found by asking for caches of other sizes."""
    many = min(longest, 2048)
    few = many // 2
    shapes = lambda batch, slots: jax.eval_shape(lambda: cache.init(batch, slots))
    one, rows, slots = shapes(2, few), shapes(3, few), shapes(2, many)
    leaves, tree = jax.tree.flatten(one)
    found = []
    for x, more, longer in zip(leaves, jax.tree.leaves(rows), jax.tree.leaves(slots), strict=True):
        row = [axis for axis, n in enumerate(x.shape) if more.shape[axis] != n]
        slot = [axis for axis, n in enumerate(x.shape) if longer.shape[axis] != n]
        if len(row) != 1 or len(slot) != 1 or row == slot:
            raise InputError(
                f"A leaf {x.shape} of the cache for 2 rows of {few} slots has no axis of its own for each: every leaf "
                "keeps something of each token of each row. A state that is not of tokens, as that of a recurrence, "
                "needs a model with a commit of its own (docs/extending.md)."
            )
        found.append(Leaf(x.shape, x.dtype, row[0], slot[0]))
    return tree, tuple(found)


def _tolerance(model: Bridged, logits: Float[np.ndarray, "..."]) -> float:
    """How far apart two computations of the same logits may be: the root of their type's resolution, of the largest."""
    return float(np.sqrt(float(jnp.finfo(model.dtype).eps)) * np.abs(logits).max(initial=0))


def _probe(model: Bridged) -> Int[np.ndarray, "2 T"]:
    """Two random texts that differ in their last token."""
    text = np.random.default_rng(0).integers(model.vocab_size, size=min(PROBE, model.max_length)).astype(np.int32)
    other = text.copy()
    other[-1] = (text[-1] + 1) % model.vocab_size
    return np.stack([text, other])


def _finite(logits: Float[Array, "..."]) -> Float[np.ndarray, "..."]:
    """The logits on the host, with 0 for minus infinity, by which a model forbids a token."""
    got = np.asarray(jax.device_get(logits))
    return np.where(np.isneginf(got), np.float32(0), got)


def _check_causal(model: Bridged, params: PyTree) -> None:
    """Raise `InputError` where the last token moves earlier logits, or not its own."""
    with precision(params):
        got = _finite(jax.jit(model.forward)(params, jnp.asarray(_probe(model))).logits)
    if not np.isfinite(got).all():
        raise InputError("The model gives logits that are no numbers for random tokens; look at its weights.")
    allowed, apart = _tolerance(model, got), np.abs(got[0] - got[1]).max(axis=-1)
    if (apart[:-1] > allowed).any():
        at, last = int(np.argmax(apart[:-1] > allowed)), got.shape[1] - 1
        raise InputError(
            f"The model is not causal: token {last} moves the logits of position {at} by {apart[at]:.2g}. Methods that "
            "continue a text need a causal mask in every layer."
        )
    if model.vocab_size > 1 and apart[-1] == 0 and np.ptp(got[0], axis=0).max() > allowed:
        raise InputError(
            "The logits of the last position do not depend on its token: are they those of the token itself? "
            "logits[b, t] must be those of the token after token[b, t]."
        )


def _check_cache(model: Bridged, params: PyTree) -> None:
    """Raise `InputError` where a text read in two calls, with tokens refused in the first, is not the forward pass."""
    token = jnp.asarray(_probe(model))
    T = token.shape[1]
    first = np.asarray([T // 2, T // 4], np.int32)  # how many of the first call's tokens each row keeps
    at = np.minimum(first[:, None] + np.arange(T - T // 2, dtype=np.int32), T - 1)

    @jax.jit
    def both(params: PyTree) -> tuple[Array, Array]:
        cache = model.init_cache(2, T)
        junk = jnp.where(np.arange(T)[None] < first[:, None], token, (token + 1) % model.vocab_size)
        _, delta = model.extend(params, cache, Rows.chain(junk))
        cache = model.commit(cache, delta, None, jnp.asarray(first))
        some = jnp.take_along_axis(token, jnp.asarray(at), axis=1)
        return model.extend(params, cache, Rows.chain(some))[0].logits, model.forward(params, token).logits

    with precision(params):
        got, right = map(_finite, both(params))
    right = np.take_along_axis(right, at[:, :, None], axis=1)
    apart = float(np.abs(got - right).max())
    if not apart <= _tolerance(model, right):
        raise InputError(
            f"With its cache the model gives other logits than without ({apart:.2g} apart): each token must be written "
            "to the slot of its own position, and see the slots up to it and no later ones."
        )
