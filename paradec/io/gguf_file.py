"""The GGUF container: metadata and a table of tensors, read from a memory map with every length checked first.

The `gguf` package's own reader trusts the counts it finds, so a damaged file makes it loop, allocate without bound or
fail somewhere deep inside numpy. Here each field is checked against the bytes that are left, so reading costs at most
a pass over the file, and every fault is a `WeightsError` that says where it lies.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from paradec.errors import WeightsError
from paradec.io.regular_file import check_regular

# Value types of the format, by number: struct code of the scalar ones; 8 is a string and 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMS, MAX_NESTING = 4, 4
PIECE = 1 << 18  # weights dequantized at a time


class TensorInfo(NamedTuple):
    """One tensor of a GGUF file: its shape (slowest axis first, as in numpy), storage type, and place in the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int  # bytes


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """An opened file. `read(name)` dequantizes one tensor; nothing else of the tensor data is touched."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32 in its numpy shape. Raises `WeightsError` for a type that cannot be dequantized."""
        info = self.tensors[name]
        raw = np.memmap(self.path, np.uint8, "r", info.offset, info.size)
        out = np.empty(math.prod(info.shape), np.float32)
        block, block_bytes = GGML_QUANT_SIZES[info.kind]
        step = max(1, PIECE // block)
        try:
            with np.errstate(all="ignore"):  # a damaged scale is reported as a non-finite weight, not as a warning
                for i in range(0, out.size // block, step):  # blocks are independent; large pieces are 5 times faster
                    piece = raw[i * block_bytes : (i + step) * block_bytes]
                    out[i * block : (i + step) * block] = dequantize(piece[None], info.kind)[0]
        except NotImplementedError:
            raise WeightsError(
                f"Tensor {name!r} of {self.path} is stored as {info.kind.name}, which cannot be dequantized. "
                "Use a file of another quantization, such as Q4_K_M or Q8_0."
            ) from None
        return out.reshape(info.shape)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Every key of a GGUF file as plain Python values: int, float, bool, str, and lists of them (arrays).

    Only the head of the file is read, so it is quick for files of any size. Raises `WeightsError` when the file is
    missing, is not GGUF, or is damaged.
    """
    return open_gguf(path).metadata


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the head of a GGUF file: its metadata, and that every tensor lies inside the file.

    Raises `WeightsError` for a missing, truncated or damaged file, an old version, or the other byte order.
    """
    path = Path(path)
    try:
        check_regular(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(path, data)
            tensor_count, key_count = _header(cursor)
            metadata = _metadata(cursor, key_count)
            return GGUFFile(path, metadata, _tensors(cursor, tensor_count, metadata.get("general.alignment", 32)))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise WeightsError(f"{path} cannot be read as a GGUF file: {error}.") from error


@dataclasses.dataclass
class _Cursor:
    """A place in the file. Everything read passes through `take`, the one check against its end."""

    path: Path
    data: mmap.mmap
    at: int = 0

    def fail(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.path} is damaged at byte {self.at}: {what}. Download it again.")

    def expect(self, size: int, what: str) -> None:
        left = len(self.data) - self.at
        if size > left:
            self.fail(f"{what} needs {size} bytes and {left} are left")

    def take(self, size: int, what: str) -> bytes:
        self.expect(size, what)
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, code: str, what: str) -> Any:
        if code == "?":  # any non-zero byte is true; a bool that is neither 0 nor 1 is damage
            value = self.take(1, what)[0]
            return bool(value) if value < 2 else self.fail(f"{what} should be a truth value and is {value}")
        value = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
        return float(str(np.float32(value))) if code == "f" else value  # the shortest such number: 1e-5 stays 1e-5

    def string(self, what: str) -> str:
        raw = self.take(self.scalar("Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def strings(self, count: int, what: str) -> list[str]:
        """So many times `string`, in one loop: a vocabulary and its merges are hundreds of thousands."""
        data, end, size, found = self.data, len(self.data), struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            try:
                begin = self.at + 8
                stop = begin + size(data, self.at)[0]
                found.append(data[begin:stop].decode())
            except (struct.error, UnicodeDecodeError, OverflowError):
                stop = end + 1
            if stop > end:
                return [self.string(what)]  # raises, and says what is wrong
            self.at = stop
        return found

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY or depth == MAX_NESTING:
            self.fail(f"{what} has the unknown type {kind}")
        item, count = self.scalar("I", what), self.scalar("Q", what)
        if item in SCALARS and item != 7:
            code = "<" + SCALARS[item]
            return np.frombuffer(self.take(count * struct.calcsize(code), what), code).tolist()
        self.expect(count * (1 if item == 7 else 8), what)  # a string or an array is at least its own length
        if item == STRING:
            return self.strings(count, what)
        return [self.value(item, what, depth + 1) for _ in range(count)]


def _header(cursor: _Cursor) -> tuple[int, int]:
    if cursor.take(4, "the magic number") != b"GGUF":
        raise WeightsError(f"{cursor.path} is not a GGUF file: it does not begin with the letters GGUF.")
    version = cursor.scalar("I", "the version")
    if version & 0xFFFF == 0:
        raise WeightsError(f"{cursor.path} is a big-endian GGUF file. Use the little-endian one.")
    if version not in (2, 3):
        raise WeightsError(f"{cursor.path} is GGUF version {version}; paradec reads versions 2 and 3. Convert it anew.")
    return cursor.scalar("Q", "the tensor count"), cursor.scalar("Q", "the key count")


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    cursor.expect(count * 13, f"a table of {count} keys")  # the smallest key: an empty name, a type, one byte
    found: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a key")
        if key in found:
            cursor.fail(f"the key {key!r} appears twice")
        found[key] = cursor.value(cursor.scalar("I", f"the type of {key!r}"), f"the value of {key!r}")
    return found


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, TensorInfo]:
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(f"the alignment {alignment!r} is not a power of two")
    cursor.expect(count * 24, f"a table of {count} tensors")
    table: dict[str, TensorInfo] = {}
    for name, info in _entries(cursor, count):
        if name in table:
            cursor.fail(f"the tensor {name!r} appears twice")
        table[name] = info
    align = functools.partial(_round_up, alignment)
    base = align(cursor.at)
    expected, found = 0, {}
    for name, info in table.items():
        if info.offset != expected:  # tensors follow each other without gaps, so a damaged offset cannot go unseen
            cursor.fail(f"tensor {name!r} should begin at offset {expected} and is listed at {info.offset}")
        if (end := base + info.offset + info.size) > len(cursor.data):
            raise WeightsError(
                f"{cursor.path} is cut off: tensor {name!r} ends at byte {end} and the file has {len(cursor.data)}. "
                "Download it again."
            )
        found[name] = info._replace(offset=base + info.offset)
        expected = align(info.offset + info.size)
    return found


def _entries(cursor: _Cursor, count: int) -> Iterator[tuple[str, TensorInfo]]:
    """The table of tensors, with offsets that count from the first tensor's."""
    for _ in range(count):
        name = cursor.string("a tensor's name")
        dims = cursor.scalar("I", f"the rank of {name!r}")
        if not 1 <= dims <= MAX_DIMS:
            cursor.fail(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(cursor.scalar("Q", f"the shape of {name!r}") for _ in range(dims))[::-1]
        number = cursor.scalar("I", f"the type of {name!r}")
        try:
            kind = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            cursor.fail(f"tensor {name!r} has the unknown type {number}")
        if 0 in shape or shape[-1] % block:
            cursor.fail(f"tensor {name!r} of shape {shape} cannot be stored as {kind.name}, in blocks of {block}")
        offset = cursor.scalar("Q", f"the offset of {name!r}")
        yield name, TensorInfo(shape, kind, offset, math.prod(shape) // block * size)


def _round_up(alignment: int, value: int) -> int:
    return -(-value // alignment) * alignment
