"""Metrics on disk: what stays after a kill, the configuration among them, and the writers that are optional."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from paradec.errors import InputError, ResourceError
from paradec.io import writers

CONFIG = {"plan": {"steps": 4, "clip": 1.0}, "files": ["a.txt"]}
LINE = {"loss": 2.5, "time": {"turn": 0.25}}


def run(folder: Path, first: int, last: int, config=CONFIG, names=()) -> None:
    """Steps `first` + 1 to `last`, and an evaluation after the last."""
    with writers.opened(folder, names, first, config) as made:
        for writer in made:
            for n in range(first + 1, last + 1):
                writer.line({"step": n} | LINE)
            writer.line({"step": last, "evaluation": {"loss": 0.5}})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_and_torn_ones_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n[]\n7\n{"step": 3, "loss": 1}\n{"step": 4, "lo')
    assert writers.keep_until(path, 2) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}]
    assert path.read_text() == '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n'


def test_a_killed_run_leaves_the_file_of_an_undisturbed_one(tmp_path):
    run(tmp_path / "straight", 0, 4)
    run(tmp_path / "killed", 0, 3)
    run(tmp_path / "killed", 0, 2)  # killed before a checkpoint
    (tmp_path / "killed" / "metrics.jsonl").open("a").write('{"step": 3, "lo')
    run(tmp_path / "killed", 2, 4)
    straight = lines(tmp_path / "straight")
    assert straight[0] == {"step": 0, "config": CONFIG} and [x["step"] for x in straight] == [0, 1, 2, 3, 4, 4]
    assert lines(tmp_path / "killed") == [*straight[:3], {"step": 2, "evaluation": {"loss": 0.5}}, *straight[3:]]


def test_another_configuration_is_in_the_log_from_where_it_holds(tmp_path):
    other = CONFIG | {"seed": 1}
    run(tmp_path, 0, 2)
    run(tmp_path, 2, 3, other)
    run(tmp_path, 3, 4, other)
    assert [(x["step"], x["config"]) for x in lines(tmp_path) if "config" in x] == [(0, CONFIG), (2, other)]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"Cannot write .*metrics\.jsonl"):
        run(tmp_path / "file", 0, 1)


def test_another_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    with writers.opened(tmp_path, (), 0, CONFIG) as made:
        assert made == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", writers.PACKAGES)
def test_a_package_that_is_lacking_is_named(name, monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ResourceError, match=r"pip install 'paradec\[log\]'"):
        writers.check([name])
    with pytest.raises(InputError, match="'clearml' was given"):
        writers.check(["clearml"])


def events(folder: Path) -> list:
    """What TensorBoard would read, file by file: each record is a length, its checksum, an event and a checksum."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_tensorboard_gets_every_number_and_forgets_what_a_kill_took(tmp_path):
    pytest.importorskip("tensorboardX")
    run(tmp_path, 0, 3, names=["tensorboard"])
    run(tmp_path, 2, 4, names=["tensorboard"])
    seen = events(tmp_path)
    scalars = [(v.tag, e.step, v.simple_value) for e in seen for v in e.summary.value if v.HasField("simple_value")]
    assert [s for t, s, _ in scalars if t == "loss"] == [1, 2, 3, 3, 4]
    assert {t for t, _, _ in scalars} == {"loss", "time/turn", "evaluation/loss"}
    np.testing.assert_allclose([x for t, _, x in scalars if t == "time/turn"], 0.25)
    assert [e.step for e in seen if e.session_log.status == e.session_log.START] == [1, 3]  # later ones are hidden
    text = [v.tensor.string_val[0].decode() for e in seen for v in e.summary.value if v.tag.startswith("config")]
    assert json.loads(text[0].strip("`\n")) == CONFIG


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    """Two starts are one run there; without a network it is written to files."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, 0, 2, names=["wandb"])
    run(tmp_path, 2, 4, names=["wandb"])
    kept = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2 and len({path.stem for path in kept}) == 1
    whole = b"".join(path.read_bytes() for path in kept)
    assert all(name in whole for name in (b"evaluation/loss", b"time/turn", b"clip"))
