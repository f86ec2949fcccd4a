"""Ctrl-C and SIGTERM at any moment: a program is gone within seconds, with a word, its status and no traceback, and
every file is whole."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fixtures import write_tiny_model

# A job in the background is given SIGINT ignored, and hands that on.
LISTEN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = LISTEN + "from paradec.cli import main; sys.exit(main())"
RECIPE = LISTEN + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
# The same, saying how far it is every moment, so that a test knows what was measured.
TELLING = (
    LISTEN + "import functools; from paradec import console; "
    "console.track = functools.partial(console.track, every=0.05); from paradec.cli import main; sys.exit(main())"
)
SOON = 3.0
MOMENTS = 10 if "PARADEC_CASES" in os.environ else 3


class Ended(NamedTuple):
    """How a program ended that was told to: its status, its words, and the seconds that it took."""

    status: int
    said: str
    spent: float


def begun(program: str, *argv: object, stdout: int = subprocess.DEVNULL) -> subprocess.Popen:
    """A program that begins to load modules."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, *map(str, argv)]
    process = subprocess.Popen(command, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    return process


def told(process: subprocess.Popen, seconds: float, number: int) -> Ended:
    """What becomes of a program that gets a signal after so long."""
    try:
        time.sleep(seconds)
        begin = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        return Ended(process.returncode, said, time.monotonic() - begin)
    finally:
        process.kill()


def moments(name: str, longest: float) -> list[float]:
    """The same random moments in every run; with PARADEC_CASES, ten."""
    draw = random.Random(name)
    return [draw.uniform(0, longest) for _ in range(MOMENTS)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model and prompts that keep every command busy for minutes."""
    folder = tmp_path_factory.mktemp("busy")
    write_tiny_model(folder / "tiny", max_length=20000)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"text {i}"}) + "\n" for i in range(200)))
    return folder


def check_command(work, command, seconds, *options):
    ask = ("--model", work / "tiny", "--prompts", work / "prompts.jsonl", "--max-new-tokens", 19000)
    ended = told(begun(COMMAND, command, *ask, *options), seconds, signal.SIGINT)
    assert ended.status == 130 and "Traceback" not in ended.said and "Interrupted" in ended.said, (seconds, ended)
    assert ended.spent < SOON, f"interrupted after {seconds:.2f} s, it went on for {ended.spent:.1f} s"


@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_while_modules_are_loaded(work, seconds):
    check_command(work, "generate", seconds)


@pytest.mark.parametrize(("command", "options"), [("generate", ()), ("compare", ("--methods", "ar,jacobi"))])
def test_a_command_at_any_moment(work, command, options):
    for seconds in moments(command, longest=12):
        check_command(work, command, seconds, *options)


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Terminated.")])
def test_a_comparison_tells_what_it_has(work, tmp_path, number, word):
    """Once the first batch has all its rounds, its comparison is what a signal leaves."""
    ask = ("--model", work / "tiny", "--prompts", work / "prompts.jsonl", "--max-new-tokens", 8, "--batch-size", 4)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "png")}
    to = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    process = begun(TELLING, "compare", *ask, "--methods", "jacobi", "--repeats", 100, *to, stdout=subprocess.PIPE)
    try:
        while not ((said := process.stderr.readline()).startswith("Comparing") and int(said.split()[3]) > 202):
            assert said, "it ended before it was told to"
        begin = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - begin < SOON
    assert process.returncode == 128 + number and err.endswith(f"{word}\n") and "Traceback" not in err, err
    assert "of 200 prompts, 100 of 100 rounds" in " ".join(out.split()) and "jacobi" in out, (out, err)
    report = json.loads(files["json"].read_text())
    assert report["partial"] and 4 <= report["settings"]["prompts"] < 200
    assert files["html"].read_text().rstrip().endswith("</html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("*.partial*"))


def test_a_command_that_ends_soon_leaves_what_was_there_or_all_of_it(tmp_path, monkeypatch):
    """Also where it is at writing, or ends by itself."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # compiles are what takes its time
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.json"
    prompts.write_text('{"prompt": "sort - - D A C B F E"}\n' * 4)
    ask = ("--model", "lists", "--prompts", prompts, "--max-new-tokens", 6, "--methods", "threshold", "--repeats", 3)
    argv = ("compare", *ask, "--json", out)
    start = time.monotonic()
    assert begun(COMMAND, *argv).wait(300) == 0 and json.loads(out.read_text())["methods"]
    whole = time.monotonic() - start
    for at, number in zip(moments("soon", whole), itertools.cycle((signal.SIGINT, signal.SIGTERM)), strict=False):
        out.write_text("old")
        ended = told(begun(COMMAND, *argv), at, number)
        # After its last line Python shuts down, and there a signal ends it without asking.
        finished = ended.status == 0 or (ended.status == -number and out.read_text() != "old")
        assert finished or ended.status == 128 + number, (at, ended)
        assert ended.spent < SOON, f"asked after {at:.1f} s of {whole:.1f}, it went after {ended.spent:.1f} s"
        assert "Traceback" not in ended.said and "Exception" not in ended.said, ended.said
        assert out.read_text() == "old" or json.loads(out.read_text())["methods"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, os.EX_TEMPFAIL)])
def test_training_at_any_moment(tmp_path, number, status):
    """SIGTERM saves what was learned; both leave nothing half."""
    recipe = Path(__file__).parents[1] / "train" / "lm.py"
    often = ("--run.save-every", 5, "--run.evaluate-every", 20, "--plan.steps", 100_000, "--shape.layers", 1)
    for i, seconds in enumerate(moments(f"train {number}", longest=12)):
        out = tmp_path / f"{i}"
        ended = told(begun(RECIPE, recipe, "tiny", "--run.out", out, *often), seconds, number)
        assert ended.status == status and "Traceback" not in ended.said, (seconds, ended)
        assert ended.spent < SOON, f"told after {seconds:.1f} s, it went on for {ended.spent:.1f} s"
        if (out / "metrics.jsonl").exists():
            assert all(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
        assert not list(out.rglob("*.partial*"))
