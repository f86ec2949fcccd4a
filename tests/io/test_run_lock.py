"""One run in one folder: the second is told, and a run that is gone holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from paradec.errors import InputError, ResourceError
from paradec.io import run_lock

HOLDER = """
import sys, time
from pathlib import Path
from paradec.io import run_lock
with run_lock.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_and_the_next_goes_on(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], env=env, stdout=-1, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="Another process trains in"), run_lock.alone(tmp_path):
            pass
        with run_lock.alone(tmp_path / "another"):
            pass
    finally:
        other.kill()  # without a chance to tidy up
        other.communicate()
    for _ in range(2):
        with run_lock.alone(tmp_path):
            pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Cannot write"), run_lock.alone(tmp_path / "file" / "run"):
        pass
