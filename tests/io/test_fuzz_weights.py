"""Damaged weight files: every one either loads or is a `ParadecError`. No other exception, no hang, no vast allocation.

Bits flipped inside tensor data cannot be noticed without a digest, except where they make a number that is not finite.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import FAMILIES, write_gguf, write_hf

from paradec.errors import ParadecError
from paradec.io.gguf import load_gguf, read_metadata
from paradec.io.hf import load_hf

# A deadline, so that a loop over a damaged count fails the test instead of stopping it.
fuzz = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.too_slow], database=None)


@st.composite
def damage(draw: st.DrawFn, head: int) -> Callable[[bytes], bytes]:
    """A cut, flipped bits, or overwritten bytes; mostly within the first `head` bytes, where the structure is."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "flip", "write"]))
    where = draw(st.lists(st.integers(0, head - 1) | st.integers(0, 2**20), min_size=1, max_size=3))
    bit, patch = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8))

    def apply(data: bytes) -> bytes:
        if kind == "cut":
            return data[: where[0] % len(data)]
        changed = bytearray(data)
        for at in where:
            at %= len(data)
            if kind == "flip":
                changed[at] ^= 1 << bit
            else:
                changed[at : at + len(patch)] = patch[: len(data) - at]
        return bytes(changed)

    return apply


def survives(load: Callable[[Any], Any], path: Path) -> None:
    try:
        load(path)
    except ParadecError as error:
        assert str(error).endswith((".", "?")), f"not a sentence: {error}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    write_hf(path, "qwen3")
    return path


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_hub_folder(file: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = (folder / file).read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little") if file == "model.safetensors" else len(whole)
    work = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder, work, dirs_exist_ok=True)

    @fuzz
    @given(damage(head))
    def check(change: Callable[[bytes], bytes]) -> None:
        (work / file).write_bytes(change(whole))
        survives(load_hf, work)

    check()


@st.composite
def json_values(draw: st.DrawFn) -> Any:
    """Any JSON value, and often one that means something somewhere else in a config.json."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
    known = st.sampled_from(["rope_type", "type", "factor", "linear", "yarn", "llama3", "full_attention", "rope_theta"])
    keys = known | st.text(max_size=4)

    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)

    return draw(st.recursive(plain | known, nest, max_leaves=8))


@pytest.mark.parametrize("family", ["mistral", *FAMILIES])
def test_any_value_in_config(family: str, tmp_path: Path) -> None:
    """Any JSON value under any key."""
    write_hf(tmp_path, family)
    whole = json.loads((tmp_path / "config.json").read_text())
    more = ["layer_types", "rope_parameters", "rope_scaling", "sliding_window", "hidden_act", "torch_dtype"]
    keys = [*whole, *more, "text_config", "attention_bias", "use_sliding_window", "max_window_layers"]

    @fuzz
    @given(st.dictionaries(st.sampled_from(keys), json_values(), min_size=1, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        (tmp_path / "config.json").write_text(json.dumps(whole | changes))
        survives(load_hf, tmp_path)

    check()


def head_of(path: Path) -> int:
    """Where a GGUF file's tensor data begins."""
    return gguf.GGUFReader(path).data_offset


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q8_0"])
def test_gguf(family: str, kind: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", family, gguf.GGMLQuantizationType[kind])
    whole, head = (tmp_path / "whole.gguf").read_bytes(), head_of(tmp_path / "whole.gguf")

    @fuzz
    @given(damage(head))
    def check(change: Callable[[bytes], bytes]) -> None:
        (tmp_path / "damaged.gguf").write_bytes(change(whole))
        survives(load_gguf, tmp_path / "damaged.gguf")

    check()


@fuzz
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(content: bytes, magic: bool) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "any.gguf"
        path.write_bytes((b"GGUF\x03\0\0\0" if magic else b"") + content)
        survives(read_metadata, path)
        (Path(work) / "config.json").write_text('{"model_type": "llama"}')
        path.rename(Path(work) / "model.safetensors")
        survives(load_hf, Path(work))
