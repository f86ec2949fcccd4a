"""Compile a request and read the result. Runs in a process of its own: see `child`."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from paradec import catalog, mesh
from paradec.composition import build as build_method
from paradec.composition import compose
from paradec.errors import InputError, ResourceError
from paradec.explain import hlo
from paradec.explain.programs import Program, Use, decode_loop, training_step
from paradec.explain.request import Cost, Memory, ProgramRequest, Report
from paradec.explain.structures import built, name_of
from paradec.learn.objectives.masked import Masked, Noise
from paradec.learn.objectives.next_token import NextToken
from paradec.models.heads import MedusaHeads
from paradec.models.ranked_tree import MC_SIM_7B_63
from paradec.models.shapes import denoiser


def report(request: ProgramRequest) -> Report:
    """The whole answer to one request, on this process' devices or its TPU compiler's."""
    devices = topology(request.target) if request.chip else jax.devices()
    data, model = request.mesh
    rules = mesh.FSDP if request.program == "train" else mesh.TENSOR
    with mesh.use(mesh.make_mesh(data, model, devices), rules) as place:
        return measure(request, build(request, place), devices[0].device_kind)


def topology(target: str) -> Sequence[Any]:
    """The devices of a TPU that is not here."""
    if not has_tpu_compiler():
        raise ResourceError(
            "The TPU compiler is not installed: pip install 'paradec[aot]' (Linux on x86-64). Keep JAX_PLATFORMS=cpu "
            "set on that machine, or every start of jax looks for a TPU."
        )
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(target, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise InputError(f"There is no TPU topology {target!r}: {error}") from error


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed."""
    found = importlib.util.find_spec("libtpu")
    return found is not None and found.origin is not None


def build(request: ProgramRequest, place: mesh.Placement) -> Program:
    """The program a request names."""
    target = built(request.model, request.dtype)
    if request.block:
        if target.kinds[0] != "prefix":
            raise InputError(f"{name_of(request.model)} is a denoiser already: leave out block={request.block}.")
        target = denoiser(target, request.block)
    if target.kinds[0] == "canvas":
        return _diffusion(request, target, place)
    if request.program == "train":
        return training_step(target, NextToken, request.batch, request.slots + 1, request.slots, place)
    models, given = {"target": target}, {}
    if request.draft is not None:
        models["draft"] = given["draft"] = built(request.draft, request.dtype)
    if "heads" in catalog.find(request.method).components:
        models["heads"] = MedusaHeads(num_heads=4, width=target.sizes().width, dtype=request.dtype)
        given["heads"] = models["heads"], MC_SIM_7B_63
    # Abstract too: on the mesh of a machine that is not here, the smallest array cannot be made.
    method = jax.eval_shape(lambda: build_method(request.method, target, (0,), **given, **request.options))
    uses = {"target": Use(method.drafter.nodes), "draft": Use(1, method.drafter.calls, "carry")}
    return decode_loop(method, models, uses, request.batch, request.slots, place, request.short_list)


def _diffusion(request: ProgramRequest, model: Any, place: mesh.Placement) -> Program:
    if request.program == "train":
        objective = partial(Masked, noise=Noise(model.block))
        passed = 2 * request.slots if model.block else request.slots  # in blocks, noisy rows and clean ones
        return training_step(model, objective, request.batch, request.slots, passed, place)
    options = ({"cache": "block"} if model.block else {}) | dict(request.options)
    method = jax.eval_shape(lambda: compose(model, request.method, options, eos=(0,)))
    uses = {"target": Use((model.block or request.slots) * method.drafts)}
    return decode_loop(method, {"target": model}, uses, request.batch, request.slots, place)


def measure(request: ProgramRequest, program: Program, device: str) -> Report:
    """Lower, compile and read one program. A program that does not fit is an answer, not an error."""
    start = time.perf_counter()
    lowered = program.function.lower(*program.arguments)
    middle = time.perf_counter()
    basis = Report(request, title(request), device, program.counted, lower_seconds=middle - start)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(basis, refused=refusal(str(error)), compile_seconds=time.perf_counter() - middle)
    basis = dataclasses.replace(basis, compile_seconds=time.perf_counter() - middle)
    module = hlo.Module(compiled.as_text())
    return dataclasses.replace(
        basis,
        memory=_memory(compiled.memory_analysis()),
        compiler=_cost(compiled.cost_analysis()),
        collectives=hlo.collectives(module),
        moves=hlo.moves(module, program.caches),
    )


def refusal(message: str) -> str:
    """The sentence in the compiler's message that says how much is too much."""
    found = re.search(r"Ran out of memory.*(?=\. HLO module)", message)
    return f"{found[0]}." if found else message.splitlines()[0]


def title(request: ProgramRequest) -> str:
    """What the program is, for people."""
    model = name_of(request.model)
    model += f" in blocks of {request.block}" if request.block else ""
    if request.program == "train":
        return f"One training step of {model}, {request.batch} rows of {request.slots} tokens"
    options = "".join(f", {k}={v}" for k, v in request.options.items())
    return f"One step of {request.method}{options} on {model}, {request.batch} rows, {request.slots} cache slots"


def _memory(m: Any) -> Memory:
    return Memory(
        arguments=m.argument_size_in_bytes,
        outputs=m.output_size_in_bytes,
        aliased=m.alias_size_in_bytes,
        temporaries=m.temp_size_in_bytes,
        code=m.generated_code_size_in_bytes,
        peak=m.peak_memory_in_bytes,
    )


def _cost(analysis: Any) -> Cost:
    found = analysis or {}
    return Cost(flops=found.get("flops", 0.0), accessed=found.get("bytes accessed"))
