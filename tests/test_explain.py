"""`explain`: what it reads in HLO, what it says of a CPU, and what the real TPU compiler makes of our programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from paradec import mesh
from paradec.catalog import SYSTEMS
from paradec.cli import main
from paradec.decode import loop
from paradec.errors import InputError, ResourceError, UnknownName
from paradec.explain import ProgramRequest, Report, compiler, explain, hlo
from paradec.explain.child import ask, environment
from paradec.models.shapes import SHAPES, llama3_2_1b, llama3_8b, smollm2_135m
from paradec.ops.kernels.launch import SCOPED_VMEM
from paradec.params import count
from tests.learn.test_objectives import RECIPES
from tests.ops import compiled_kernels

MIB = 2**20

HLO = """HloModule test, is_scheduled=true

%start.body (p.0: bf16[1,64]) -> (bf16[1,64], bf16[1,4096]) {
  %all-gather.1 = bf16[1,4096]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=1, dimensions={1}
  ROOT %cc.1 = (bf16[1,64]{1,0:T(8,128)}, u32[]{:S(2)}) custom-call(%p.0), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: bf16[1,64]) -> bf16[1,4096] {
  ROOT %all-gather.2 = bf16[1,4096]{1,0} all-gather(%p.1), channel_id=1, dimensions={1}
}

%done.body (p.2: bf16[1,64]) -> bf16[1,4096] {
  %all-gather.3 = bf16[1,4096]{1,0} all-gather(%p.2), channel_id=1, dimensions={1}
  ROOT %cc.2 = bf16[1,4096]{1,0} custom-call(%p.2, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.3.clone (input.1: bf16[4096,64]) -> bf16[64,64] {
  %all-reduce.1 = bf16[4096,64]{1,0} all-reduce(%input.1), channel_id=2, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[64,64]{1,0} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={64,64}
}

%layer (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar.8 = f32[8]{0} all-reduce(%h), channel_id=7, to_apply=%add
  ROOT %l = (s32[], f32[8]) tuple(%i, %ar.8)
}

%turn (p.3: (s32[], bf16[2,9,4096])) -> (s32[], bf16[2,9,4096]) {
  %ars = bf16[64,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3.clone
  %s = (bf16[1,64]{1,0}, bf16[1,4096]{1,0}, u32[]{:S(2)}) fusion(%y), kind=kCustom, calls=%start.body
  %f = bf16[1,4096]{1,0} fusion(%s), kind=kCustom, calls=%async_collective_fusion.1
  %d = bf16[1,4096]{1,0} fusion(%f), kind=kCustom, calls=%done.body
  %t.1 = bf16[2,64,4,8]{3,2,1,0:T(8,128)(2,1)S(1)} transpose(%k), dimensions={0,2,1,3}
  %while.2 = (s32[], f32[8]) while(%tuple.2), condition=%test, body=%layer
  ROOT %r = (s32[], bf16[2,9,4096]) tuple(%i, %z)
}

ENTRY %main.1 (k.1: bf16[2,4,64,8]) -> bf16[2,4,64,8] {
  %while.1 = (s32[], bf16[2,9,4096]) while(%tuple.1), condition=%test, body=%turn
  %ar = (f32[2]{0}, f32[4]{0}) all-reduce(%a, %b), channel_id=4, to_apply=%add
  %ag.s = (f32[4]{0}, f32[16]{0}) all-gather-start(%c), channel_id=5, dimensions={0}
  %ag.d = f32[16]{0} all-gather-done(%ag.s)
  %gathered = bf16[2,8,64,8]{3,2,1,0} all-gather(%k.1), channel_id=6, dimensions={1}
  %inner = bf16[2,4,64,9]{3,2,1,0} copy(%other)
  ROOT %copy.1 = bf16[2,4,64,8]{3,2,1,0} copy(%k.1)
}
"""


def test_collectives_are_read_with_their_disguises():
    found = {(c.kind, c.shape): c for c in hlo.collectives(hlo.Module(HLO))}
    assert set(found) == {
        ("all-gather", "bf16[1,4096]"),
        ("reduce-scatter", "bf16[64,64]"),
        ("all-reduce", "f32[2] f32[4]"),
        ("all-gather", "f32[16]"),
        ("all-gather", "bf16[2,8,64,8]"),
        ("all-reduce", "f32[8]"),
    }
    overlapped = found["all-gather", "bf16[1,4096]"]
    assert (overlapped.count, overlapped.loops, overlapped.overlapped, overlapped.bytes) == (1, 1, True, 8192)
    assert found["reduce-scatter", "bf16[64,64]"].loops == 1
    assert found["all-reduce", "f32[2] f32[4]"].bytes == 24 and not found["all-reduce", "f32[2] f32[4]"].loops
    assert found["all-gather", "f32[16]"].overlapped and found["all-reduce", "f32[8]"].loops == 2


def test_moves_of_a_cache_are_found_in_any_order_of_dimensions():
    moves = hlo.moves(hlo.Module(HLO), [((2, 4, 64, 8), (2, 8, 64, 8))])
    assert {(m.kind, m.shape, m.loops) for m in moves} == {
        ("all-gather", "bf16[2,8,64,8]", 0),
        ("copy", "bf16[2,4,64,8]", 0),
        ("transpose", "bf16[2,64,4,8]", 1),
    }
    assert not hlo.moves(hlo.Module(HLO), [((3, 4, 64, 8), (3, 8, 64, 8))])


# On the CPU at hand.


@pytest.fixture(scope="module")
def on_cpu():
    return explain("prompt_lookup", "tiny", batch=4, slots=4096, dtype="float32", mesh=(2, 2), num_draft=4)


def test_a_step_on_a_cpu_keeps_its_cache_in_place(on_cpu):
    cache = 2 * 2 * 2 * 2 * 4096 * 8 * 4  # keys and values, layers, rows and heads of one device
    assert on_cpu.counted.cache == cache
    assert on_cpu.moves == () and on_cpu.fits and on_cpu.hbm is None and on_cpu.floor_seconds is None
    assert cache <= on_cpu.memory.aliased < on_cpu.memory.arguments
    assert on_cpu.memory.temporaries < cache / 2
    assert {c.kind for c in on_cpu.collectives} <= {"all-reduce", "all-gather"}
    assert max(c.bytes for c in on_cpu.collectives) <= 2 * 5 * 32 * 4  # activations of two rows


def test_work_is_counted_from_shapes(on_cpu):
    dense = 2 * (32 * 4 * 4 * 8 + 4 * 2 * 8 * 32 + 3 * 32 * 64) + 96 * 32  # qkv, out, MLP; head: all split in two
    norms = 2 * 2 * 32 + 32
    assert on_cpu.counted.weights == 4 * (dense / 2 + norms)
    kept = 2 * 2 * 2 * 2 * 4096 * 8
    assert on_cpu.counted.flops == 2 * 5 * ((dense / 2 + norms) * 2 + kept * 2)  # two rows; two queries a head


def test_heads_read_the_list_they_choose_from():
    ask = dict(model="tiny", slots=256, dtype="float32")
    short = explain("medusa", **ask, short_list=16, num_draft=3)
    with mesh.use(mesh.make_mesh(1, 1)) as place:
        whole = compiler.build(ProgramRequest("medusa", options={"num_draft": 3}, **ask), place)
    assert whole.counted.weights - short.counted.weights == 4 * (96 - 16) * 32
    assert whole.counted.flops - short.counted.flops == 2 * 4 * (96 - 16) * 32
    table = 4 * 16 * 32  # beside what the model itself has
    assert short.fits and short.moves == () and short.memory.arguments > short.counted.weights + table


def test_a_report_survives_json(on_cpu):
    fields = json.loads(json.dumps(on_cpu.public()))
    assert fields["fits"] is True
    assert Report.parse(fields) == on_cpu


def test_a_canvas_keeps_its_cache_in_place():
    report = explain("threshold", "tiny", block=8, batch=4, slots=512, dtype="float32", mesh=(2, 2), tau=0.5)
    cache = 2 * 2 * 2 * 2 * 512 * 8 * 4  # keys and values, layers, rows and heads of one device
    assert report.counted.cache == cache <= report.memory.aliased
    assert report.moves == () and {c.kind for c in report.collectives} <= {"all-reduce", "all-gather"}


def test_two_streams_stay_on_their_devices():
    """A text's noisy and clean rows lie side by side: else every layer would send its keys to other devices."""
    report = explain(model="tiny", program="train", block=8, batch=8, slots=64, mesh=(4, 1), dtype="float32")
    assert {c.kind for c in report.collectives} == {"all-reduce", "all-gather"}
    weights = {(96, 32), (64, 32), (32, 64), (32, 4, 4, 8), (4, 2, 8, 32)}
    shapes = {tuple(map(int, re.findall(r"\d+", c.shape[3:]))) for c in report.collectives if c.kind == "all-gather"}
    assert shapes <= weights, f"something else than weights is gathered: {shapes - weights}"


def test_a_commit_that_rewrites_the_cache_is_found_out(monkeypatch):
    def rewrite(buffer, new, start, count):
        slot = jnp.arange(buffer.shape[3])[None, None, None, :, None]
        return jnp.where(slot == start[None, :, None, None, None], new[:, :, :, :1], buffer)

    monkeypatch.setattr("paradec.models.cache.cache_write", rewrite)
    request = ProgramRequest("ar", "tiny", batch=2, slots=1024, dtype="float32")
    with mesh.use(mesh.make_mesh(1, 1)) as place:
        assert compiler.measure(request, compiler.build(request, place), "cpu").moves


def test_the_command_prints_a_table_or_json(capsys, monkeypatch, on_cpu):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the other process: half its time
    assert main(["explain", "--model", "tiny", "--slots", "16", "--program", "train", "--json"]) == 0
    report = Report.parse(json.loads(capsys.readouterr().out))
    monkeypatch.setattr("paradec.explain.api.ask", lambda request: on_cpu)
    assert main(["explain", "--method", "prompt_lookup", "--model", "tiny"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "One step of prompt_lookup, num_draft=4 on tiny" in printed
    assert "No copy, transpose or gather of a cache's shape." in printed
    assert report.counted.flops > 0 and report.memory.temporaries > 0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"target": "v5x:1x1"}, UnknownName, "v5e:16x16"),
        ({"target": "v5e"}, InputError, "no topology"),
        ({"target": "v5e:2x2", "mesh": (2, 1), "batch": 2}, InputError, "4 chips, not 2 × 1"),
        ({"batch": 3, "mesh": (2, 1)}, InputError, "3 rows does not split"),
        ({"slots": 0}, InputError, "at least 1"),
        ({"block": 3}, InputError, "2048 slots do not split into blocks of 3"),
        ({"short_list": -1}, InputError, "-1 was given"),
        ({"program": "serve"}, UnknownName, "decode, train"),
        ({"model": "tiny2"}, InputError, "Did you mean 'tiny'"),  # found out in the other process
        ({"nodraft": 1}, InputError, "nodraft"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(arguments, error, says):
    with pytest.raises(error, match=says):
        explain("ar", **{"model": "tiny"} | arguments)


def test_without_the_tpu_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(compiler, "has_tpu_compiler", lambda: False)
    with pytest.raises(ResourceError, match=r"paradec\[aot\]"):
        compiler.topology("v5e:1x1")


def test_shapes_have_their_published_sizes():
    assert count(llama3_8b().specs()) == 8_030_261_248
    assert count(llama3_2_1b().specs()) == 1_235_814_400
    assert count(smollm2_135m().specs()) == 134_515_008
    assert all(make().dtype == "float32" for make in SHAPES.values())


DRAFTERS = [row.name for row in SYSTEMS.values() if row.slot == "draft" and row.name != "linear_speculation"]


@pytest.mark.parametrize("name", [*DRAFTERS, "train"])
def test_every_method_exports_for_cuda_on_a_machine_without_it(name):
    draft = "tiny" if name == "draft_model" else None
    what = {"program": "train"} if name == "train" else {"method": name, "draft": draft}
    request = ProgramRequest(model="tiny", batch=2, slots=128, **what)
    with mesh.use(mesh.make_mesh(1, 1)) as place:
        program = compiler.build(request, place)
        exported = jax.export.export(program.function, platforms=["cuda"])(*program.arguments)
    assert exported.platforms == ("cuda",)
    assert "stablehlo.while" in exported.mlir_module()


@pytest.mark.parametrize(
    ("ending", "sentence", "starts"),
    [("os.kill(os.getpid(), 9)", "status -9: it said", 2), ("sys.exit('Error: no')", "status 1: Error: no", 1)],
)
def test_a_process_that_dies_is_told_of(tmp_path, ending, sentence, starts):
    """A killed one has a second chance."""
    started = tmp_path / "started"
    program = f"import os, sys; print('.', file=open({str(started)!r}, 'a'), flush=True); {ending}"
    with pytest.raises(ResourceError, match=sentence):
        ask(ProgramRequest(), ("-c", program))
    assert len(started.read_text().split()) == starts


# With the real TPU compiler.

needs_compiler = pytest.mark.skipif(not compiler.has_tpu_compiler(), reason="needs libtpu: pip install 'paradec[aot]'")


def tpu(test):
    return pytest.mark.tpu(needs_compiler(test))


def in_place(report: Report, temporaries: int) -> None:
    """The memory law: fits, rewrites the cache where it lies, and nothing of a cache's shape is copied or gathered."""
    assert report.fits, report.refused
    assert report.moves == ()
    assert report.memory.aliased >= report.counted.cache
    assert report.memory.temporaries < temporaries


@tpu
@pytest.mark.parametrize(
    ("target", "method", "options"),
    [
        ("v5e:1x1", "ar", {}), ("v5e:1x1", "prompt_lookup", {}), ("v6e:1x1", "ar", {}), ("v5p:1x1x1", "ar", {}),
        # A single row once made the loop over rows vanish, and the cache was laid out anew in every step.
        ("v5e:1x1", "prompt_lookup", {"batch": 1}),
        ("v5e:1x1", "medusa", {"batch": 1, "num_draft": 15, "short_list": 4096}),
    ],
)  # fmt: skip
def test_a_step_compiles_for_every_chip(target, method, options):
    report = explain(method, "smollm2-135m", target=target, **{"batch": 8, "slots": 2048} | options)
    in_place(report, temporaries=90 * MIB)  # of them 54 the tied embedding, laid out anew for the lookup
    assert report.collectives == ()
    assert 0 < report.floor_seconds < 0.002


@tpu
@pytest.mark.parametrize(("method", "options", "nodes"), [("ar", {}, 1), ("prompt_lookup", {"num_draft": 8}, 9)])
def test_an_8b_step_on_a_pod_moves_only_activations(method, options, nodes):
    pod = {"target": "v5e:16x16", "mesh": (32, 8), "batch": 64, "slots": 8192}
    report = explain(method, "llama3-8b", **pod, **options)
    in_place(report, temporaries=64 * MIB)
    assert report.counted.cache == 256 * MIB
    assert report.memory.needed < 2.5 * 2**30
    assert max(c.bytes for c in report.collectives) == 2 * nodes * 4096 * 2  # two rows of a device, bfloat16
    places = [c.loops for c in report.collectives if c.bytes == 2 * nodes * 4096 * 2 for _ in range(c.count)]
    assert sorted(places) == [1, 2, 2]  # the tokens looked up; in the loop of layers, after attention and after the MLP
    # A layer's weights and the head once, and not much else: nothing is laid out anew on the way.
    assert report.compiler.accessed < 320 * MIB


@tpu
def test_a_block_diffusion_step_on_a_pod_moves_only_activations():
    pod = {"target": "v5e:16x16", "mesh": (32, 8), "batch": 256, "slots": 4096}
    report = explain("threshold", "llama3.2-1b", block=32, **pod)
    in_place(report, temporaries=64 * MIB)
    assert report.counted.cache == 128 * MIB
    assert report.memory.needed < 2**30
    assert max(c.bytes for c in report.collectives) == 8 * 2 * 32 * 2048 * 2  # eight rows of a device, two blocks


@tpu
def test_freedave_reads_a_cache_of_one_row_in_place():
    """All drafts read the same blocks; blocks of their own would be gathered, from a cache laid out anew for that."""
    report = explain("threshold+freedave", "smollm2-135m", block=32, target="v5e:1x1", slots=2048)
    in_place(report, temporaries=128 * MIB)
    assert report.counted.flops > 3 * explain("threshold", "smollm2-135m", block=32).counted.flops  # four drafts


@tpu
def test_a_model_too_large_is_refused_in_a_sentence():
    report = explain("ar", "llama3-8b", target="v5e:1x1", batch=8, slots=8192)
    assert not report.fits and report.memory is None
    assert "15.75G" in report.refused


@tpu
def test_the_scatter_commit_would_copy_the_cache():
    """Why `ops.cache_write` is what it is; and the law can fail."""
    program = """
import paradec.models.cache as cache
from functools import partial
cache.cache_write = partial(cache.cache_write, implementation="scatter")
from paradec.explain.child import main
main()
"""
    pod = {"target": "v5e:16x16", "mesh": (32, 8), "batch": 64, "slots": 8192}
    report = ask(ProgramRequest("prompt_lookup", "llama3-8b", options={"num_draft": 8}, **pod), ("-c", program))
    assert {m.kind for m in report.moves} >= {"copy"} and report.memory.temporaries > 100 * MIB


@tpu
def test_an_8b_training_pass_fits_a_pod():
    pod = {"target": "v5e:16x16", "mesh": (64, 4)}
    report = explain(model="llama3-8b", program="train", batch=256, slots=4096, **pod)
    assert report.fits, report.refused
    assert report.memory.needed < 10 * 2**30
    assert any(c.kind == "reduce-scatter" for c in report.collectives)
    assert any(c.overlapped for c in report.collectives)
    assert 6 < report.counted.flops * 256 / (count(llama3_8b().specs()) * 256 * 4096) < 10  # 8, and attention


@tpu
def test_a_1b_block_diffusion_training_pass_fits_a_pod():
    pod = {"target": "v5e:16x16", "mesh": (64, 4)}
    report = explain(model="llama3.2-1b", program="train", block=32, batch=256, slots=4096, **pod)
    assert report.fits, report.refused
    assert report.memory.arguments + report.memory.temporaries < 6 * 2**30
    stream = 2 * 4 * 4096 * 2048 * 2  # of both streams of a device's four rows, bfloat16
    assert max(c.bytes for c in report.collectives) <= stream
    # A weight counts 8 for each of two streams, but the head's (a fifth) for one; and attention.
    assert 14 < report.counted.flops * 256 / (count(llama3_2_1b().specs()) * 256 * 4096) < 20


@tpu
def test_kernels_compile_in_the_memory_that_they_have():
    """Forward and with their gradients; and around them nothing is laid out anew, but where axes are no whole tiles."""
    found = compiled_kernels.ask()
    assert len(found) == 2 * len(compiled_kernels.PROGRAMS)
    for program in found:
        assert len(program["vmem"]) == 1 + (program["what"] == "gradient"), program
        assert max(program["vmem"]) < SCOPED_VMEM, program
        assert not program["copies"] or "ragged" in program["name"], program


def test_axes_name_every_leaf_of_a_state():
    request = ProgramRequest("draft_model", "tiny", batch=2, slots=128, draft="tiny")
    with mesh.use(mesh.make_mesh(2, 2)) as place:
        state = compiler.build(request, place).arguments[2]
    axes = loop.axes(state)
    assert axes.tokens == ("batch", None) and axes.key == ("batch",)
    assert axes.cache.k == axes.carry.v == ("layers", "batch", "kv_heads", None, None)
    assert state.cache.k.sharding.shard_shape(state.cache.k.shape) == (2, 1, 2, 128, 8)


@tpu
def test_a_step_in_bfloat16_is_compiled_to_products_in_bfloat16():
    """What tests/learn/test_objectives.py finds in the traced step, asked of a compiled one."""
    names = RECIPES if "PARADEC_CASES" in os.environ else ["medusa2", "moe", "block"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.learn.compiled_products", *names],
        env=environment(ProgramRequest("ar", target="v5e:1x1")), capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    for name, found in json.loads(done.stdout).items():
        router = found.pop("router f32", 0) + found.pop("router bf16 f32", 0)  # activations may stay as they are
        assert router == (3 if name == "moe" else 0), name
        assert set(found) == {"bf16"} and found["bf16"] >= (4 if name == "medusa1" else 20), (name, found)


@tpu
def test_scans_in_lanes_keep_little_besides_their_states():
    """8,192 steps of 2,048 states, 64 MiB an array. "blocks" is the gradient of 2 x 2 of them, and nothing is padded to
    tiles. All at once, a scan moves ten times as much as its three arrays hold."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compiled_scans"],
        env=environment(ProgramRequest(target="v5e:2x4", mesh=(1, 8))), capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    temporaries, accessed, kernels = ({k: v[i] for k, v in json.loads(done.stdout).items()} for i in range(3))
    assert temporaries["auto"] == temporaries["lanes"] < 16 * MIB
    assert temporaries["gradient"] < 256 * MIB and temporaries["blocks"] < 512 * MIB
    assert {name for name, number in kernels.items() if number} == {"one device"}
    assert temporaries["associative"] > 128 * MIB and accessed["associative"] > 10 * 3 * 64 * MIB
