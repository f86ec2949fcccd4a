"""What each test took, in `tests/times.json`, and which tests are slow by it: a plugin of pytest.

`make times` measures setup, call and teardown of every test of one whole run. A fixture of a module is paid by the
first test that asks for it, and a compiled program by the first that runs it; so a time holds for whole runs, and not
for the test alone. Any other run of pytest adds what it measured to the file that `PARADEC_TIMES` names, on top of what
that file or, where there is none yet, the checkout has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tests" / "times.json"

SLOW_FROM = 2.0
"""Seconds. Tests that took longer are slow. One that is not in the file is quick: until it is measured, or because it
took next to nothing."""

LISTED_FROM = 0.3
"""Seconds. The file leaves out what took no longer."""

ELSEWHERE = ("oracle", "tpu")
"""Markers of what `make test` leaves out anyhow, because it needs an extra."""

COLLECTED = pytest.StashKey[dict[str, bool]]()
"""Of a configuration: the tests that are there, selected or not, and whether `make test` may run each."""

WHOLE = pytest.StashKey[bool]()
"""Of a configuration: whether each file that was collected gave all its tests."""

BY_HAND = pytest.StashKey[list[str]]()
"""Of a configuration: tests that were marked slow before any time was asked."""


def read(path: Path | None = None) -> dict[str, float]:
    """Seconds by the test's id, as pytest writes it. Nothing where there is no such file."""
    path = path or FILE
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write(path: Path, seconds: Mapping[str, float]) -> None:
    """One line a test, sorted. A run that is killed leaves the old file."""
    listed = {test: round(s, 1) for test, s in sorted(seconds.items()) if round(s, 1) > LISTED_FROM}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(listed, indent=0, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)


def gone(seconds: Collection[str], collected: Collection[str]) -> list[str]:
    """Tests with a time that are there no more: their file is not, or was collected without them. A file of which
    nothing was collected was not asked for, or needs what is missing on this machine; its tests stay."""
    files = {test.partition("::")[0] for test in collected}
    lost = lambda test, file: test not in collected if file in files else not (ROOT / file).exists()
    return sorted(test for test in seconds if lost(test, test.partition("::")[0]))


def merged(known: Mapping[str, float], spent: Mapping[str, float], failed: Collection[str]) -> dict[str, float]:
    """What was known, renewed by what ran. A test that failed may have stopped early: it keeps a longer time."""
    return {**known, **{test: max(s, known.get(test, 0.0)) if test in failed else s for test, s in spent.items()}}


def table(seconds: Mapping[str, float], tests: Collection[str]) -> list[str]:
    """Lines of text: for some values of SLOW_FROM, how many of these tests would be quick, and what they take."""
    of = [seconds.get(test, 0.0) for test in tests]
    lines = ["SLOW_FROM   quick: seconds  tests   slow: seconds  tests"]
    for limit in sorted({1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, SLOW_FROM}):
        quick, slow = [s for s in of if s <= limit], [s for s in of if s > limit]
        now = "  <- as it is" if limit == SLOW_FROM else ""
        lines.append(f"{limit:9g}{sum(quick):17.0f}{len(quick):7d}{sum(slow):16.0f}{len(slow):7d}{now}")
    return lines


class Stopwatch:
    """For the process that gathers the reports: under xdist those of all workers, otherwise its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, read(path) or read()
        self.spent: dict[str, float] = {}
        self.skipped: set[str] = set()
        self.failed: set[str] = set()
        self.collected: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.spent[report.nodeid] = self.spent.get(report.nodeid, 0.0) + report.duration
        (self.skipped if report.skipped else self.failed if report.failed else set()).add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.collected |= getattr(node, "workeroutput", {}).get("collected", {})

    def seconds(self) -> dict[str, float]:
        """Also of tests that are too short for the file. A test that was skipped says nothing."""
        ran = {test: s for test, s in self.spent.items() if test not in self.skipped}
        found = merged(self.known, ran, self.failed)
        lost = gone(found, self.collected)
        return {test: s for test, s in found.items() if test not in lost}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        write(self.path, self.seconds())

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What `make test` would take on one core, were its limit another."""
        seconds, tests = self.seconds(), [test for test, here in self.collected.items() if here]
        unknown = sum(test not in seconds for test in tests)
        terminalreporter.section(f"times of {len(self.spent)} tests, written to {self.path}")
        for line in (*table(seconds, tests), f"{unknown} tests that were not run and have no time count as 0 seconds."):
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    """A process of xdist's above its workers measures for all of them."""
    if (path := os.environ.get("PARADEC_TIMES")) and not hasattr(config, "workerinput"):
        if "PARADEC_CASES" in os.environ:  # more cases take more time, and there are more tests
            raise pytest.UsageError("PARADEC_TIMES measures ordinary runs: unset PARADEC_CASES")
        config.pluginmanager.register(Stopwatch(Path(path).absolute()), "stopwatch")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Marks before `-m` and `-k` select. What was selected is sorted by file, the longest first: a file is one worker's
    work (`--dist loadfile`), and none should end it alone. TPU compiles go before all, measured or not."""
    seconds = read()
    note(config, items)
    for item in items:
        if seconds.get(item.nodeid, 0.0) > SLOW_FROM:
            item.add_marker("slow")
    yield
    total: dict[Path, float] = {}
    for item in items:
        spent = float("inf") if item.get_closest_marker("tpu") else seconds.get(item.nodeid, 0.0)
        total[item.path] = total.get(item.path, 0.0) + spent
    items.sort(key=lambda item: -total[item.path])


def note(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps what was collected; a worker of xdist tells it to the process that gathers."""
    here = {item.nodeid: not any(map(item.get_closest_marker, ELSEWHERE)) for item in items}
    whole = not any("::" in arg for arg in config.args) and not config.getoption("lf", False)
    config.stash[COLLECTED], config.stash[WHOLE] = here, whole
    config.stash[BY_HAND] = [item.nodeid for item in items if item.get_closest_marker("slow")]
    if hasattr(config, "workeroutput"):
        config.workeroutput["collected"] = here if whole else {}
    elif watch := config.pluginmanager.get_plugin("stopwatch"):
        watch.collected = here if whole else {}
