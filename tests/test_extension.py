"""What another package or a file of your own brings is found, listed with its origin, and put through the laws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paradec import catalog
from paradec.errors import InputError, UnknownName
from paradec.testing.check import check_method
from tests.quick import quick_environment

DRAFTER = '''
"""Drafts the token that stands under the last one, over and over."""

import jax.numpy as jnp

from paradec import struct
from paradec.decode.seams import ChainDrafter
from paradec.decode.trees import chain, last_token
from paradec.system import EXACT, ExactTo, System


@struct.dataclass
class Echo(ChainDrafter):
    num_draft: int = struct.field(pytree_node=False, default=2)

    @property
    def depth(self):
        return self.num_draft

    def propose(self, params, state):
        return chain(state, jnp.tile(last_token(state)[:, None], (1, self.num_draft))), None


SYSTEM = System(name="echo", title="Echo", slot="draft", make=Echo, laws=EXACT, exact_to=ExactTo("ar", "ar"), proof="-")
'''
RULE = '''
"""Commits the leftmost masked positions."""

import jax.numpy as jnp

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import rank
from paradec.system import RULE, System


@struct.dataclass
class Leftmost(Select):
    per_call: int = struct.field(pytree_node=False, default=2)

    def __call__(self, view, carry):
        place = rank(-view.position.astype(jnp.float32), view.eligible)
        return Choice(place < self.per_call)


SYSTEM = System(name="leftmost", title="From left to right", slot="select", make=Leftmost, laws=RULE, proof="-")
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder in which a package is installed that brings a drafter and a rule, one file each."""
    root = tmp_path_factory.mktemp("site")
    (root / "scratch").mkdir()
    (root / "scratch" / "__init__.py").write_text("")
    (root / "scratch" / "echo.py").write_text(DRAFTER)
    (root / "scratch" / "leftmost.py").write_text(RULE)
    info = root / "scratch_methods-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-methods\nVersion: 0.1\n")
    points = "[paradec.systems]\necho = scratch.echo:SYSTEM\nleftmost = scratch.leftmost:SYSTEM\n"
    (info / "entry_points.txt").write_text(points)
    return root


def program(package: Path, code: str) -> str:
    """What a Python program prints that sees the package."""
    env = quick_environment() | {"PYTHONPATH": os.pathsep.join([str(package), str(Path(__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_rows_of_another_package_are_listed_composed_and_put_through_the_laws(package):
    """Three quarters of a minute in a process of its own: entry points are looked for once a process."""
    said = program(package, """
import json
from paradec import catalog, composition
from paradec.testing.check import check_method
from paradec.cli import main
main(["methods"])
print(json.dumps({
    "origins": [catalog.origin(name) for name in ("ar", "echo", "leftmost")],
    "options": composition.parse("echo", ["num_draft=3"]),
    "promises": composition.promises("echo", {}, 0.8),
    "echo": check_method("echo", only="table"), "leftmost": check_method("leftmost", only="full", block=8),
}))
""")  # fmt: skip
    table, _, document = said.rpartition("\n{")
    told = json.loads("{" + document)
    assert "Echo, from" in table and "scratch-meth" in table and "leftmost" in table
    assert told["origins"] == ["paradec", "scratch-methods", "scratch-methods"]
    assert told["options"] == {"num_draft": 3} and told["promises"] is True
    assert told["echo"] == ["exact on table", "rows on table", "loops on table"]
    assert told["leftmost"] == [f"{law} on full" for law in ("trace", "budget", "rows", "loops")]


def test_a_package_that_is_broken_is_left_out_with_a_warning(monkeypatch):
    class Point:
        """An entry point whose module cannot be imported, one that holds no row, and one whose name is taken."""

        dist = None

        def __init__(self, value):
            self.value = self.name = value

        def load(self):
            if self.value == "broken":
                raise ImportError("no such thing")
            return 3 if self.value == "number" else catalog.SYSTEMS["jacobi"]

    monkeypatch.setattr(catalog, "entry_points", lambda group: [Point(n) for n in ("broken", "number", "taken")])
    with pytest.warns(UserWarning) as told:
        assert catalog.foreign.__wrapped__() == {}
    said = [str(warning.message) for warning in told]
    assert said[0] == "No methods of broken: ImportError: no such thing" and "is to be a System" in said[1]
    assert said[2].endswith("brings a system named jacobi, and there is one already.")


def test_a_name_that_is_taken_is_refused(package):
    (package / "scratch" / "clash.py").write_text(DRAFTER.replace('name="echo"', 'name="jacobi"'))
    with pytest.raises(InputError, match="brings a system named jacobi, and there is one already"):
        catalog.from_file(package / "scratch" / "clash.py", "SYSTEM")


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [("x = 1", "x", "There is no drafter, rule or System in mine.py named"), ("1 / 0", "x", "ZeroDivisionError"),
     (DRAFTER, "Ecko", "Did you mean 'Echo'"), (None, "x", "no Python file")],
    ids=["no system", "no program", "another name", "no file"],
)  # fmt: skip
def test_a_file_without_the_method_gets_a_sentence(tmp_path, text, name, sentence):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises((InputError, UnknownName), match=sentence):
        catalog.from_file(path, name)


def test_a_class_of_a_file_is_a_method_of_the_command_line(tmp_path, monkeypatch, capsys):
    """`compare --method-file FILE:NAME` decodes with it beside the others."""
    from paradec.cli import main
    from tests.fixtures import write_tiny_model

    monkeypatch.setattr(catalog, "ADDED", {})
    path, model = tmp_path / "mine.py", write_tiny_model(tmp_path / "tiny")
    path.write_text(DRAFTER.split("SYSTEM")[0])
    out = tmp_path / "out.json"
    words = [
        "compare",
        "--model",
        str(model),
        "--prompt",
        "abc abc",
        "--raw",
        "--max-new-tokens",
        "8",
        "--repeats",
        "0",
    ]
    status = main([*words, "--methods", "jacobi", "--method-file", f"{path}:Echo", "--json", str(out),
                   "--method-arg", "echo.num_draft=3"])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    rows = {row["method"]: row for row in json.loads(out.read_text())["methods"]}
    assert set(rows) == {"ar", "jacobi", "echo"} and rows["echo"]["identical"] == 1
    assert rows["echo"]["exact"] is False and len(rows["echo"]["acceptance_by_depth"]) == 3
    assert main([*words, "--method-file", "mine.py"]) == 2 and "reads FILE:NAME" in capsys.readouterr().err


def test_a_mutant_from_outside_is_caught(tmp_path, monkeypatch):
    """A drafter that commits nothing wrong, and a rule that looks at its neighbours in the batch."""
    monkeypatch.setattr(catalog, "ADDED", {})
    path = tmp_path / "mine.py"
    path.write_text(RULE.replace("place < self.per_call", "place < self.per_call + view.eligible[:1].sum() % 2"))
    row = catalog.from_file(path, "SYSTEM")
    with pytest.raises(AssertionError, match="law 'rows' on the full model: row .* in other company"):
        check_method(row, only="full", block=8)
