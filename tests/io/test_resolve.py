"""Names to files: local paths, presets, the hub and its cache, in that order, and what each failure says."""

from __future__ import annotations

import errno
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from paradec.errors import ResourceError, UnknownName, WeightsError
from paradec.io import wheels
from paradec.io.resolve import PRESETS, Resolved, resolve
from tests.io.fake_pip import Place, make_place
from tests.io.real_models import real_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


def hub_raises(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
    def snapshot_download(*args: Any, local_files_only: bool = False, **options: Any) -> str:
        raise hub_errors.LocalEntryNotFoundError("not cached") if local_files_only else error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


# --- local files


def test_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(file) == Resolved("gguf", file, str(file))
    assert resolve("model.gguf") == Resolved("gguf", Path("model.gguf"), "model.gguf")
    assert resolve(tmp_path) == Resolved("gguf", file, str(tmp_path)), "a folder with one GGUF file"
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == Resolved("hf", tmp_path, str(tmp_path))
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
    with pytest.raises(
        UnknownName, match=r"gemma3-270m, lists, smollm2-135m.*\.gguf file, or a hub id such as org/name"
    ):
        resolve(name)


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
    assert resolve("org/name") == Resolved("hf", folder, "org/name")
    assert resolve(f"org/name@{'0' * 40}").path == folder
    file = cached_repository(place, "org/quantized", "small.gguf") / "small.gguf"
    assert resolve("org/quantized/small.gguf") == Resolved("gguf", file, "org/quantized/small.gguf")
    with pytest.raises(WeightsError, match="name the file: org/quantized/FILE.gguf"):
        resolve("org/quantized")


def test_preset_falls_back_to_the_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached_repository(place, "org/tiny", "config.json")
    monkeypatch.setenv("FAKE_PIP", "offline")
    with pytest.warns(UserWarning, match="full-precision weights of org/tiny"):
        assert resolve("tiny", quiet=True) == Resolved("hf", folder, "tiny")
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
        if isinstance(preset.model, Path):
            assert preset.license and resolve(name) == Resolved("hf", preset.model, name)
            continue
        hashes = [preset.model.sha256, *(wheel.sha256 for wheel in preset.model.wheels)]
        assert all(len(h) == 64 for h in hashes) and len(set(hashes)) == len(hashes), name
        assert all("==" in wheel.requirement for wheel in preset.model.wheels) and preset.license and preset.hub


def test_smollm2_from_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_model("smollm2-135m")
    assert path.stat().st_size == PRESETS["smollm2-135m"].model.size
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == PRESETS["smollm2-135m"].model.sha256
    monkeypatch.setattr(wheels, "_sha256", lambda *_: pytest.fail("the stamp spares the hash"))
    assert resolve("smollm2-135m").path == path
