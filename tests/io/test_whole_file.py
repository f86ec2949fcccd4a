"""A file that is written whole or not at all, and what is known before it is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from paradec.errors import InputError, ResourceError
from paradec.io.whole_file import check, check_all, whole


def test_the_name_appears_when_the_content_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole(path) as half:
        half.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), ValueError()])
def test_what_was_there_stays(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ResourceError if isinstance(error, OSError) else type(error)), whole(path) as half:
        half.write_text("ne")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    with whole(tmp_path / "link.json") as half:
        half.write_text("new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    check(tmp_path / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    with whole(tmp_path / "pipe") as half:
        half.write_text("new")
    reader.join(10)
    assert heard == ["new"] and (tmp_path / "pipe").is_fifo()
    check(Path("/dev/null"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is a folder"),
        (".", "is a folder"),
        ("none/a.json", "There is no folder none"),
        ("file/a.json", "There is no folder file"),
        ("n" * 5000, "cannot be written: File name too long"),
        ("/proc/a.json", "cannot be written"),
        ("a\0.json", "zero byte"),
        ("a.docx", "must end in .json or .png"),
        ("a", "must end in .json or .png"),
    ],
)
def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(InputError, match=says):
        check(Path(name), (".json", ".png") if "must end" in says else ())
    assert os.listdir(tmp_path) == ["file"]


def test_a_check_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.png").write_text("old")
    check_all({"--png": (Path("old.png"), (".png",)), "--json": (Path("new.json"), ()), "--html": (None, ())})
    assert os.listdir(tmp_path) == ["old.png"] and Path("old.png").read_text() == "old"
    with pytest.raises(InputError, match="--json and --html name one file"):
        check_all({"--json": (Path("a"), ()), "--html": (tmp_path / "a", ())})
