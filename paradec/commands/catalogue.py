"""`paradec methods` and `paradec models`: what there is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any

import tyro
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from paradec.commands import options as o
from paradec.console import OUT

NEEDED = {"draft": "MODEL or layers:N", "heads": "FILE"}
"""How what a method needs besides its target is written."""


def methods(
    as_json: o.Json = False,
    markdown: Annotated[bool, tyro.conf.arg(help="Print the tables of the README.")] = False,
) -> int:
    """List the methods and unmasking rules, what they promise and what they take."""
    from paradec import catalog
    from paradec.decode.unmasking import compose as unmasking

    if as_json:
        print(json.dumps([row.public() for row in (*catalog.ROWS, *unmasking.PARTS.values())], indent=1))
        return 0
    if markdown:
        print(catalog.table() + "\n\n" + catalog.rules())
        return 0
    out = Table("name", "system", "arXiv", "exact: greedy", "sampled", "trained", box=None)
    for row in catalog.ROWS:
        yes = ["yes" if x else "no" for x in (row.exact_greedy, row.exact_sampled, row.trained)]
        out.add_row(row.name, row.title, row.arxiv or "-", *yes)
    OUT.print(out)
    OUT.print("\nOptions (--method-arg key=value) and their defaults:", style="dim")
    for row in catalog.ROWS:
        part = {row.part: NEEDED[row.part]} if row.part else {}
        line(f"{row.name}: ", part | row.options())
    OUT.print("\nUnmasking rules for diffusion models, one for each slot, joined by +:", style="dim")
    for part in unmasking.PARTS.values():
        own = {k: v for k, v in part.options().items() if k != "weights"}  # which come out of the filter's file
        line(f"{part.name:15} {part.slot:8} {part.title}: ", own)
    line("all: ", unmasking.ENGINE | {"block": "the model's own"})
    return 0


def line(head: str, options: Mapping[str, Any]) -> None:
    """One entry of a list, with its options; what it has no default for is an ellipsis."""
    known = ", ".join(f"{k}={'…' if v in (inspect.Parameter.empty, '') else v}" for k, v in options.items())
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
