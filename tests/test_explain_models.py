"""`explain` of models that are given, and not named: any that say their sizes and stacks."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from paradec import mesh, params
from paradec.errors import InputError
from paradec.explain import ProgramRequest, compiler, explain
from paradec.explain.structures import as_json, built, name_of
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.dit import DiT
from paradec.models.experts import Experts
from paradec.models.shapes import from_fields, tiny
from paradec.models.tabular import ConditionalTable
from paradec.ops.rope import Rope
from paradec.testing import tiny_recurrence, tiny_transformer
from paradec.types import Model

DIT = DiT(vocab_size=97, width=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, mlp_width=48)
GEMMA = tiny_transformer(window=5, sliding=(True, False), local_rope=Rope(theta=100.0))[0]
MODELS = {
    "transformer": tiny(),
    "sliding": GEMMA,
    "experts": tiny_transformer(num_layers=3, experts=Experts(6, 12, 2, shared=20, leading=1))[0],
    "dit": DIT,
    "denoiser": BlockDiffusion(DIT, mask_id=3, block=8),
    "recurrence": tiny_recurrence()[0],
}


def program(method, model, devices=1, **options):
    sizes = {"batch": 2, "slots": 64, "dtype": "float32", "mesh": (1, devices)}
    request = ProgramRequest(method, as_json(model), **sizes | options)
    with mesh.use(mesh.make_mesh(1, devices)) as place:
        return compiler.build(request, place)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_structure_survives_json(model):
    sent = json.loads(json.dumps(as_json(model)))
    again = built(sent, "float32")
    assert again == model and hash(again) == hash(model) and name_of(sent) == f"the given {type(model).__name__}"
    if model is not MODELS["recurrence"]:
        half = built(sent, "bfloat16")
        assert half.sizes() == dataclasses.replace(model.sizes(), dtype="bfloat16")
        assert {spec.dtype for spec in jax.tree.leaves(half.specs(), is_leaf=params.is_spec)} <= {"bfloat16", "float32"}


def test_fields_without_a_class_are_those_of_a_transformer():
    assert from_fields(json.loads(json.dumps(dataclasses.asdict(MODELS["experts"])))) == MODELS["experts"]
    assert from_fields(json.loads(json.dumps(dataclasses.asdict(GEMMA)))) == GEMMA


@pytest.mark.parametrize("name", ["recurrence", "denoiser", "experts"])
def test_work_is_counted_from_what_a_model_says(name):
    model = MODELS[name]
    method, rows = ("threshold", 8) if name == "denoiser" else ("prompt_lookup", 5)
    found = program(method, model, options={} if name == "denoiser" else {"num_draft": 4}).counted
    specs, sizes = model.specs(), model.sizes()
    dense = params.count(specs) - params.count(specs.embed)
    assert found.weights == 4 * dense
    kept = found.cache / 4
    # Two of every multiply-add, of two rows of the batch; a recurrence has no queries that read its state.
    assert found.flops == 2 * rows * (2 * dense + kept * sizes.groups)
    want = 2 * sizes.num_layers * 2 * sizes.num_kv_heads * 128 * sizes.head_dim or sizes.num_layers * 2 * sizes.width
    assert kept == want


def test_a_given_denoiser_is_the_one_that_a_block_makes():
    """A rule's program on it, and a training step of both streams, cost the same."""
    given = BlockDiffusion(tiny(), mask_id=95, block=8)
    for kind in ("decode", "train"):
        method, asked = ("threshold" if kind == "decode" else "ar"), {"program": kind, "devices": 2}
        mine = program(method, given, **asked).counted
        assert mine == program(method, tiny(), block=8, **asked).counted and mine.flops > 0
    # Between two devices half of the residual stream, in float32: six sums of both streams' rows in each of two layers.
    assert mine.exchanged == 12 / 2 * (2 * 2 * 64 * 32) * 4 * 2
    assert program("ar", tiny(), program="train", devices=2).counted.exchanged == mine.exchanged / 2


def test_a_recurrence_is_compiled_in_the_other_process():
    report = explain("ar", MODELS["recurrence"], slots=16, dtype="float32")
    assert report.title.startswith("One step of ar on the given RecurrentLM") and report.fits
    assert report.counted.cache == 4 * 2 * 32 and report.request.model["width"] == 32


def test_what_cannot_be_handed_over():
    @dataclasses.dataclass(frozen=True)
    class Local(Model):
        vocab_size: int = 3

    with pytest.raises(InputError, match="Local; define it in a module"):
        explain("ar", Local())
    with pytest.raises(InputError, match="cannot hand a dict"):
        as_json(dataclasses.replace(tiny(), rope={"theta": 1.0}))
    with pytest.raises(InputError, match="ConditionalTable computes in float32 only"):
        built(as_json(ConditionalTable(4)), "bfloat16")
    with pytest.raises(InputError, match="the given BlockDiffusion is a denoiser already: leave out block=8"):
        program("threshold", MODELS["denoiser"], block=8)
