"""Damaged weight files: every one either loads or is a `ParadecError`. No other exception, no hang, no vast allocation.

Bits flipped inside tensor data cannot be noticed without a digest, except where they make a number that is not finite.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_diffusion
import tiny_moe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import FAMILIES, write_gguf, write_hf

from paradec.errors import ParadecError
from paradec.io.diffusion_config import FAMILIES as DIFFUSION
from paradec.io.diffusion_config import is_diffusion, read_diffusion
from paradec.io.generation_config import read_defaults, read_ends
from paradec.io.gguf import load_gguf, read_metadata
from paradec.io.hf import load_hf
from paradec.io.hf_config import read_config
from paradec.lm import Request

pytestmark = pytest.mark.usefixtures("no_vast_allocation")

# A deadline, so that a loop over a damaged count fails the test instead of stopping it.
fuzz = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.too_slow], database=None)
CASES = pytest.mark.parametrize("cases", [20, 200])


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


def survives(load: Callable[[Any], Any], path: Any) -> None:
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
    """Any JSON value, and often one that means something somewhere else in a configuration."""
    numbers = st.sampled_from([0, -1, 1, 2, 2**31, 10**400, 1e300, 5e-324, 1e-30, math.nan, math.inf, -math.inf, "2"])
    plain = st.none() | st.booleans() | st.integers() | st.floats() | numbers | st.text(max_size=8)
    known = st.sampled_from(
        "rope_type type factor linear yarn llama3 default full_attention sliding_attention rope_theta truncate mscale "
        "mscale_all_dim beta_fast low_freq_factor high_freq_factor original_max_position_embeddings".split()
    )
    keys = known | st.text(max_size=4)

    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)

    return draw(st.recursive(plain | known, nest, max_leaves=8))


MORE = (
    "layer_types rope_parameters rope_scaling rope_theta rope_local_base_freq sliding_window use_sliding_window dtype "
    "max_window_layers sliding_window_pattern hidden_act hidden_activation torch_dtype text_config attention_bias "
    "mlp_bias original_max_position_embeddings partial_rotary_factor quantization_config per_layer_config model_type "
    "tie_word_embeddings eos_token_id num_experts"
).split()


@CASES
@pytest.mark.parametrize("family", ["mistral", *FAMILIES])
def test_any_value_in_config(family: str, cases: int, tmp_path: Path) -> None:
    """Any JSON value under any key; what loads has frequencies that are numbers."""
    write_hf(tmp_path, family)
    whole = json.loads((tmp_path / "config.json").read_text())

    def load(folder: Path) -> None:
        model, _ = load_hf(folder)
        assert np.isfinite(model.rope.frequencies(model.head_dim)[0]).all()

    @settings(fuzz, max_examples=cases)
    @given(st.dictionaries(st.sampled_from([*whole, *MORE]), json_values(), min_size=1, max_size=3), st.booleans())
    def check(changes: dict[str, Any], inside: bool) -> None:
        written = whole | changes
        if inside:  # the language model of a multimodal one
            written = {"model_type": "gemma3", "text_config": written} | {k: v for k, v in changes.items() if k in MORE}
        (tmp_path / "config.json").write_text(json.dumps(written))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            survives(load, tmp_path)

    check()


@CASES
@pytest.mark.parametrize("family", DIFFUSION)
def test_any_value_in_a_diffusion_config(family: str, cases: int) -> None:
    """Of every diffusion family, any JSON value under any key."""
    sizes = dict(model_length=64, hidden_dim=32, cond_dim=8, n_blocks=2, n_heads=2)
    whole = (tiny_diffusion.CONFIGS | tiny_moe.CONFIGS).get(family, sizes) | {"model_type": family}
    whole |= {"block_size": 4} if family == "bd3lm" else {}
    assert is_diffusion(whole)
    read_diffusion(whole)

    def read(values: Any) -> Any:
        return read_diffusion(values) if is_diffusion(values) else read_config(values)

    @settings(fuzz, max_examples=cases // 2)
    @given(st.dictionaries(st.sampled_from([*whole, *MORE]), json_values(), min_size=1, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            survives(read, json.loads(json.dumps(whole | changes)))

    check()


ASKED = (
    "do_sample temperature top_k top_p min_p repetition_penalty eos_token_id pad_token_id num_beams max_length "
    "typical_p suppress_tokens"
).split()


@CASES
def test_any_value_in_generation_config(cases: int, tmp_path: Path) -> None:
    """Any JSON value under any key, and any text at all: settings that a `Request` takes, or a sentence."""

    def read(folder: Path) -> None:
        read_ends(folder, 48)
        Request(**read_defaults(folder))

    @settings(fuzz, max_examples=2 * cases)
    @given(st.dictionaries(st.sampled_from(ASKED), json_values(), max_size=4).map(json.dumps) | st.text(max_size=40))
    def check(content: str) -> None:
        (tmp_path / "generation_config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
        survives(read, tmp_path)

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
