"""What is read must be a file, and what is written becomes one whole; links, pipes and devices stay what they are."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import write_gguf, write_hf

from paradec.errors import ParadecError, ResourceError, WeightsError
from paradec.io import tensor_file, text_file
from paradec.io.confidence_filter import load_filter
from paradec.io.gguf import load_gguf
from paradec.io.hf import load_hf
from paradec.io.medusa import load_medusa
from paradec.io.resolve import resolve
from paradec.io.tokenizer import Tokenizer


@contextmanager
def at_once(seconds: int = 5) -> Iterator[None]:
    """Fail where the block waits for something that never comes."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # such names are short


KINDS = {"a pipe": pipe, "a folder": folder, "a device": device, "a socket": unix_socket}
FILES: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda path: load_hf(path.parent),
    "config.json": lambda path: load_hf(path.parent),
    "model.safetensors.index.json": lambda path: load_hf(path.parent),
    "x.gguf": load_gguf,
    "heads.safetensors": load_medusa,
    "heads.json": lambda path: load_medusa(path.with_suffix(".safetensors")),
    "filter.safetensors": load_filter,
    "tokenizer.json": lambda path: Tokenizer.from_folder(path.parent),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_no_file(file: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read: a pipe is not waited for, and the sentence says what stands there."""
    monkeypatch.chdir(tmp_path)
    write_hf(tmp_path, "llama")
    shutil.copy("model.safetensors", "heads.safetensors")
    if file.startswith("heads"):
        eye = {"0.0.linear.weight": np.eye(4, dtype=np.float32), "0.0.linear.bias": np.zeros(4, np.float32)}
        tensor_file.write(tmp_path / "heads.safetensors", eye)
    if file.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).unlink(missing_ok=True)
    KINDS[kind](tmp_path / file)
    with at_once(), pytest.raises(WeightsError, match=rf"{file} is {kind}.*\.$"):
        FILES[file](tmp_path / file)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket"])
def test_no_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "model.gguf")
    with at_once(), pytest.raises(WeightsError, match=f"is {kind}"):
        resolve(str(tmp_path / "model.gguf"))
    KINDS[kind](tmp_path / "config.json")
    (tmp_path / "model.gguf").unlink()
    with at_once(), pytest.raises(WeightsError, match=f"config.json is {kind}"):
        load_hf(resolve(str(tmp_path)).path)


def test_links_are_files(tmp_path: Path) -> None:
    """The Hugging Face cache is full of them."""
    write_gguf(tmp_path / "blob", "llama")
    (tmp_path / "x.gguf").symlink_to("blob")
    load_gguf(tmp_path / "x.gguf")


def write_text(path: Path) -> None:
    text_file.write(path, "whole")


def write_tensor(path: Path) -> None:
    tensor_file.write(path, {"x": np.zeros(2, np.float32)})


WRITERS = pytest.mark.parametrize("write", [write_text, write_tensor])


@WRITERS
def test_replaces(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    write(tmp_path / "a")
    write(tmp_path / "new")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "new").read_bytes() != b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new"]


@WRITERS
def test_a_link_stays(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Also one that leads over another link, or to nothing yet."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_text("before")
    (tmp_path / "near").symlink_to("far/target")
    (tmp_path / "link").symlink_to("near")
    (tmp_path / "dangling").symlink_to("far/new")
    for link, target in (("link", "target"), ("dangling", "new")):
        write(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / "far" / target).read_bytes() not in (b"", b"before")
    assert len([*tmp_path.iterdir()]) == 4 and len([*(tmp_path / "far").iterdir()]) == 2


@WRITERS
def test_a_pipe_stays(write: Callable[[Path], None], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with at_once():
        write(tmp_path / "pipe")
        reader.join()
    write(tmp_path / "file")
    assert read == [(tmp_path / "file").read_bytes()]
    assert (tmp_path / "pipe").is_fifo()


@WRITERS
def test_a_device_stays(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null")
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device() and (tmp_path / "null").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_stdout(tmp_path: Path) -> None:
    """A result for /dev/stdout comes after what was printed before, into a pipe and into a file."""
    code = (
        "from pathlib import Path; from paradec.io import text_file; print('first', flush=True);"
        "text_file.write(Path('/dev/stdout'), 'second'); print(' third')"
    )
    with (tmp_path / "out").open("a") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert piped == (tmp_path / "out").read_text() == "first\nsecond third\n"


@WRITERS
def test_nowhere(write: Callable[[Path], None], tmp_path: Path) -> None:
    """A folder in the file's place, no folder for it, a loop of links: a sentence, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("folder", "missing/file", "loop/file"):
        with pytest.raises(ResourceError, match=rf"Cannot write .*{name}: .*\.$"):
            write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "loop"]


@WRITERS
def test_full_disk(write: Callable[[Path], None]) -> None:
    """/dev/full says what a full disk says."""
    with pytest.raises(ResourceError, match=r"Cannot write /dev/full: the disk is full\. Make room"):
        write(Path("/dev/full"))


def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("before")

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        text_file.write(tmp_path / "a", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_index_of_any_kind(tmp_path: Path) -> None:
    """The index of sharded weights: damaged, nested beyond depth, or naming what is no file beside it."""
    write_hf(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    odd = [None, 1, [], {}, {"weight_map": 1}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../x"}},
           {"weight_map": {"a": "."}}, {"weight_map": {"a": "config.json"}}, {"weight_map": {"a": "x\0y"}}]  # fmt: skip
    for content in ("[" * 100_000, "", *map(json.dumps, odd)):
        index.write_text(content)
        with at_once(), pytest.raises(ParadecError, match=r"\.$"):
            load_hf(tmp_path)
