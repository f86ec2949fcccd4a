"""Every published system that paradec holds, and those of other packages: one row each, beside its factory.

The README's table, `paradec methods`, `docs/methods.md`, the choices of the command line and the laws all read it.
Another package adds rows through the entry point group `paradec.systems`: a `System`, or several.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from paradec.decode import verify
from paradec.decode.drafters import ar, draft_model, jacobi, linear_speculation, lookahead, medusa, prompt_lookup
from paradec.decode.seams import Part
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
    renoise,
    threshold,
    time_grid,
    wino,
)
from paradec.errors import InputError, UnknownName
from paradec.system import RULE, SLOTS, System

MODULES = (
    *(ar, prompt_lookup, jacobi, lookahead, draft_model, medusa, linear_speculation, verify),
    *(quota, time_grid, threshold, factor, entropy, eb, klass, hierarchical, local_leap, learned_filter, wino),
    *(renoise, oracle),
    *(credit, ada_block, prophet, freedave),
)
SYSTEMS: Mapping[str, System] = {row.name: row for module in MODULES for row in module.SYSTEMS}
"""Our own, by name."""
GROUP = "paradec.systems"
OURS = "paradec"


@functools.cache
def foreign() -> dict[str, tuple[System, str]]:
    """Rows of other packages by name, each with the package that it comes from. Looked for once.

    A package whose rows cannot be had is left out with a warning: it must not keep ours from those who have it.
    """
    found: dict[str, tuple[System, str]] = {}
    for point in entry_points(group=GROUP):
        origin = point.dist.name if point.dist else point.value
        try:
            rows = given_rows(point.load(), f"The entry point {point.name}")
        except Exception as error:  # whatever a module does when it is imported
            warnings.warn(f"No methods of {origin}: {type(error).__name__}: {error}", stacklevel=2)
            continue
        for row in rows:
            if row.name in SYSTEMS or row.name in found:
                warnings.warn(f"{origin} brings a system named {row.name}, and there is one already.", stacklevel=2)
            else:
                found[row.name] = row, origin
    return found


ADDED: dict[str, tuple[System, str]] = {}
"""Rows that this process has added, each with where it came from."""


def add(row: System, origin: str) -> System:
    """Add a row for the rest of this process. Raises `InputError` for a name that another row has."""
    known = systems().get(row.name)
    if known not in (None, row):
        raise InputError(f"{origin} brings a system named {row.name}, and there is one already; rename it.")
    if known is None:
        ADDED[row.name] = row, origin
    return row


def given_rows(given: Any, who: str) -> tuple[System, ...]:
    """One row or several. Raises `ValueError` for anything else, in a sentence that begins with `who`."""
    rows = (given,) if isinstance(given, System) else tuple(given) if isinstance(given, (tuple, list)) else ()
    if not rows or not all(isinstance(row, System) for row in rows):
        raise ValueError(f"{who} is to be a System, or a tuple of them; it is {type(given).__name__}.")
    return rows


def systems() -> Mapping[str, System]:
    """All rows by name, ours first."""
    return {**SYSTEMS, **{name: row for name, (row, _) in (foreign() | ADDED).items()}}


def origin(name: str) -> str:
    """Where a row comes from: a package, or a file."""
    return OURS if name in SYSTEMS else (foreign() | ADDED)[name][1]


def find(name: str, slot: str | None = None) -> System:
    """The row of that name. Raises `UnknownName` with the nearest one, among those of `slot` if given."""
    known = {key: row for key, row in systems().items() if slot in (None, row.slot)}
    if name not in known:
        raise UnknownName("method" if slot is None else f"{slot} rule", str(name), known)
    return known[name]


def of_object(part: Any) -> System | None:
    """The row whose factory makes objects like this one; None: there is none."""
    return next((row for row in systems().values() if row.made is type(part)), None)


def row_for(part: Part) -> System:
    """The row of an object that fills a slot; for one that is in no row, a row of its own, which promises nothing."""
    return of_object(part) or row_of_class(type(part))


def row_of_class(kind: type[Part]) -> System:
    """A row for a class that is in none: named after it, made by its `of` if it has one, and promising nothing."""
    laws = ("rows", "loops") if kind.slot in ("draft", "accept") else RULE
    make, name = kind.of if "of" in vars(kind) else kind, kind.__name__
    return System(name=name.lower(), title=name, slot=kind.slot, make=make, laws=laws, proof="")


def from_file(path: Path, name: str) -> System:
    """Add what stands under a name in a Python file: a row, or the class of a drafter or of a rule.

    Raises `InputError` where the file cannot be read or run, or the name stands for something else.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path} is no Python file that can be read.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}.") from error
    known = {key: value for key, value in vars(module).items() if isinstance(value, System) or _is_part(value)}
    if name not in known:
        raise UnknownName(f"drafter, rule or System in {path.name}", name, known)
    found = known[name]
    return add(found if isinstance(found, System) else row_of_class(found), str(path))


def _is_part(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Part) and "slot" in dir(value)


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


def page() -> str:
    """`docs/methods.md`: a paragraph for each of our rows, from the rows alone."""
    out = [PAGE]
    for slot, what in SLOTS.items():
        rows = [row for row in SYSTEMS.values() if row.slot == slot]
        out += [f"## {slot}: {what}", *(entry(row) for row in rows)] if rows else []
    return "\n\n".join(out) + "\n"


def entry(row: System) -> str:
    """One system in Markdown: its idea, what it promises, needs, takes and costs, its laws, and its proof."""
    whose = {"ar": "plain decoding's", "base": "those of the method that it wraps", None: "its own"}
    greedy, sampled = (whose[promise] for promise in row.exact_to)
    tokens = greedy if greedy == sampled else f"{greedy} at temperature 0, {sampled} above"
    source = f" ({paper(row.arxiv)})" if row.arxiv else ""
    lines = [f"### `{row.name}`", f"{row.title}{source}.\n\n{row.about}", f"* Its tokens are {tokens}."]
    lines += [f"* It needs {' and '.join(NEEDED[name] for name in row.components)}."] if row.components else []
    for option in row.options.values():
        usual = option.unset if option.default is None else option.default
        default = "must be given" if option.required else f"default {usual}"
        lines.append(f"* `{option.name}` ({default}): {row.meanings[option.name]}.")
    lines.append(f"* Cost: {row.cost}")
    lines.append(f"* Laws: {', '.join(row.laws)}. Proof: `{row.proof}`.")
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


NEEDED = {
    "draft": "a draft model (`draft=`, a preset, a folder, a hub id or layers:N)",
    "heads": "heads trained for the target (`heads=FILE`)",
    "filter": "a filter trained for the target (`filter=FILE`)",
}
PAGE = """# Methods

Every published system that a method can be made of, by the slot that it fills. A method is one system for each slot,
joined by `+`; a slot that is left open is filled as its engine does (`accept` by `match`, `select` by `quota`). It is
printed by `paradec methods --page` from the rows beside the code. What the laws are stands in `paradec/system.py`;
`pytest tests/test_catalogue_laws.py -k NAME` runs them for one system."""
