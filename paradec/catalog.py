"""Every published system that paradec holds, and those of other packages: one row each, beside its factory.

The README's table, `paradec methods`, `docs/methods.md`, the choices of the command line and the laws all read it.
Another package adds rows through the entry point group `paradec.systems`: a `System`, or several.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from paradec.decode import verify
from paradec.decode.drafters import ar, draft_model, jacobi, lookahead, medusa, prompt_lookup
from paradec.decode.unmasking import (
    ada_block,
    credit,
    eb,
    entropy,
    factor,
    freedave,
    hierarchical,
    klass,
    learned_filter,
    local_leap,
    oracle,
    prophet,
    quota,
    threshold,
    time_grid,
    wino,
)
from paradec.errors import UnknownName
from paradec.system import System

MODULES = (
    *(ar, prompt_lookup, jacobi, lookahead, draft_model, medusa, verify),
    *(quota, time_grid, threshold, factor, entropy, eb, klass, hierarchical, local_leap, learned_filter, wino, oracle),
    *(credit, ada_block, prophet, freedave),
)
SYSTEMS: Mapping[str, System] = {row.name: row for module in MODULES for row in module.SYSTEMS}
"""Our own, by name."""
GROUP = "paradec.systems"
OURS = "paradec"


@functools.cache
def foreign() -> Mapping[str, tuple[System, str]]:
    """Rows of other packages by name, each with the package that it comes from. Looked for once."""
    found: dict[str, tuple[System, str]] = {}
    for point in entry_points(group=GROUP):
        origin = point.dist.name if point.dist else point.value
        for row in given_rows(point.load(), f"The entry point {point.name} of {origin}"):
            if row.name in SYSTEMS or row.name in found:
                raise ValueError(f"{origin} brings a system named {row.name}, and there is one already; rename it.")
            found[row.name] = row, origin
    return found


def given_rows(given: Any, who: str) -> tuple[System, ...]:
    """One row or several. Raises `ValueError` for anything else, in a sentence that begins with `who`."""
    rows = (given,) if isinstance(given, System) else tuple(given) if isinstance(given, (tuple, list)) else ()
    if not rows or not all(isinstance(row, System) for row in rows):
        raise ValueError(f"{who} is to be a System, or a tuple of them; it is {type(given).__name__}.")
    return rows


def systems() -> Mapping[str, System]:
    """All rows by name, ours first."""
    return {**SYSTEMS, **{name: row for name, (row, _) in foreign().items()}}


def origin(name: str) -> str:
    """The package that a row comes from."""
    return OURS if name in SYSTEMS else foreign()[name][1]


def find(name: str, slot: str | None = None) -> System:
    """The row of that name. Raises `UnknownName` with the nearest one, among those of `slot` if given."""
    known = {key: row for key, row in systems().items() if slot in (None, row.slot)}
    if name not in known:
        raise UnknownName("method" if slot is None else f"{slot} rule", str(name), known)
    return known[name]


def of_object(part: Any) -> System | None:
    """The row whose factory makes objects like this one; None: there is none."""
    return next((row for row in systems().values() if row.made is type(part)), None)


def table(rows: Iterable[System] | None = None) -> str:
    """Rows as a Markdown table, for the README; without any given, all of ours."""
    lines = [
        "| name | system | paper | slot | exact: greedy / sampled | trained |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in SYSTEMS.values() if rows is None else rows:
        exact = " / ".join(promise or "-" for promise in row.exact_to)
        trained = "yes" if row.trained else "no"
        lines.append(f"| `{row.name}` | {row.title} | {paper(row.arxiv)} | {row.slot} | {exact} | {trained} |")
    return "\n".join(lines)


def paper(arxiv: str | None) -> str:
    """A link to a paper, in Markdown."""
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "-"
