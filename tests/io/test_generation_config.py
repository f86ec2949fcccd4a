"""What a model's own files ask of a decode: its ends, and how it wants to be sampled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paradec.errors import WeightsError
from paradec.io.generation_config import read_defaults, read_ends
from paradec.io.resolve import PRESETS
from paradec.lm import Request
from paradec.loading import load


def write(folder: Path, name: str, **values: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(values))


def test_sampling_settings(tmp_path: Path) -> None:
    """The file's numbers, transformers' own where it is silent, and nothing where it does not sample."""
    assert read_defaults(tmp_path) == {}
    write(tmp_path, "generation_config", temperature=0.9, top_p=0.6)
    assert read_defaults(tmp_path) == {}, "greedy, as Llama 2's file asks for in effect"
    write(tmp_path, "generation_config", do_sample=True, temperature=0.6, top_p=0.9, max_length=4096)
    assert read_defaults(tmp_path) == {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.0}
    write(tmp_path, "generation_config", do_sample=False, repetition_penalty=1.1, temperature=0.5)
    assert read_defaults(tmp_path) == {"repetition": 1.1}
    write(tmp_path, "generation_config", do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    found = read_defaults(tmp_path)
    assert found == {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "repetition": 1.05}
    Request(**found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", "yes"), ("do_sample", 1), ("temperature", -1), ("temperature", "warm"), ("temperature", True),
        ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", [1]), ("top_k", -1),
        ("top_k", 0.5), ("top_k", 10**30), ("top_p", 0), ("top_p", 1.5), ("min_p", -0.1), ("min_p", {}),
        ("repetition_penalty", 0), ("repetition_penalty", "1" * 5000), ("temperature", 10**400),
    ],
)  # fmt: skip
def test_odd_sampling_settings(key: str, value: Any, tmp_path: Path) -> None:
    """Refused whether or not the model samples: the file is not what it should be."""
    write(tmp_path, "generation_config", **{key: value})
    with pytest.raises(WeightsError, match=r"generation_config.json") as caught:
        read_defaults(tmp_path)
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [True, "2", -1, 48, 1.0, [1, 48], [[1]], {}, 10**30])
@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_odd_ends(file: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, "config", vocab_size=48)
    write(tmp_path, file, vocab_size=48, eos_token_id=value)
    with pytest.raises(WeightsError, match=rf"{file}.json has eos_token_id .* from 0 to 47"):
        read_ends(tmp_path, 40)


def test_ends(tmp_path: Path) -> None:
    """generation_config.json before config.json, and that before the language model inside it."""
    assert read_ends(tmp_path, 40) == ()
    write(tmp_path, "config", text_config={"eos_token_id": 1, "vocab_size": 48})
    assert read_ends(tmp_path, 40) == (1,)
    write(tmp_path, "config", text_config={"eos_token_id": 1, "vocab_size": 48}, eos_token_id=[47, 2])
    assert read_ends(tmp_path, 40) == (47, 2)
    write(tmp_path, "generation_config", eos_token_id=None)
    assert read_ends(tmp_path, 40) == (47, 2)
    write(tmp_path, "generation_config", eos_token_id=0)
    assert read_ends(tmp_path, 40) == (0,)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 100_000, f'{{"eos_token_id": 1{"0" * 6000}}}', "", "[1]", "nan", '"x"']
)
def test_damaged(content: str, tmp_path: Path) -> None:
    """Nested beyond Python's depth, numbers beyond its digits, and no object at all."""
    (tmp_path / "generation_config.json").write_text(content)
    for read in (read_defaults, lambda folder: read_ends(folder, 40)):
        with pytest.raises(WeightsError, match=r"generation_config.json .*\.$"):
            read(tmp_path)


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(WeightsError, match="cannot be read as text"):
        read_defaults(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(WeightsError, match="is a folder"):
        read_defaults(tmp_path)


def test_loaded(tmp_path: Path) -> None:
    """What `load` returns carries them, and a damaged file stops it with a sentence."""
    lists = PRESETS["lists"].model
    assert isinstance(lists, Path)
    folder = Path(shutil.copytree(lists, tmp_path / "lists"))
    assert load(str(folder), progress=False).defaults == {}
    write(folder, "generation_config", do_sample=True, temperature=0.5, top_k=0)
    assert load(str(folder), progress=False).defaults == {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    write(folder, "generation_config", do_sample=True, temperature="warm")
    with pytest.raises(WeightsError, match="temperature = 'warm'"):
        load(str(folder), progress=False)
