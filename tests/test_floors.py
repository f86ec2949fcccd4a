"""Who may import whom: the floors of docs/design.md, and one meaning for every type name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "paradec"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `paradec`."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
            for path in PACKAGE.rglob("*.py")}  # fmt: skip


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in it; what only type checkers read is left out."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif node.module:
            both = [(f"{node.module}.{name.name}", node.module) for name in node.names]
            found |= {full if full.removeprefix("paradec.") in known else module for full, module in both}
    below = {name.removeprefix("paradec.") for name in found if name.startswith("paradec.")}
    return {name for name in below if name in known}


def floors() -> list[set[str]]:
    """The rooms of each floor, the lowest first, as docs/design.md lists them."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    listed = re.search(r"```floors\n(.*?)```", text, re.DOTALL)
    assert listed, "docs/design.md holds no block of floors"
    return [set(line.split()) for line in listed[1].splitlines()]


def test_every_file_imports_from_floors_below_its_own():
    known, order = modules(), floors()
    floor = {room: i for i, rooms in enumerate(order) for room in rooms}
    assert sum(map(len, order)) == len(floor), "a room stands on two floors"
    wrong = []
    for name, path in known.items():
        room = name.partition(".")[0]
        if name == "__init__":  # the public names, each looked up when it is asked for
            continue
        assert room in floor, f"{room} stands on no floor of docs/design.md"
        for other in imported(path, known) - {name}:
            if floor[other.partition(".")[0]] > floor[room]:
                wrong.append(f"{name} imports {other}")
    assert not wrong, wrong


def test_no_circle():
    known = modules()
    graph = {name: imported(path, known) - {name, "__init__"} for name, path in known.items()}
    # What is left when files that import nothing more are taken away, again and again, holds a circle.
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, f"a circle of imports is among {sorted(graph)}"


def test_no_class_name_means_two_things():
    found = defaultdict(list)
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_sizes_of_files():
    """No file above 400 lines; of the method files, their rows among them, the median is at most 60, none above 200."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: n for name, n in lines.items() if n > 400}
    methods = sorted(n for name, n in lines.items() if re.match(r"decode\.(drafters|unmasking)\.\w", name))
    assert methods[-1] <= 200 and methods[len(methods) // 2] <= 60, methods


def test_engines_ask_for_declared_facts():
    """`getattr` with a default, or `hasattr`, stands in these rooms only where a comment on its line says why."""
    rooms = re.compile(r"(decode|explain)\.|(lm|comparison|engines|composition|decoder|components)$")
    pattern, wrong = re.compile(r"\bgetattr\([^()]*,[^()]*,[^()]*\)|\bhasattr\("), []
    for name, path in modules().items():
        if rooms.match(name):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line) and "#" not in line:
                    wrong.append(f"{name}:{number}: {line.strip()}")
    assert not wrong, wrong
