"""What kernels move and hold, counted; what they lower to for CUDA; block sizes, stored and tuned."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from paradec.errors import InputError, UnknownName
from paradec.models.cells.lstm import LSTM
from paradec.ops.kernels import affine, gla, recurrent, table, tune
from paradec.ops.kernels.affine import AffineForm
from paradec.ops.kernels.launch import SCOPED_VMEM, Operand, tiled

LONG = (2048, 16384, 65536)
TRITON = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")


def test_a_block_is_fetched_when_its_index_changes():
    whole = dict(shape=(8, 4), dtype=jnp.float32, block=(2, 4))
    assert Operand(**whole, index=lambda i, t: (t, 0)).moved((3, 4)) == 3 * 8 * 4 * 4
    assert Operand(**whole, index=lambda i, t: (i, 0)).moved((3, 4)) == 3 * 2 * 4 * 4
    assert Operand(**whole, index=lambda i, t: (0, 0)).moved((3, 4)) == 2 * 4 * 4
    assert Operand((7, 4), jnp.bfloat16, (None, 4), lambda i, t: (t, 0)).moved((1, 7)) == 7 * 4 * 2
    assert Operand((7, 4), jnp.bfloat16, (4, 4), lambda i, t: (t, 0)).moved((1, 2)) == 7 * 4 * 2  # 3 rows of the second
    assert (tiled((3, 5), 4), tiled((3, 5), 2), tiled((9, 129), 4)) == (8 * 128 * 4, 16 * 128 * 2, 16 * 256 * 4)


def launches(T):
    """Every TPU kernel at sizes of a layer, with the bytes that its operation cannot do without."""
    f32, bf16 = jnp.float32, jnp.bfloat16
    for k in (1, 2):
        for shape in ((T, 2048), (T, 8, 1024), (T, 4, 768)):
            for form in (AffineForm(), AffineForm(reverse=True, delayed=True)):
                launch = affine.launch(shape, k, bf16 if k == 1 else f32, f32, form)
                yield launch, launch.floor()
    for K, V in ((128, 128), (128, 256), (256, 512)):
        for types in (gla.GlaTypes(f32, f32, f32, f32), gla.GlaTypes(bf16, bf16, bf16, f32)):
            sizes = gla.GlaSizes(2, T, 4, K, V)
            form = gla.GlaForm(1.0)
            form = form._replace(rows=gla.fitting_rows(sizes, form, types))
            plain = gla.forward_launch(sizes, form, types, False)
            yield plain, plain.floor()
            backward = gla.backward_launch(sizes, form, types)
            yield backward, backward.floor() - backward.inputs[4].bytes
    for D, r in ((128, f32), (256, f32), (512, bf16)):
        sizes = recurrent.StepSizes(T, 4, 8, D, r, r, False)
        form = recurrent.StepForm(LSTM(4, D))
        form = form._replace(steps=recurrent.fitting_steps(sizes, form))
        yield (forward := recurrent.forward_launch(sizes, form)), forward.floor()
        backward = recurrent.backward_launch(sizes, form)
        edges = backward.inputs[7:9]  # the states again, of which a chunk reads one step
        yield backward, backward.floor() - sum(x.bytes for x in edges)


@pytest.mark.parametrize("T", LONG)
def test_kernels_move_little_more_than_their_operands(T):
    for launch, floor in launches(T):
        assert launch.moved() <= 1.3 * floor, (launch.name, launch.moved() / floor, launch.inputs[0].shape)
        assert launch.vmem() < SCOPED_VMEM, launch.name


@pytest.mark.parametrize(("K", "V", "most"), [(128, 128, 1.15), (128, 256, 1.2), (256, 512, 1.4)])
def test_states_kept_for_the_gradient_cost_little(K, V, most):
    """Written forwards and read backwards: waste, for neither pass needs them but for the other."""
    for type in (jnp.float32, jnp.bfloat16):
        sizes, form = gla.GlaSizes(2, 16384, 4, K, V), gla.GlaForm(1.0)
        types = gla.GlaTypes(type, type, type, jnp.float32)
        form = form._replace(rows=gla.fitting_rows(sizes, form, types))
        forward, backward = gla.forward_launch(sizes, form, types, True), gla.backward_launch(sizes, form, types)
        floor = forward.floor() + backward.floor() - 2 * forward.outputs[2].bytes
        assert forward.moved() + backward.moved() <= most * floor


def test_a_grid_in_the_wrong_order_is_seen():
    """A mutant: heads inside time, so that R is fetched for every chunk of steps."""
    sizes = recurrent.StepSizes(2048, 4, 8, 256, jnp.float32, jnp.float32, False)
    launch = recurrent.forward_launch(sizes, recurrent.StepForm(LSTM(4, 256), steps=16))
    swapped = [Operand(x.shape, x.dtype, x.block, lambda t, i, n, x=x: x.index(n, i, t)) for x in launch.inputs]
    moved = sum(x.moved(launch.grid[::-1]) for x in swapped) + sum(x.bytes for x in launch.outputs)
    assert moved > 1.3 * launch.floor()


def test_refusals_of_gated_linear_attention():
    assert gla.refusal((1, 64, 4, 256), (1, 64, 4, 512), "tpu") is None
    assert gla.refusal((1, 64, 4, 128), (1, 64, 4, 48), "gpu") is None
    assert "16, 32, 64, 128 or 256" in gla.refusal((1, 64, 4, 96), (1, 64, 4, 96), "gpu")
    assert "does not fit VMEM" in gla.refusal((1, 64, 1, 2048), (1, 64, 1, 2048), "tpu")
    assert "whole sub-chunks" in gla.refusal((1, 64, 4, 128), (1, 64, 4, 128), "tpu", 60, 16)
    assert "rocm" in gla.refusal((1, 64, 4, 128), (1, 64, 4, 128), "rocm")
    empty = jnp.zeros((1, 0, 1, 8))
    with pytest.raises(InputError, match="no empty arrays"):
        gla.gla(empty, empty, empty, empty)


def test_kernels_lower_to_triton_on_a_machine_without_a_gpu():
    x, h = jax.ShapeDtypeStruct((256, 8, 128), jnp.bfloat16), jax.ShapeDtypeStruct((8, 128), jnp.float32)
    scan = lambda a, b, h: affine.scan(((a,),), (b,), (h,), AffineForm(platform="gpu"))[0]
    q, S = jax.ShapeDtypeStruct((2, 64, 2, 64), jnp.float32), jax.ShapeDtypeStruct((2, 2, 64, 64), jnp.float32)
    attend = lambda *x: gla.attend(*x, gla.GlaForm(0.125, platform="gpu"))[0]
    gradient = lambda f: lambda *x: jax.vjp(f, *x)[1](jnp.ones(f_shape(f, x), f_type(f, x)))
    f_shape, f_type = (lambda f, x: jax.eval_shape(f, *x).shape), (lambda f, x: jax.eval_shape(f, *x).dtype)
    for function, arguments, kernels in ((gradient(scan), (x, x, h), 1), (gradient(attend), (q, q, q, q, S), 3)):
        lowered = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=[TRITON])(*arguments)
        assert lowered.mlir_module().count("__gpu$xla.gpu.triton") >= kernels


def test_the_tuner_measures_and_stores_what_is_quickest(tmp_path):
    path, said = tmp_path / "blocks.json", []
    values = {"tpu": {"time": (8, 16), "cells": (128,)}}
    tried = {"diagonal": tune.TunedKernel(tune._scan, ((16, 3), (16, 3), (3,)), values)}
    best = tune.tune(["diagonal"], tried, "tpu", path, repeats=1, say=said.append)
    kind = jax.devices()[0].device_kind
    assert json.loads(path.read_text()) == {kind: best} and best["diagonal"]["cells"] == 128
    assert len(said) == 2 and all("ms" in line for line in said)
    table.store("gla", {"rows": 64}, path)
    assert set(json.loads(path.read_text())[kind]) == {"diagonal", "gla"}
    with pytest.raises(UnknownName, match="diagonal"):
        tune.tune(["diagnal"], tried, "tpu")
    broken = {"diagonal": tune.TunedKernel(_refused, ((4, 3),), values)}
    with pytest.raises(InputError, match="No block sizes"):
        tune.tune(["diagonal"], broken, "tpu", say=said.append)
    assert "does not run: too large" in said[-1]


def _refused(blocks, platform, x):
    raise InputError("too large")


def test_every_kernel_has_stored_block_sizes_and_a_trial():
    stored, tried = table.stored(), tune.kernels()
    assert set(stored["tpu"]) == set(tried) and set(stored["gpu"]) == {"diagonal", "block", "gla"}
    for name, kernel in tried.items():
        for platform in kernel.values:
            for candidate in kernel.candidates(platform):
                assert dict(candidate).keys() == stored[platform][name].keys()
    assert np.prod([len(v) for v in tried["gla"].values["gpu"].values()]) == len(tried["gla"].candidates("gpu"))
