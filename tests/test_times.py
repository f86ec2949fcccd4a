"""Slow is measured: who is marked, what a run writes down, and what it takes off the list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import times

HERE = Path(__file__).resolve().parents[1]


def test_every_time_is_of_a_test_that_is_there(request):
    """Of the files that this run collected, and of those that are no more."""
    config = request.config
    lost = times.gone(times.read(), config.stash[times.COLLECTED] if config.stash[times.WHOLE] else ())
    assert not lost, (
        f"tests/times.json has tests that are there no more: run `make times` (to drop them and measure \
nothing: make times ARGS=--collect-only): {lost}"
    )


def test_no_mark_is_kept_by_hand(request):
    by_hand = request.config.stash[times.BY_HAND]
    assert not by_hand, f"slow is what tests/times.json says; run `make times ARGS=FILE` instead of marking {by_hand}"


def test_the_list_is_sorted_and_long_enough():
    seconds = times.read()
    assert list(seconds) == sorted(seconds) and min(seconds.values()) > times.LISTED_FROM
    lines = times.FILE.read_text("utf-8").splitlines()
    assert len(lines) == len(seconds) + 2 and not any("\\" in test.partition("::")[0] for test in seconds)


def test_a_failed_test_keeps_a_longer_time():
    known = {"a": 20.0, "b": 20.0, "c": 1.0, "d": 4.0}
    found = times.merged(known, {"a": 1.0, "b": 1.0, "c": 30.0}, failed={"a", "c"})
    assert found == {"a": 20.0, "b": 1.0, "c": 30.0, "d": 4.0}


def test_the_table_adds_up(monkeypatch):
    monkeypatch.setattr(times, "SLOW_FROM", 7.0)
    lines = times.table({"a": 2.0, "b": 4.5, "c": 7.0, "d": 90.0, "oracle": 50.0}, ["a", "b", "c", "d", "e"])
    rows = {float(line.split()[0]): line.split()[1:] for line in lines[1:]}
    assert rows[4] == ["2", "2", "102", "3"] and rows[60] == ["14", "4", "90", "1"]
    assert rows[7] == ["14", "4", "90", "1", "<-", "as", "it", "is"]


CONFTEST = """
from pathlib import Path
from tests import times
times.ROOT, times.FILE = Path(__file__).parent, Path(__file__).parent / "times.json"
times.SLOW_FROM, times.LISTED_FROM = 0.5, 0.05
pytest_plugins = ["tests.times"]
"""
FIRST = """
import time, pytest
@pytest.fixture(scope="module")
def made(): time.sleep(0.1)
@pytest.mark.parametrize("n", [1, 2])
def test_shares(made, n): pass
def test_known(): pass
def test_new(): time.sleep(0.6)
def test_fails(): assert 0
def test_skips(): pytest.skip("here")
"""
SECOND = """
import pytest
pytest.importorskip("surely_not_there")
def test_elsewhere(): pass
"""
KNOWN = {
    "test_first.py::test_fails": 9.0, "test_first.py::test_known": 8.0, "test_first.py::test_renamed": 7.0,
    "test_first.py::test_skips": 6.0, "test_lost.py::test_lost": 5.0, "test_second.py::test_elsewhere": 4.0,
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    for name, text in {"conftest.py": CONFTEST, "test_first.py": FIRST, "test_second.py": SECOND}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "times.json").write_text(json.dumps(KNOWN))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n  oracle\n  tpu\n")
    return tmp_path


def run(place: Path, *options: str, to: str = "times.json") -> tuple[int, str, dict[str, float]]:
    """A run of pytest there: status, output, and the times that are then in the file."""
    told = {"PARADEC_TIMES": str(place / to), "PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=place, env=os.environ | told, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr, times.read(place / to)


@pytest.mark.parametrize("processes", [(), ("-p", "xdist", "-n", "2", "--dist", "loadfile")], ids=["one", "two"])
def test_a_whole_run_renews_what_it_ran_and_drops_what_is_gone(place, processes):
    code, said, found = run(place, *processes)
    assert code == 1 and "1 failed, 4 passed, 2 skipped" in said, said
    assert set(found) == {
        "test_first.py::test_fails", "test_first.py::test_new", "test_first.py::test_shares[1]",
        "test_first.py::test_skips", "test_second.py::test_elsewhere",
    }, said  # fmt: skip
    assert 0.6 <= found["test_first.py::test_new"] < 4, "measured"
    assert found["test_first.py::test_shares[1]"] >= 0.1, "the fixture is paid by its first user"
    assert (found["test_first.py::test_fails"], found["test_first.py::test_skips"]) == (9, 6), "what they had"


def test_what_took_long_is_slow_from_then_on(place):
    code, said, found = run(place, "-m", "slow", "-k", "not fails")
    assert code == 0 and "1 passed, 2 skipped, 4 deselected" in said, said  # known, and skips; new is not known yet
    assert set(found) == set(KNOWN) - {f"test_first.py::test_{n}" for n in ("known", "renamed")} - {
        "test_lost.py::test_lost"
    }
    run(place)
    code, said, _ = run(place, "--collect-only", "-m", "slow", to="other.json")
    selected = [line.partition("::")[2] for line in said.splitlines() if line.startswith("test_first.py::")]
    assert code == 0 and selected == ["test_new", "test_fails", "test_skips"], said


def test_a_part_of_a_file_drops_nothing_from_it(place):
    _, said, found = run(place, "test_first.py::test_new")
    assert set(KNOWN) - set(found) == {"test_lost.py::test_lost"} and "test_first.py::test_new" in found, said


def test_another_file_begins_as_the_checkout_and_goes_on_as_itself(place):
    run(place, "-m", "not slow", to="other.json")
    _, _, found = run(place, "-m", "slow", to="other.json")
    assert "test_first.py::test_new" in found and "test_first.py::test_known" not in found
    assert times.read(place / "times.json") == KNOWN
