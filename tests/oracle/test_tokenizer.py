"""The tokenizer next to `transformers`, which reads the same folder or the same GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from paradec.io.gguf import read_metadata
from paradec.io.tokenizer import Tokenizer
from tests.io.real_models import real_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

TEXTS = json.loads((Path(__file__).parents[1] / "golden" / "llamacpp_tokens.json").read_text())["texts"]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " two\n\nlines "}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "<b>é</b>"}],
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    path = real_model("smollm2-135m")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def from_gguf() -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(real_model("smollm2-135m")))


@pytest.fixture(scope="module")
def from_folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return Tokenizer.from_folder(folder)


def test_folder(from_folder: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs.encode(text)
        assert from_folder.encode(text) == ids
        assert from_folder.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert from_folder.decode(ids, special=True) == theirs.decode(ids)
    assert (from_folder.vocab_size, from_folder.bos_id) == (len(theirs), theirs.bos_token_id)
    assert theirs.eos_token_id in from_folder.eos_ids


def test_gguf(from_gguf: Tokenizer, theirs: Any) -> None:
    """Equal but for numbers: transformers cuts this file as GPT-2, and forgets that SmolLM2 reads single digits.

    llama.cpp (tests/golden) and the model's own tokenizer.json cut digits off first.
    """
    plain = [text for text in TEXTS if not any(letter.isnumeric() for letter in text)]
    assert len(plain) > 50
    for text in plain:
        assert from_gguf.encode(text) == theirs.encode(text), text
    core = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]  # as in tokenizer.json
    )
    for text in TEXTS:
        assert from_gguf.encode(text) == core.encode(text).ids, text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("more", [True, False])
def test_chat(
    chat: list[dict[str, str]], more: bool, from_gguf: Tokenizer, from_folder: Tokenizer, theirs: Any
) -> None:
    wanted = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=more)
    assert from_gguf.chat(chat, more) == from_folder.chat(chat, more) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n    {%- if m.role == 'user' %}\n  U: {{ m.content }}\n  {% endif %}\n{% endfor %}end",
        "{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': '<'} | tojson(sort_keys=True) }}",
        "{{ bos_token }}{% generation %}{% set x = 1 %}{{ eos_token }}{% endgeneration %}{{ x is defined }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m['content'] | trim }}{% endfor %}",
        "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ thinking | default('no') }}",
    ],
)
def test_template_language(template: str, from_gguf: Tokenizer, theirs: Any) -> None:
    mine = Tokenizer(from_gguf.core, from_gguf.names, chat_template=template)
    for chat in CHATS:
        wanted = theirs.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        assert mine.chat(chat) == wanted


def test_gemma3() -> None:
    path = real_model("gemma3-270m", download=False)
    mine = Tokenizer.from_gguf(read_metadata(path))
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert mine.encode(text) == ids, text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
