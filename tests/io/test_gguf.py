"""GGUF files: the same model as from a hub folder, every quantization, and a sentence for every fault."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_checkpoints import FAMILIES, K, gguf_tensors, write_gguf, write_hf

from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.gguf import load_gguf, read_metadata
from paradec.io.gguf_file import open_gguf
from paradec.io.hf import load_hf
from paradec.ops.rope import Rope


def plain(model: Any) -> Any:
    """A configuration without what the two formats write differently and mean alike."""
    return dataclasses.replace(model, unit_norm=False, query_scale=model.scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_model_as_the_hub_folder(family: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", family)
    write_hf(tmp_path, family)
    ours, weights = load_gguf(tmp_path / "model.gguf")
    theirs, wanted = load_hf(tmp_path)
    assert plain(ours) == plain(theirs)
    assert not ours.unit_norm
    shift = 1.0 if theirs.unit_norm else 0.0  # Gemma's norms already hold 1 + w in a GGUF

    def same(path: Any, a: np.ndarray, b: np.ndarray) -> None:
        np.testing.assert_array_equal(a, b + np.float32(shift if "norm" in jax.tree_util.keystr(path) else 0.0))

    jax.tree_util.tree_map_with_path(same, weights, wanted)


KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_quantized(kind: Kind, tmp_path: Path) -> None:
    """Each type is within its own rounding of the weights, and exactly what the gguf package makes of it."""
    tensors = write_gguf(tmp_path / "model.gguf", "qwen3", kind)
    _, weights = load_gguf(tmp_path / "model.gguf")
    wanted = tensors["blk.1.ffn_up.weight"]
    found = weights.blocks.gate_up[1, 1].T
    stored = gguf.quants.dequantize(gguf.quants.quantize(wanted, kind), kind)
    np.testing.assert_array_equal(found, stored)
    assert np.abs(found - wanted).max() < np.abs(wanted).max() * {"4": 0.15, "5": 0.08}.get(kind.name[1], 0.01)


def test_large_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", "qwen3", Kind.Q4_0)
    whole = open_gguf(tmp_path / "model.gguf").read("token_embd.weight")
    monkeypatch.setattr("paradec.io.gguf_file.PIECE", 96)  # three blocks, which does not divide the tensor
    np.testing.assert_array_equal(open_gguf(tmp_path / "model.gguf").read("token_embd.weight"), whole)


def test_k_quants(tmp_path: Path) -> None:
    """Random bytes as super-blocks (the gguf package cannot make them): our pieces equal one call of the package."""
    rng = np.random.default_rng(0)
    for kind in (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.TQ1_0):
        size = gguf.GGML_QUANT_SIZES[kind][1]
        raw = rng.integers(0, 255, (8, 2 * size), np.uint8)
        writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
        writer.add_tensor("x", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with np.errstate(all="ignore"):
            wanted = gguf.quants.dequantize(raw, kind)
        np.testing.assert_array_equal(open_gguf(tmp_path / "k.gguf").read("x"), wanted)


def test_metadata_as_plain_values(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_float32("eps", 1e-5)
    writer.add_float64("wide", 0.1)
    writer.add_int8("small", -3)
    writer.add_uint64("large", 2**40)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve ▁")
    writer.add_array("words", ["a", "", "ç"])
    writer.add_array("numbers", [1, -2])
    writer.add_array("floats", [0.5, -1.0])
    writer.add_array("bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_metadata(tmp_path / "m.gguf")
    assert found == {
        "general.architecture": "llama", "eps": 1e-5, "wide": 0.1, "small": -3, "large": 2**40, "yes": True,
        "text": "naïve ▁", "words": ["a", "", "ç"], "numbers": [1, -2], "floats": [0.5, -1.0], "bools": [True, False],
    }  # fmt: skip
    assert found["yes"] is True and found["bools"][0] is True


# Rotary settings and the rest of the configuration.


def llama3_factors(original: int = 8192, factor: float = 8.0, low: float = 1.0, high: float = 4.0) -> np.ndarray:
    """`generate_extra_tensors` of llama.cpp's converter, for theta 5e4."""
    found = []
    for freq in 1.0 / 5e4 ** (np.arange(0, K, 2) / K):
        wavelength = 2 * np.pi / freq
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_llama3_factors_are_recognised(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", extra={"rope_freqs.weight": llama3_factors()})
    assert load_gguf(tmp_path / "m.gguf")[0].rope == Rope(5e4, "llama3", 8.0, 8192)


def test_other_factors_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", extra={"rope_freqs.weight": llama3_factors(high=3.0, original=4096)})
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight.*published"):
        load_gguf(tmp_path / "m.gguf")


def test_gemma_pattern(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "gemma3_text")
    model, _ = load_gguf(tmp_path / "m.gguf")
    assert model.sliding == (True,) * 5 + (False, True)
    assert (model.window, model.local_rope, model.rope.theta) == (8, Rope(1e4), 1e6)
    assert (model.activation, model.embed_scale) == ("gelu_tanh", 32**0.5)


def test_sliding_window_of_a_llama(tmp_path: Path) -> None:
    """A Mistral is a llama here; all its layers slide."""
    write_gguf(tmp_path / "m.gguf", "llama", keys={"attention.sliding_window": 5})
    assert load_gguf(tmp_path / "m.gguf")[0].slides().tolist() == [True, True]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "longrope"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": 3}, "blk.2."),
        ({"block_count": 1}, "no place"),
        ({"block_count": 2**30}, "layers"),
        ({"block_count": 2**31}, "above zero"),
        ({"attention.head_count_kv": 3}, "head_count_kv"),
        ({"attention.head_count_kv": [2, 1]}, "same for all layers"),
        ({"attention.value_length": 8}, "head size"),
        ({"rope.dimension_count": 8}, "rope.dimension_count"),
        ({"embedding_length": 2**30}, "shape"),
        ({"attention.layer_norm_rms_epsilon": None}, "epsilon"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon"),
        ({"expert_count": 8}, "expert_count"),
        ({"context_length": "long"}, "context_length"),
    ],
    ids=lambda x: "",
)
def test_settings_that_do_not_fit(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", keys=keys)
    with pytest.raises((WeightsError, UnknownName), match=words):
        load_gguf(tmp_path / "m.gguf")


def test_unknown_architecture_lists_known_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnknownName, match="gpt2.*gemma3, llama, qwen2, qwen3"):
        load_gguf(tmp_path / "m.gguf")


def test_dtype(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", Kind.Q8_0)
    model, weights = load_gguf(tmp_path / "m.gguf", "bfloat16")
    assert model.dtype == "bfloat16" and str(weights.blocks.qkv.dtype) == "bfloat16"
    with pytest.raises(InputError, match="float64"):
        load_gguf(tmp_path / "m.gguf", "float64")


# Damage. tests/io/test_fuzz_weights.py looks for what these do not name.


def test_a_type_that_nobody_dequantizes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", np.zeros((2, 8), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="'x'.*I32"):
        open_gguf(tmp_path / "m.gguf").read("x")


def test_truncated(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama")
    whole = (tmp_path / "m.gguf").read_bytes()
    end = len(whole) - 4 * len(gguf_tensors("llama")["output_norm.weight"])
    for size in (0, 3, 20, 100, 1000, end):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"cut\.gguf"):
            load_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("size", "content", "words"),
    [
        (2, b"\xff\xfe", "at byte 73: the value of 'k' is not valid UTF-8"),
        (9, b"ab", "at byte 71: the value of 'k' needs 9 bytes and 2 are left"),
        (2**63 + 1, b"ab", f"at byte 71: the value of 'k' needs {2**63 + 1} bytes and 2 are left"),
    ],
)
def test_a_damaged_string_of_many(size: int, content: bytes, words: str, tmp_path: Path) -> None:
    """The strings of an array are read in one loop, and damage is told of the one that has it."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    text = lambda size, content: struct.pack("<Q", size) + content
    (tmp_path / "m.gguf").write_bytes(
        head + struct.pack("<IIQ", 9, 8, 2) + text(6, "größ".encode()) + text(size, content)
    )
    with pytest.raises(WeightsError, match=re.escape(words)):
        read_metadata(tmp_path / "m.gguf")


def test_counts_are_checked_against_the_file(tmp_path: Path) -> None:
    """Neither a huge table, nor a huge string, nor a huge array makes the reader loop or allocate."""
    head = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9
    for body, words in [
        (struct.pack("<QQ", 2**62, 0), "tensors"),
        (struct.pack("<QQ", 0, 2**62), "keys"),
        (struct.pack("<QQQ", 0, 1, 2**60) + bytes(9), "a key"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 4, 2**61), "'k'"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 2**61), "'k'"),
        (struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 99) + bytes(9), "unknown type 99"),
        (struct.pack("<QQ", 0, 1) + key + nested, "unknown type 9"),
    ]:
        (tmp_path / "m.gguf").write_bytes(head + body)
        with pytest.raises(WeightsError, match=words):
            read_metadata(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(40), "does not begin"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1"),
    ],
)
def test_other_files(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read_metadata(tmp_path / "m.gguf")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(WeightsError, match=path.name):
            load_gguf(path)


def test_one_part_of_a_split_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="split"):
        load_gguf(tmp_path / "m.gguf")
