"""`paradec methods` and `paradec models`: what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import tyro
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from paradec.commands import options as o
from paradec.console import OUT
from paradec.system import Option

NEEDED = {"draft": "MODEL or layers:N", "heads": "FILE", "filter": "FILE"}
"""How what a method needs besides its target is written."""


def methods(
    as_json: o.Json = False,
    markdown: Annotated[bool, tyro.conf.arg(help="Print the table of the README.")] = False,
    page: Annotated[bool, tyro.conf.arg(help="Print docs/methods.md: a paragraph on each.")] = False,
) -> int:
    """List the methods and unmasking rules, what they promise and what they take."""
    from paradec import catalog, engines

    rows = catalog.systems().values()
    if as_json:
        print(json.dumps([row.public() for row in rows], indent=1))
        return 0
    if markdown:
        print(catalog.table())
        return 0
    if page:
        print(catalog.page(), end="")
        return 0
    out = Table(box=None)
    for head in ("name", "slot", "arXiv", "exact", "trained"):
        out.add_column(head, no_wrap=True)
    out.add_column("system", overflow="fold")
    for row in rows:
        exact = " / ".join(promise or "-" for promise in row.exact_to)
        origin = catalog.origin(row.name)
        title = row.title if origin == catalog.OURS else f"{row.title}, from {origin}"
        out.add_row(row.name, row.slot, row.arxiv or "-", exact, "yes" if row.trained else "no", title)
    OUT.print(out)
    OUT.print("exact: whose tokens a method returns, greedy / sampled.", style="dim")
    for engine, what in ((engines.PREFIX, "for models that continue a text"), (engines.CANVAS, "for diffusion models")):
        OUT.print(f"\nOptions {what} (--method-arg key=value) and their defaults; + joins slots:", style="dim")
        for row in rows:
            if row.slot in engine.slots or (row.slot == "wrap" and row.made.kind == engine.kind):
                line(f"{row.name}: ", {name: NEEDED[name] for name in row.components} | defaults(row.options))
        line("all: ", defaults(engine.options))
    return 0


def defaults(options: Mapping[str, Option]) -> dict[str, Any]:
    """Options with what they are where nothing is said; what must be given is an ellipsis."""
    return {o.name: "…" if o.required else o.unset if o.default is None else o.default for o in options.values()}


def line(head: str, options: Mapping[str, Any]) -> None:
    """One entry of a list, with its options."""
    known = ", ".join(f"{name}={value}" for name, value in options.items())
    OUT.print(Padding(Text(head + known), (0, 0, 0, 2)))


def models(as_json: o.Json = False) -> int:
    """List the presets that load without a path."""
    from paradec.io.resolve import PRESETS

    rows = [{"name": k, "summary": p.summary, "licence": p.license, "hub": p.hub} for k, p in PRESETS.items()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    out = Table("name", "summary", "licence", box=None)
    for row in rows:
        out.add_row(row["name"], row["summary"], row["licence"])
    OUT.print(out)
    OUT.print("Or name a folder in Hugging Face layout, a .gguf file, or a hub id such as org/name.", style="dim")
    return 0
