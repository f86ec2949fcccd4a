"""One run in one folder, or at one file: two that write the same checkpoints, metrics or lines would break both."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from paradec import mesh
from paradec.errors import InputError
from paradec.io.whole_file import cannot_write

log = logging.getLogger("paradec")
FREE, TAKEN, FAILED = range(3)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only run in `folder` while the block runs; the processes of a job are one run, and the first holds it.

    The lock is the kernel's (`flock`) on the file `run.lock`: it is gone with the process that held it, however that
    ended. On NFS it holds between machines, in buckets mounted as folders only on each. Where a file system has no such
    locks, a marker with the holder's process id does, or a warning says that there is none. Raises `InputError` in
    every process where another run is there, and `ResourceError` where the folder cannot be written.
    """
    taken = (
        f"Another process trains in {folder}, and two would break each other's checkpoints. Wait for it, end it, or "
        "give this run a folder of its own (--run.out)."
    )
    with _held(folder / "run.lock", taken):
        yield


@contextlib.contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """Be the only one that writes `file` while the block runs: as `alone`, by the lock `FILE.lock` beside it."""
    taken = f"Another process writes {file}. Wait for it, end it, or name another file."
    with _held(file.with_name(file.name + ".lock"), taken):
        yield


@contextlib.contextmanager
def _held(lock: Path, taken: str) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        error = None
        found = FREE
        if jax.process_index() == 0:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                _take(held, lock)
            except Timeout:
                found = TAKEN
            except OSError as reason:
                found, error = FAILED, reason
        found = mesh.first_says(found)
        if found == TAKEN:
            raise InputError(taken)
        if found == FAILED:
            raise cannot_write(lock.parent, error or OSError("see the message of process 0")) from error
        yield


def _take(held: contextlib.ExitStack, path: Path) -> None:
    try:
        held.enter_context(FileLock(path, timeout=0))
    except NotImplementedError:  # no flock on this file system
        log.warning("%s cannot be locked on its file system: see that no other run writes to its folder.", path)
