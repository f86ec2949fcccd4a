"""`explain`, as a function."""

from __future__ import annotations

from typing import Any

from paradec.explain.child import ask
from paradec.explain.request import ProgramRequest, Report
from paradec.explain.structures import as_json
from paradec.types import Denoiser, Model


def explain(
    method: str = "ar",
    model: str | Model | Denoiser = "smollm2-135m",
    *,
    program: str = "decode",
    target: str = "cpu",
    batch: int = 1,
    slots: int = 2048,
    mesh: tuple[int, int] = (1, 1),
    dtype: str = "bfloat16",
    block: int = 0,
    short_list: int = 0,
    draft: str | Model | None = None,
    **options: Any,
) -> Report:
    """Compile a method's decode for a target that need not be here, and report what one step of it costs.

    `program` "train" compiles one training step instead (AdamW, float32 masters), with weights and moments split over
    both axes of the mesh. `block` above 0 makes the model a block-diffusion denoiser: `method` is an unmasking rule,
    with a block cache unless `cache` says otherwise, and training is of two streams. `model` is a name of
    `models.shapes`, or any model that says its sizes and stacks and can be imported; a denoiser is decoded by a rule.
    `target` is "cpu" or a TPU topology such as "v5e:16x16"; `mesh` is (data,
    model): rows over data, heads and widths over model. `slots` are cache slots of a row, or its tokens in training.
    Medusa's heads choose from `short_list` tokens, or from all (0). `options` are the method's. Raises `ResourceError`
    where the TPU compiler is not installed.
    """
    structures = {"model": as_json(model), "draft": as_json(draft)}
    sizes = {"batch": batch, "slots": slots, "mesh": mesh, "dtype": dtype, "block": block, "short_list": short_list}
    return ask(ProgramRequest(method, program=program, target=target, options=options, **structures, **sizes))
