"""A method with the weights it runs on: compiled once per shape, and run so that it can be interrupted."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from paradec import engines, mesh
from paradec.decode import loop
from paradec.decode.seams import Method
from paradec.errors import InputError
from paradec.types import DecodeState, Prompt


@dataclasses.dataclass(eq=False)
class CompiledProgram:
    """A compiled function, and how many turns of it the device is asked for at once (see `loop.Pace`)."""

    call: Callable[..., Any]
    pace: loop.Pace = dataclasses.field(default_factory=loop.Pace)


@dataclasses.dataclass(eq=False)
class Decoder:
    """A method ready to run on one model's weights. Its own time leaves compilation out.

    `compiled` and `layouts` may be shared with other decoders: what was compiled serves every method of equal
    structure, with any thresholds and any weights of equal shapes; a layout serves all who use the same weights.
    """

    name: str
    method: Method
    params: PyTree
    compiled: dict[Any, CompiledProgram] = dataclasses.field(default_factory=dict, repr=False)
    compile_seconds: float = 0.0
    layouts: dict[str, tuple[PyTree, PyTree]] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        leaves, tree = jax.tree.flatten((self.method, self.params))
        lies = lambda x: getattr(x, "sharding", None)  # numpy's arrays lie nowhere yet
        self._kind = tree, tuple((jax.typeof(x), lies(x)) for x in leaves), jax.config.jax_default_matmul_precision

    @functools.cached_property
    def engine(self) -> engines.Engine:
        """What sizes and counts its decodes."""
        return engines.ENGINES[self.method.kind]

    @functools.cached_property
    def eos(self) -> frozenset[int]:
        """Token ids that end a text."""
        return frozenset(np.asarray(self.method.eos).tolist())

    def start(
        self,
        prompt: Prompt,
        limit: np.ndarray,
        key: jax.Array,
        sample: Any,
        slots: int,
        chunk: int,
        logprobs: int | None = None,
    ) -> DecodeState:
        """The state after the prompt. Raises `InputError` for one that cannot fit the memory there is."""
        args = (self.method, self.params, prompt, jnp.asarray(limit, jnp.int32), key, sample)
        shape = (*prompt.token.shape, slots, chunk, logprobs)
        check = lambda: check_room(self.method, args[1:], slots)
        static = dict(slots=slots, chunk=chunk, logprobs=logprobs)
        return self._program(loop.start, shape, args, check, **static).call(*args)

    def run(self, state: DecodeState, turns: int = int(loop.OPEN)) -> DecodeState:
        """The state after at most `turns` turns, finished; the given one is consumed.

        The device is asked for about a second's turns at a time, so that an interrupt is heard between them.
        """
        weights = step_weights(self.method, self.params, self.layouts)
        args = lambda some: (self.method, weights, state, np.int32(some))
        best = None if state.logprobs is None else state.logprobs.best.shape[-1]
        program = self._program(loop.run, (*state.tokens.shape, best), args(1))
        while turns > 0:
            some = min(turns, program.pace.turns)
            begin = time.perf_counter()
            state = program.call(*args(some))
            if loop.finished(state):
                break
            program.pace.took(some, time.perf_counter() - begin)
            turns -= some
        return state

    def _program(
        self, fn: Any, shape: tuple, args: tuple, check: Callable[[], None] = lambda: None, **static: Any
    ) -> Any:
        key = (fn, shape, mesh.current(), self._kind)
        if key not in self.compiled:
            check()
            begin = time.perf_counter()
            with precision(self.params):
                self.compiled[key] = CompiledProgram(fn.lower(*args, **static).compile())
            self.compile_seconds += time.perf_counter() - begin
        return self.compiled[key]


def step_weights(method: Method, params: PyTree, kept: dict[str, tuple[PyTree, PyTree]]) -> PyTree:
    """The weights as the steps of a decode want them: on one CPU laid out by their models, elsewhere as they are.

    This is the one place that decides: accelerators, meshes, prompts, training and the canvas engine, whose calls are
    wide and whose writes do not wait for the logits, run on the stack. What is laid out are views of the same memory
    where its alignment allows, kept in `kept` until other weights take their name.
    """
    models = method.models
    if mesh.current() is not None or not models or (cpu := _one_cpu(params)) is None:
        return params
    for name in [name for name in params if name in models and models[name].lays_out]:
        if name not in kept or kept[name][0] is not params[name]:
            views = models[name].laid_out(jax.tree.map(np.asarray, params[name]))
            kept[name] = params[name], jax.device_put(views, cpu, may_alias=True)
        params = {**params, name: kept[name][1]}
    return params


def _one_cpu(params: PyTree) -> Any:
    """The CPU on which all of the weights lie, or None."""
    leaves = jax.tree.leaves(params)
    devices = {device for x in leaves if isinstance(x, jax.Array) for device in x.devices()}
    return devices.pop() if len(devices) == 1 and {d.platform for d in devices} == {"cpu"} else None


def precision(params: PyTree) -> Any:
    """Full float32 products for float32 weights, so that exact stays exact on accelerators; others are untouched."""
    wide = any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    return jax.default_matmul_precision("highest" if wide else "default")


def check_room(method: Method, args: tuple, slots: int) -> None:
    """Raise `InputError` where the state alone of a decode (caches and texts) is larger than all memory."""
    prompt = args[1]
    state = jax.eval_shape(lambda *args: method.init(*args, slots), *args)
    need = sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(state)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
    )
    have = memory()
    if need > have:
        raise InputError(
            f"{prompt.token.shape[0]} rows of {slots} tokens need {need / 2**30:,.1f} GiB for their caches, and there "
            f"are {have / 2**30:,.1f} GiB of memory; lower batch_size or max_new_tokens."
        )


def memory() -> int:
    """Bytes that the devices in use have together. Devices that are parts of this machine share its memory."""
    placement = mesh.current()
    devices = jax.devices()[:1] if placement is None else list(placement.mesh.devices.flat)
    stats = [device.memory_stats() if device.process_index == jax.process_index() else None for device in devices]
    known = [s["bytes_limit"] for s in stats if s and "bytes_limit" in s]
    if known:
        return len(devices) * max(known)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
