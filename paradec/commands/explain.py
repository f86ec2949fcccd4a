"""`paradec explain`: what a step costs on a device that need not be here, as tables or JSON."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import tyro
from rich.console import Console, RenderableType
from rich.table import Table

from paradec.explain.api import explain
from paradec.explain.request import MIB, Cost, Memory, Report
from paradec.models.shapes import shape


def command(
    method: Annotated[str, tyro.conf.arg(help="A method; `paradec methods` lists them.")] = "ar",
    model: Annotated[str, tyro.conf.arg(help="A shape: llama3-8b, smollm2-135m, tiny, …")] = "smollm2-135m",
    program: Annotated[
        Literal["decode", "train"], tyro.conf.arg(help="What to compile: a decode, or one step of training.")
    ] = "decode",
    target: Annotated[str, tyro.conf.arg(help="cpu, or a TPU topology: v5e:1x1, v5e:16x16, v5p:2x2x1.")] = "cpu",
    batch: Annotated[int, tyro.conf.arg(help="Rows, over all devices.")] = 1,
    slots: Annotated[int, tyro.conf.arg(help="Cache slots of a row; tokens of a row in training.")] = 2048,
    mesh: Annotated[tuple[int, int], tyro.conf.arg(help="Devices over rows, and over heads and widths.")] = (1, 1),
    dtype: Annotated[str, tyro.conf.arg(help="Type of weights, caches and computation.")] = "bfloat16",
    block: Annotated[int, tyro.conf.arg(help="Blocks of a diffusion model; --method is then a rule. 0: none.")] = 0,
    short_list: Annotated[int, tyro.conf.arg(help="Tokens that draft heads choose from; 0: all.")] = 0,
    method_arg: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(help="An option of the method, key=value; for draft_model also draft=SHAPE."),
    ] = (),
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")] = False,
) -> int:
    """Compile a step for a device that need not be here, and print what it costs."""
    from paradec import composition

    options = composition.parse(method, method_arg)
    composition.check_options(method, options)
    shape(model)  # known here or nowhere
    sizes = {"batch": batch, "slots": slots, "mesh": mesh, "dtype": dtype, "block": block, "short_list": short_list}
    report = explain(method, model, program=program, target=target, **sizes, **options)
    if as_json:
        print(json.dumps(report.public(), indent=1))
    else:
        console = Console(highlight=False)
        for part in tables(report):
            console.print(part)
    return 0 if report.fits else 1


def tables(report: Report) -> list[RenderableType]:
    """The report for a terminal."""
    data, model = report.request.mesh
    head = f"[bold]{report.title}[/]\n{report.request.target} ({report.device}), mesh {data} × {model}, "
    head += f"{report.request.dtype}; compiled in {report.compile_seconds:.1f} s"
    if report.memory is None:
        return [head, f"[red]It does not fit.[/] {report.refused}"]
    return [head, _memory(report.memory, report.hbm), _cost(report), _collectives(report), _moves(report)]


def _memory(memory: Memory, hbm: int | None) -> Table:
    table = Table("memory of a chip", "MiB", box=None)
    for name in ("arguments", "outputs", "aliased", "temporaries", "code"):
        table.add_row(name, f"{getattr(memory, name) / MIB:,.1f}", end_section=name == "code")
    share = "" if hbm is None else f" of {hbm / MIB:,.0f} ({memory.needed / hbm:.0%})"
    table.add_row("needed", f"{memory.needed / MIB:,.1f}{share}")
    return table


def _cost(report: Report) -> Table:
    counted, compiler = report.counted, report.compiler or Cost(flops=0.0)
    table = Table("work of a chip", "from shapes", "compiler, loop bodies once", box=None)
    table.add_row("GFLOP", f"{counted.flops / 1e9:,.1f}", f"{compiler.flops / 1e9:,.1f}")
    if counted.model_flops is not None:
        table.add_row("GFLOP of the model", f"{counted.model_flops / 1e9:,.1f}", "")
    if counted.weights is not None and counted.cache is not None:
        table.add_row("MiB of weights", f"{counted.weights / MIB:,.1f}", "")
        table.add_row("MiB of cache, all slots in use", f"{counted.cache / MIB:,.1f}", "")
    if compiler.accessed is not None:
        table.add_row("MiB accessed", "", f"{compiler.accessed / MIB:,.1f}")
    if counted.exchanged is not None:
        table.add_row("MiB sent to other chips, by formula", f"{counted.exchanged / MIB:,.1f}", "")
    if report.step_seconds is not None:
        low, high = report.step_seconds
        table.add_row("a step at peak, exchange hidden or not", f"{low * 1e3:,.0f} to {high * 1e3:,.0f} ms", "")
    if report.floor_seconds is not None:
        table.add_row("no run is faster than", f"{report.floor_seconds * 1e3:,.2f} ms", "")
    return table


def _collectives(report: Report, most: int = 12) -> RenderableType:
    if not report.collectives:
        return "No collectives."
    table = Table("collective", "result", "KiB", "places", "", box=None)
    for c in report.collectives[:most]:
        around = ("in no loop", "in a loop", "in a loop of a loop")[min(c.loops, 2)]
        notes = [around, *["overlapped"] * c.overlapped]
        table.add_row(c.kind, c.shape, f"{c.bytes / 1024:,.1f}", str(c.count), ", ".join(notes))
    if rest := report.collectives[most:]:
        places = str(sum(c.count for c in rest))
        table.add_row(f"{len(rest)} smaller ones", "", f"≤ {max(c.bytes for c in rest) / 1024:,.1f}", places)
    return table


def _moves(report: Report) -> str:
    if report.request.program == "train":
        return ""
    if not report.moves:
        return "No copy, transpose or gather of a cache's shape."
    listed = ", ".join(f"{m.count} × {m.kind} {m.shape}" for m in report.moves)
    return f"[red]The cache is moved:[/] {listed}"
