"""Ctrl-C at any moment: the command is gone within seconds, with a word, status 130 and no traceback."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures import write_tiny_model


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model and prompts that keep every command busy for minutes."""
    folder = tmp_path_factory.mktemp("busy")
    write_tiny_model(folder / "tiny", max_length=20000)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"text {i}"}) + "\n" for i in range(200)))
    return folder


def interrupted(work, command, seconds, *options):
    """How long a command takes to end, its status and its words, interrupted so long after it began to load modules."""
    # A job in the background is given SIGINT ignored, and hands that on.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; import sys; from paradec.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", program, command, "--model", work / "tiny", "--prompts", work / "prompts.jsonl"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [*map(str, argv), "--max-new-tokens", "19000", *options], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        time.sleep(seconds)
        assert process.poll() is None, f"it ended by itself: {process.communicate()[1]}"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    return time.monotonic() - begin, process.returncode, said


def check(work, command, seconds, *options):
    spent, status, said = interrupted(work, command, seconds, *options)
    assert status == 130 and "Traceback" not in said and "Interrupted" in said, (seconds, status, said)
    assert spent < 3, f"interrupted after {seconds:.2f} s, it went on for {spent:.1f} s"


@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_while_modules_are_loaded(work, seconds):
    check(work, "generate", seconds)


def test_in_the_middle_of_a_long_text(work):
    check(work, "generate", 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("command", ["generate", "compare"])
def test_at_any_moment(work, command, moment):
    seconds = random.Random(f"{command} {moment}").uniform(0, 20)
    check(work, command, seconds, *([] if command == "generate" else ["--methods", "ar,jacobi"]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_at_any_moment(tmp_path, number):
    """SIGTERM saves what was learned; both leave nothing half."""
    train = Path(__file__).parents[1] / "train" / "lm.py"
    wanted = {signal.SIGINT: 130, signal.SIGTERM: os.EX_TEMPFAIL}[number]
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listen}; import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for moment in range(10 if number == signal.SIGINT else 4):
        out = tmp_path / f"{moment}"
        options = ["tiny", "--run.out", out, "--run.save-every", "5", "--run.evaluate-every", "20"]
        argv = [sys.executable, "-c", program, train, *options, "--plan.steps", "100000", "--shape.layers", "1"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen([*map(str, argv)], env=env, stdout=-1, stderr=-1, text=True)
        while process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)
        time.sleep(random.Random(f"{number} {moment}").uniform(0, 15))
        assert process.poll() is None, process.communicate()
        begin = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == wanted and "Traceback" not in said, (moment, process.returncode, said)
        assert time.monotonic() - begin < 3, f"it went on for {time.monotonic() - begin:.1f} s"
        if (out / "metrics.jsonl").exists():
            [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert not list(out.rglob("*.partial*"))
