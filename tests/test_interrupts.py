"""Ctrl-C at any moment of a command: it is gone within seconds, without a traceback, and files are whole."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

PROMPT = '{"prompt": "sort - - D A C B F E"}\n'
PROGRAM = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test may run where it is ignored
    "from paradec import cli\n"
    "run = cli.run\n"
    "cli.run = lambda argv: print('begun', flush=True) or run(argv)\n"
    "sys.exit(cli.main())\n"
)
SOON = 3.0


def begun(*argv: object) -> subprocess.Popen:
    """A command that has just started; reading its imports, its model and its compiles are yet to come."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, argv)], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_compare_at_random_moments(tmp_path, monkeypatch, number):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # compiles are what takes its time
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.json"
    prompts.write_text(PROMPT * 4)
    argv = ("compare", "--model", "lists", "--prompts", prompts, "--max-new-tokens", 6, "--json", out, "--repeats", 3)
    start = time.monotonic()
    assert begun(*argv).communicate(timeout=300) and json.loads(out.read_text())["methods"]
    whole = time.monotonic() - start
    rng = random.Random(int(number))
    for moment in [0.0, 0.1, *(rng.uniform(0, whole) for _ in range(5))]:
        out.write_text("old")
        process = begun(*argv)
        time.sleep(moment)
        process.send_signal(number)
        asked = time.monotonic()
        err = process.communicate(timeout=60)[1]
        took = time.monotonic() - asked
        # After its last line Python shuts down, and there a signal ends it without asking.
        finished = process.returncode == 0 or (process.returncode == -number and out.read_text() != "old")
        assert finished or process.returncode == 128 + number, err
        assert took < SOON, f"asked after {moment:.1f} s of {whole:.1f}, it went after {took:.1f} s"
        assert "Traceback" not in err and "Exception" not in err, err
        assert out.read_text() == "old" or json.loads(out.read_text())["methods"]
