"""How programs end: statuses, sentences, and signals wherever they meet the process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from paradec.errors import InputError, Stopped
from paradec.guard import guarded


def ends(error: BaseException) -> int:
    def program() -> int:
        raise error

    return guarded(program)


class JaxRuntimeError(RuntimeError):
    """As jax names its own."""


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("Give a prompt."), 2, "paradec: Give a prompt."),
        (Stopped("Step 3 is saved."), 75, "Step 3 is saved."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (KeyboardInterrupt("Half is here."), 130, "Half is here."),
        (OSError(28, "No space left on device", "a.json"), 2, "paradec: No space left on device: a.json."),
        (MemoryError(), 2, "not enough memory"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "not enough memory"),
        (SystemExit(), 0, ""),
        (SystemExit(2), 2, ""),
        (SystemExit("Too long."), 1, "Too long."),
    ],
)
def test_an_error_is_a_status_and_a_sentence(capsys, error, status, says):
    assert ends(error) == status
    assert says in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    for bug in (ZeroDivisionError(), JaxRuntimeError("INTERNAL: no")):
        with pytest.raises(type(bug)):
            ends(bug)


def start(program: str) -> subprocess.Popen:
    """A process that says when it is guarded. One started in the background would ignore SIGINT: not this one."""
    head = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from paradec.guard import guarded\n"
        f"def program():\n    print('begun', flush=True)\n    {program}\n    return 0\n"
        "sys.exit(guarded(program, 0.5))\n"
    )
    return subprocess.Popen([sys.executable, "-c", head], stdout=-1, stderr=-1, text=True)


# A main thread that never gets to hear of it, as in a compiler.
LOSES = "exec('while True:\\n try: time.sleep(60)\\n except KeyboardInterrupt: pass')"


TURNS = "exec('try: time.sleep(60)\\nexcept KeyboardInterrupt as told: raise ImportError from told')"


@pytest.mark.parametrize(
    "program", ["time.sleep(60)", LOSES, TURNS], ids=["sleeps", "loses it", "makes an error of it"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_is_gone_soon(program, number):
    process = start(program)
    assert process.stdout.readline() == "begun\n"
    begin = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number and "Traceback" not in err
    assert time.monotonic() - begin < 10


def test_a_closed_pipe_is_no_error():
    process = start("print('x' * 10)")
    assert process.stdout.readline() == "begun\n"
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) in (0, 1) and err == ""


def test_no_stdout_at_all():
    program = "import sys; from paradec.guard import guarded; sys.exit(guarded(lambda: 0))"
    assert subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program]).returncode == 0
