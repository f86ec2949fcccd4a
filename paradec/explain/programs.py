"""The programs that `explain` compiles, with abstract arguments laid out on a mesh: no array is ever made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from paradec import params
from paradec.decode import loop, sampling
from paradec.explain.request import Cost
from paradec.learn import flops
from paradec.learn import step as learn
from paradec.learn.loop import abstract_state
from paradec.learn.step import Plan, TrainState
from paradec.mesh import Placement
from paradec.models.heads import DraftHeads, ShortList
from paradec.types import DecodeState, Denoiser, Model, Prompt, Sizes, TextBatch


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile, its abstract arguments, what it costs by its shapes, and the caches it must not move."""

    function: Callable[..., Any]  # jitted
    arguments: tuple[PyTree, ...]
    counted: Cost
    caches: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()  # (shape on one device, whole shape)


@dataclasses.dataclass(frozen=True)
class Use:
    """What a step asks of one model: `calls` calls of `rows` rows each, on the cache in that field of the state."""

    rows: int
    calls: int = 1
    cache: str = "cache"


def decode_loop(
    method: Any,
    models: dict[str, Any],
    uses: dict[str, Use],
    batch: int,
    slots: int,
    place: Placement,
    short_list: int = 0,
) -> Program:
    """`loop.run` of a method whose parameters are those of `models`: the loop of its steps, for a step alone may keep
    its cache in place where the loop does not. Counted is one step.

    `uses` are those of the models with caches. Draft heads choose from `short_list` tokens, or from all of them (0).
    """
    weights = {name: _weights(model, place) for name, model in models.items()}
    if "heads" in weights:
        short = _short_list(models["target"].sizes(), short_list, place) if short_list else None
        weights["heads"] = DraftHeads(weights["heads"], short)
    state = _state(method, weights, batch, slots, place)
    whole = NamedSharding(place.mesh, PartitionSpec())
    method = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), method)
    return Program(
        function=loop.run,
        arguments=(method, weights, state, jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)),
        counted=_count_step(models, uses, weights, state, place),
        caches=tuple({(_local(x), x.shape) for cache in _caches(state) for x in jax.tree.leaves(cache) if x.ndim > 1}),
    )


def training_step(
    model: Model | Denoiser,
    objective: Callable[..., Any],
    batch: int,
    tokens: int,
    passed: int,
    place: Placement,
) -> Program:
    """One step of `learn.step` on rows of `tokens`, as `train/` runs it: AdamW on float32 masters, computed in the
    model's dtype, every layer redone in the backward pass. The state is donated. `passed` is how many positions of a
    row go through the layers."""
    plan, specs = Plan(compute=model.sizes().dtype), params.cast(model.specs(), jnp.float32)
    weights = params.abstract(specs, params.shardings(specs, place.mesh, place.rules))
    frozen = jax.tree.map(lambda x: None, weights)
    whole = NamedSharding(place.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = abstract_state(plan, weights, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole))
    rows = place.sharding(("batch", None), (batch, tokens))
    lay = lambda dtype: jax.ShapeDtypeStruct((batch, tokens), dtype, sharding=rows)
    text = TextBatch(token=lay(jnp.int32), learn=lay(jnp.bool_))

    def step(state: TrainState, text: TextBatch, remat: bool = True) -> tuple[TrainState, dict[str, Array]]:
        return learn.step.__wrapped__(plan, objective(model, remat=remat), state, frozen, text)

    out = jax.tree.map(lambda x: x.sharding, state)
    counted = Cost(
        flops=flops.count(step, state, text) / place.mesh.size,
        exchanged=exchanged(model, batch, passed, place) if model.sizes().width else None,
        model_flops=flops.count(partial(step, remat=False), state, text) / place.mesh.size,
    )
    return Program(jax.jit(step, donate_argnums=0, out_shardings=(out, None)), (state, text), counted)


def exchanged(model: Model | Denoiser, batch: int, tokens: int, place: Placement) -> float:
    """Bytes that one chip sends in a training step under FSDP and tensor parallelism, from shapes.

    Weights split over "data" are gathered for the forward and for the backward pass, and their gradients reduced once:
    3 (d-1)/d of a chip's share of the matrices, in the compute dtype. Each layer sums its activations over "model"
    twice forward, twice when it is redone and twice backward, by rings: 6 * 2 (m-1)/m of the residual stream.
    """
    d, m = (place.mesh.shape.get(axis, 1) for axis in ("data", "model"))
    sizes = model.sizes()
    item = jnp.dtype(sizes.dtype).itemsize
    split = "data" in (place.rules["embed"] or ())
    matrices = params.count(model.specs()) * item / m
    gathered = 3 * (d - 1) / d * matrices if split else 2 * (d - 1) / d * matrices
    stream = batch / d * tokens * sizes.width * item
    return gathered + 12 * (m - 1) / m * stream * sizes.num_layers


def _weights(model: Any, place: Placement) -> PyTree:
    specs = model.specs()
    return params.abstract(specs, params.shardings(specs, place.mesh, place.rules))


def _short_list(sizes: Sizes, size: int, place: Placement) -> ShortList:
    whole = NamedSharding(place.mesh, PartitionSpec())
    lay = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
    return ShortList(token=lay((size,), jnp.int32), table=lay((size, sizes.width), sizes.dtype))


def _state(method: Any, weights: PyTree, batch: int, slots: int, place: Placement) -> DecodeState:
    """The abstract state of `batch` rows whose target cache has `slots` slots, laid out as `loop.start` would."""
    prompt = Prompt(jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((batch,), jnp.int32))
    key = jax.eval_shape(lambda: sampling.row_keys(0, range(batch)))
    law = jax.eval_shape(lambda: sampling.sampling(batch))
    init = lambda method, *rest: method.init(*rest, slots=slots)
    state = jax.eval_shape(init, method, weights, prompt, prompt.length, key, law)
    lay = lambda x, axes: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.sharding(axes, x.shape))
    return jax.tree.map(lay, state, loop.axes(state))


def _caches(state: DecodeState) -> list[PyTree]:
    return [x for x in jax.tree.leaves(state, is_leaf=loop.named) if loop.named(x)]


def _local(x: Any) -> tuple[int, ...]:
    return x.sharding.shard_shape(x.shape)


def _multiplied(model: Model | Denoiser, weights: PyTree) -> int:
    """Numbers on one device that meet every row in a matrix product: not an embedding that is only looked up."""
    tables = [getattr(weights, name) for name in model.stacks().lookup]
    return _numbers(weights) - _numbers(tables)


def _numbers(tree: PyTree) -> int:
    """How many numbers of a tree are on one device."""
    return sum(math.prod(_local(x)) for x in jax.tree.leaves(tree))


def _count_step(
    models: dict[str, Any], uses: dict[str, Use], weights: PyTree, state: DecodeState, place: Placement
) -> Cost:
    """One chip's share, every slot of the caches in use. A draft model reads its weights and cache at every call; the
    call of a canvas is one inside a block."""
    rows = _local(state.tokens)[0]
    flops = read = cached = 0.0
    if "heads" in models:  # each reads one row's hidden state, through its layers and the list it chooses from
        heads, own = models["heads"], weights["heads"]
        table = _vocabulary_head(models["target"].sizes(), place) if own.short is None else own.short.table
        own, shared = _numbers(own.weights), math.prod(_local(table))
        flops += 2 * rows * (own + heads.num_heads * shared)
        read += (own + shared) * table.dtype.itemsize
    for name in [name for name in models if name in uses]:
        sizes, use = models[name].sizes(), uses[name]
        item = jnp.dtype(sizes.dtype).itemsize
        dense = _multiplied(models[name], weights[name])
        cache = getattr(state, use.cache)
        kept = sum(math.prod(_local(x)) for x in jax.tree.leaves(cache) if x.ndim > 1)
        flops += 2 * use.calls * use.rows * (dense * rows + kept * sizes.groups)
        read += use.calls * dense * item
        cached += use.calls * kept * item
    return Cost(flops=flops, weights=read, cache=cached)


def _vocabulary_head(sizes: Sizes, place: Placement) -> jax.ShapeDtypeStruct:
    shape = sizes.vocab_size, sizes.width
    return jax.ShapeDtypeStruct(shape, sizes.dtype, sharding=place.sharding(("vocab", "embed"), shape))
