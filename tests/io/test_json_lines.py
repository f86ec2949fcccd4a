"""Files of JSON lines as people leave them: a bad line is named, and nothing but a ParadecError comes out."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradec.data import chats
from paradec.errors import InputError, ParadecError
from paradec.io import json_lines
from paradec.prompts import read_prompts

CASES = int(os.environ.get("PARADEC_CASES", "100"))
ROOM = 2 << 20  # KiB that a reader may take beyond what was there
GOOD = {
    "chats": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}',
    "prompts": '{"prompt": "Hi"}',
}


def read(kind: str, path: Path) -> tuple[list[Any], list[str]]:
    """What a reader finds, and what it says of bad lines."""
    said: list[str] = []
    return (chats.read(path) if kind == "chats" else read_prompts(path, said.append)), said


ODD = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "nested value": '{"messages": ' + '{"a":' * 900 + "1" + "}" * 900 + ', "prompt": ' + "[" * 900 + "]" * 900 + "}",
    "digits": '{"prompt": 1, "messages": ' + "7" * 6000 + "}",
    "huge": '{"prompt": 1, "messages": "' + "x" * (1 << 20) + '"}',
    "surrogate": r'{"prompt": "a\ud800", "messages": [{"role": "assistant", "content": "a\ud800"}]}',
    "nan": '{"prompt": NaN, "messages": [{"role": NaN, "content": -Infinity}]}',
    "types": '{"prompt": {"a": 1}, "messages": {"role": "user"}}',
    "roles": '{"turns": [[1]], "messages": [{"role": {"a": 1}, "content": "x"}]}',
    "mark": '\ufeff{"prompt": "x"}',
    "no": "null",
    "number": "1e999",
    "latin": b'{"prompt": "gr\xfc\xdfe"}',
    "nul": b"{\0}",
    "cut": '{"messages": [',
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_line_is_named(kind: str, name: str, tmp_path: Path) -> None:
    path, odd = tmp_path / "lines.jsonl", ODD[name]
    good = GOOD[kind].encode()
    path.write_bytes(good + b"\n\r\n" + (odd.encode() if isinstance(odd, str) else odd) + b"\n" + good)
    if kind == "chats":
        with pytest.raises(InputError, match=r"^Line 3 of .*lines\.jsonl: ") as error:
            chats.read(path)
        said = [str(error.value)]
    else:
        found, said = read(kind, path)
        assert found == ["Hi", "Hi"] and "lines.jsonl, line 3 is skipped: " in said[0]
    assert len(said) == 1 and len(said[0]) < 300 + len(str(path)) and said[0].endswith(".")


@pytest.mark.parametrize("kind", GOOD)
def test_what_json_allows_is_read(kind: str, tmp_path: Path) -> None:
    """Separators that are not line feeds may stand inside strings, a byte-order mark before everything."""
    strange = "a\u2028b\u2029c\x85d\\ud83d\\ude00"
    line = GOOD[kind].replace("Hi", strange)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n  \t\n{line}".encode())
    found, said = read(kind, path)
    texts = [c.messages[0]["content"] for c in found] if kind == "chats" else found
    assert texts == ["a\u2028b\u2029c\x85d😀"] * 2 and not said


@pytest.mark.parametrize("kind", GOOD)
def test_files_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for path, words in ((tmp_path / "empty", "holds no"), (tmp_path, "Cannot read"), (tmp_path / "no", "no file")):
        with pytest.raises(InputError, match=words):
            read(kind, path)
    with pytest.raises(InputError, match="Cannot read"):
        read(kind, Path("nul\0"))
    endless = tmp_path / "endless"
    endless.write_bytes(b" " * (json_lines.LONGEST + 9))
    with pytest.raises(InputError, match="a line of more than 32 MiB"):
        read(kind, endless)


def test_as_many_prompts_as_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{')
    assert read_prompts(path, pytest.fail, 2) == ["a", "b"] and read_prompts(str(path), pytest.fail, 1) == ["a"]
    with pytest.raises(InputError, match="At least 1 prompt"):
        read_prompts(path, pytest.fail, 0)


words = st.sampled_from(["messages", "role", "content", "user", "assistant", "prompt", "question", "turns", "Hi", ""])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(st.fixed_dictionaries({}, optional={"role": words | values, "content": words | values}), max_size=4)
objects = st.fixed_dictionaries(
    {}, optional={"messages": messages | values, "prompt": values, "question": words, "turns": values}
)
good = st.sampled_from([*GOOD.values(), *(x if isinstance(x, str) else x.decode("latin-1") for x in ODD.values())])
lines = (objects | values).map(lambda value: json.dumps(value, ensure_ascii=False)) | good | st.text(max_size=40)
files = st.lists(
    lines.map(lambda line: line.encode("utf-8", "surrogatepass")) | st.binary(max_size=40) | good.map(str.encode),
    max_size=5,
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r", "\u2028".encode(), b"\n\n"])


def check_any_file(cases: int, path: Path) -> None:
    @settings(
        max_examples=cases,
        deadline=5000,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(files, ends, st.integers(0, 200), st.booleans())
    def check(parts: list[bytes], end: bytes, cut: int, mark: bool) -> None:
        whole = (b"\xef\xbb\xbf" if mark else b"") + end.join(parts)
        path.write_bytes(whole[: len(whole) - cut] if cut < 50 else whole)
        for kind in GOOD:
            try:
                found, said = read(kind, path)
            except ParadecError as error:
                assert str(error).endswith("."), error
                assert str(path) in str(error)
            else:
                assert found and all(sentence.startswith(f"{path}, line ") for sentence in said)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM


def test_any_file(tmp_path: Path) -> None:
    check_any_file(CASES, tmp_path / "any.jsonl")


def test_thousands_of_files(tmp_path: Path) -> None:
    check_any_file(25 * CASES, tmp_path / "any.jsonl")
