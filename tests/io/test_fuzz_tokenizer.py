"""Damaged tokenizers: each reads, or is a `ParadecError`; what reads encodes, decodes and renders, or is one too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradec.errors import ParadecError
from paradec.io.tokenizer import Tokenizer
from tests.io.small_vocab import byte_level, sentencepiece
from tests.io.tiny_tokenizers import FLAVOURS, write

pytestmark = pytest.mark.usefixtures("no_vast_allocation")

HI = [{"role": "user", "content": "Hi"}]
ODD = (None, True, -1, 0, 300, 10**40, 0.5, "", "the", "\ud800", [], [1], ["x"], {}, {"a": 1}, {"1": 2})
quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
CASES = [30, 1000]
FILES = {
    "tokenizer_config": [
        *("tokenizer_class", "bos_token", "eos_token", "unk_token", "pad_token", "image_token", "added_tokens_decoder"),
        *("extra_special_tokens", "additional_special_tokens", "chat_template", "legacy", "add_prefix_space"),
    ],
    "special_tokens_map": ["bos_token", "eos_token", "pad_token", "additional_special_tokens"],
    "added_tokens": ["<a>", "the", ""],
    "chat_template": ["chat_template"],
    "config": ["model_type", "eos_token_id"],
    "generation_config": ["eos_token_id"],
}


def usable(read: Any, source: Any) -> None:
    try:
        found = read(source)
        found.decode(found.encode("the <|im_end|>\n"), special=True)
        found.encode_with_offsets("the <|im_end|>")
        found.decode([*range(0, 300, 7)])
        if found.chat_template is not None:
            found.chat(HI)
    except ParadecError as error:
        assert str(error).endswith("."), f"not a sentence: {error}"
        str(error).encode("utf-8", "surrogateescape")


@st.composite
def values(draw: st.DrawFn) -> Any:
    """A JSON value, often one that means something here."""
    texts = st.sampled_from(["<a>", "the", "Ġ", "default", "LlamaTokenizer", "mdlm", "\ud800", "{{ 1/0 }}", ""])
    plain = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.text(max_size=5)
    token = st.fixed_dictionaries(
        {"content": texts | plain},
        optional={flag: st.booleans() | plain for flag in ("special", "lstrip", "normalized", "__type", "id")},
    )
    keys = st.sampled_from(["name", "template", "content", "0", "270", "-1", "99999999999999999999", "x"])

    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)

    return draw(st.recursive(plain | token, nest, max_leaves=6))


@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_value(file: str, tmp_path: Path) -> None:
    core, files = FLAVOURS["Llama" if file == "config" else "bytes, the older files"]()
    write(tmp_path, core, files)
    for key in FILES[file]:
        for value in ODD:
            (tmp_path / f"{file}.json").write_text(json.dumps(files.get(file, {}) | {key: value}))
            usable(Tokenizer.from_folder, tmp_path)


@pytest.mark.parametrize("file", ["tokenizer", *FILES])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"a":' * 10**5,
        b"[" * 10**5,
        b'{"model": ' + b"[" * 10**5 + b"]" * 10**5,
    ],
)
def test_damaged_files(file: str, content: bytes, tmp_path: Path) -> None:
    write(tmp_path, *FLAVOURS["bytes, the older files"]())
    (tmp_path / f"{file}.json").write_bytes(content)
    usable(Tokenizer.from_folder, tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{% if %}", b"{{ 1/0 }}", b""])
def test_damaged_template_file(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, *FLAVOURS["bytes"]())
    (tmp_path / "chat_template.jinja").write_bytes(content)
    usable(Tokenizer.from_folder, tmp_path)


@pytest.mark.parametrize("cases", CASES)
def test_any_value_in_the_files_beside_tokenizer_json(cases: int, tmp_path: Path) -> None:
    keys = [(file, key) for file, names in FILES.items() for key in names]
    made = {name: FLAVOURS[name]() for name in ("bytes, the older files", "Llama", "unigram", "words")}

    def check(name: str, changes: dict[tuple[str, str], Any]) -> None:
        core, files = made[name]
        files = {file: dict(content) for file, content in files.items()}
        for (file, key), value in changes.items():
            files.setdefault(file, {})[key] = value
        for left in tmp_path.iterdir():
            left.unlink()
        usable(Tokenizer.from_folder, write(tmp_path, core, files))

    some = st.dictionaries(st.sampled_from(keys), values(), min_size=1, max_size=3)
    fuzz = settings(max_examples=cases, deadline=5000, database=None, suppress_health_check=quiet)
    fuzz(given(st.sampled_from(list(made)), some)(check))()


@pytest.mark.parametrize("cases", CASES)
def test_any_value_in_tokenizer_json(cases: int, tmp_path: Path) -> None:
    """One value anywhere in the file becomes another."""
    whole = {name: json.loads(FLAVOURS[name]()[0].to_str()) for name in ("Llama", "bytes", "unigram", "wordpiece")}

    def check(name: str, path: list[int], value: Any) -> None:
        changed = place = json.loads(json.dumps(whole[name]))
        for step in path:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = keys[step % len(keys)]
            if not isinstance(place[key], dict | list) or step == path[-1]:
                place[key] = value
                break
            place = place[key]
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        usable(Tokenizer.from_folder, tmp_path)

    paths = st.lists(st.integers(0, 300), min_size=1, max_size=6)
    fuzz = settings(max_examples=cases, deadline=5000, database=None, suppress_health_check=quiet)
    fuzz(given(st.sampled_from(list(whole)), paths, values())(check))()


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_every_kind_of_value_in_gguf_metadata(make: Any) -> None:
    whole = make()
    more = ("eot_token_id", "add_bos_token", "add_eos_token", "add_space_prefix", "merges", "scores", "pre")
    for key in {*whole, *(f"tokenizer.ggml.{name}" for name in more)}:
        for value in (*ODD, ["x"] * 300, [0.5] * 300, [b"x"]):
            usable(Tokenizer.from_gguf, whole | {key: value})


def test_templates_by_odd_names(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(FLAVOURS["bytes"]()[0].to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": {"content": None}}]}))
    usable(Tokenizer.from_folder, tmp_path)
