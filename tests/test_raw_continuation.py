"""What follows a raw prompt keeps the space before its first word; an answer in a chat begins without one."""

from __future__ import annotations

import dataclasses

import pytest
import tokenizers
from tokenizers import decoders, models

import paradec
from paradec.io.tokenizer import Tokenizer
from tests.fixtures import write_tiny_model

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """Each of its tokens is a word with a space before it, as sentencepiece writes that."""
    found = paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")))
    words = {f"▁w{i}": i for i in range(found.model.vocab_size)}
    core = tokenizers.Tokenizer(models.BPE(words, []))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return dataclasses.replace(found, tokenizer=Tokenizer(core), decoders={})


def test_the_first_space_of_a_continuation_stays(lm):
    chat, raw = (lm.generate(PROMPT, max_new_tokens=4, raw=raw)[0] for raw in (False, True))
    assert raw.token_ids == chat.token_ids
    assert raw.text == "".join(f" w{i}" for i in raw.token_ids) == " " + chat.text == "".join(raw.pieces)
    assert [r.text for r in lm.stream(PROMPT, max_new_tokens=4, raw=True)][-1] == raw.text


def test_a_stop_string_that_begins_with_a_space_matches_there(lm):
    first = lm.generate(PROMPT, max_new_tokens=4, raw=True)[0].token_ids[0]
    stopped = lm.generate(PROMPT, max_new_tokens=4, raw=True, stop=(f" w{first}",))[0]
    assert (stopped.text, stopped.new_tokens, stopped.finish) == ("", 1, "stop")
