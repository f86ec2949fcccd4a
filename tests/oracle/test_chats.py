"""Conversations as training rows against `transformers`: the same ids, and what the assistant wrote, for six formats.

The templates mark the assistant's words with `{% generation %}`, which gives transformers' mask and means nothing
to us. A second mask comes from what transformers renders and tokenises for the turns before each answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from paradec.data import chain, chats
from paradec.io import tokenizer as ours

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

TEXT = [
    "You are a helpful assistant. The quick brown fox jumps over the lazy dog, said the user.",
    "Yo! Hello there, how are you? I am fine, thank you. Grüße aus Köln! 東京 is a city.",
    "def main(): return 1\n\n\n    x = 2  # two\n",
] * 8


def byte_level(special: list[str]) -> Tokenizer:
    """As GPT-2 and SmolLM2 cut."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return trained(core, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def llama3_like(special: list[str]) -> Tokenizer:
    """Words by a pattern, spaces before them, line ends in runs."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    return trained(core, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def sentencepiece(special: list[str], prefix: bool) -> Tokenizer:
    """As Llama 2 and Gemma cut: spaces are letters, and `prefix` puts one before each text; the unknown is bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    pieces: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
        pieces.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(spaces)
    core.decoder = decoders.Sequence(pieces)
    return trained(core, ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))], cut=True)


def metaspace(special: list[str]) -> Tokenizer:
    """As Mistral's newer files cut: the space is put before the first word of a text alone."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return trained(core, ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))], cut=True)


def trained(core: Tokenizer, special: list[str], cut: bool = False, **options: Any) -> Tokenizer:
    """With 160 merges. `cut` trains on words, so that no piece spans two of them."""
    before = core.pre_tokenizer
    if cut:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    size = 160 + len(special) + len(options.get("initial_alphabet", range(100)))
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, **options))
    if cut:
        core = Tokenizer.from_str(core.to_str())
        core.pre_tokenizer = before  # None is what tokenizer.json then says
    return core


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)
LLAMA2 = (
    ALTERNATE + "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\n' + system + '\n<</SYS>>\n\n' if loop.first and system else '') }}"
    "{{ m['content'] | trim + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    ALTERNATE + "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}"
    "{% generation %}{{ m['content'] | trim + '<end_of_turn>\n' }}{% endgeneration %}"
    "{% else %}{{ '<start_of_turn>user\n' + (system + '\n\n' if loop.first and system else '') }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    ALTERNATE + "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if loop.first and system else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Assistant:' }}"
    "{% generation %}{{ ' ' + m['content'].strip() + eos_token + '\n\n' }}{% endgeneration %}"
    "{% else %}{{ m['role'] | title + ': ' + m['content'].strip() + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
KINDS: dict[str, tuple[Callable[[list[str]], Tokenizer], str, str, list[str], str]] = {
    "chatml": (byte_level, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"], CHATML),
    "llama2": (lambda s: sentencepiece(s, prefix=True), "<s>", "</s>", [], LLAMA2),
    "llama3": (
        llama3_like, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], LLAMA3,
    ),
    "gemma": (lambda s: sentencepiece(s, prefix=False), "<bos>", "<end_of_turn>", ["<start_of_turn>"], GEMMA),
    "mistral": (metaspace, "<s>", "</s>", ["[INST]", "[/INST]"], MISTRAL),
    "plain": (byte_level, "<|endoftext|>", "<|end|>", [], PLAIN),
}  # fmt: skip
BEGUN = ("chatml", "llama3", "plain")  # formats in which an assistant may begin
TALKS = [
    [("user", "Yo"), ("assistant", "Yo there!")],
    [("system", "Be brief."), ("user", " Hello \n"), ("assistant", "  the fox\n\n\n  x = 2 "),
     ("user", "Köln?"), ("assistant", "東京😀")],
    [("user", "how are you?"), ("assistant", "\nfine"), ("user", "the"), ("assistant", "the"), ("user", "thank you")],
    [("user", "  "), ("assistant", "<b>1</b> ▁ two")],
]  # fmt: skip
STARTS = [
    [("assistant", "Hello! How are you?"), ("user", "Yo"), ("assistant", "Yo")],
    [("assistant", ""), ("user", "Hello"), ("assistant", " the dog")],
    [("system", "Be brief."), ("assistant", "Yo"), ("user", "Yo")],
]


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ours.Tokenizer, str]:
    """The tokenizers of transformers and of paradec for one folder, which transformers wrote."""
    make, bos, eos, more, template = KINDS[request.param]
    core = make([bos, eos, *more])
    named = {"bos_token": bos, "eos_token": eos, "chat_template": template, "additional_special_tokens": more}
    folder = tmp_path_factory.mktemp(request.param)
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **named).save_pretrained(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return theirs, ours.Tokenizer.from_folder(folder), request.param


def talks(kind: str) -> list[list[dict[str, str]]]:
    some = TALKS + (STARTS if kind in BEGUN else [])
    return [[{"role": role, "content": content} for role, content in talk] for talk in some]


def prefix_mask(theirs: Any, talk: list[dict[str, str]]) -> list[bool]:
    """The tokens with a character that comes after what transformers renders to ask for a turn, and not after it."""
    render = lambda some, ask: theirs.apply_chat_template(some, tokenize=False, add_generation_prompt=ask)
    whole = render(talk, False)
    mine = [False] * len(whole)
    for i, message in enumerate(talk):
        if message["role"] == "assistant" and i:
            asked, told = render(talk[:i], True), render(talk[: i + 1], False)
            assert told.startswith(asked) and whole.startswith(told)
            mine[len(asked) : len(told)] = [True] * (len(told) - len(asked))
        elif message["role"] == "assistant":  # no template renders nothing: the turn ends as it does after a question
            told = render(talk[:1], False)
            first = (
                len(told)
                - len(render([{"role": "user", "content": "Yo"}, message], False))
                + len(render([{"role": "user", "content": "Yo"}], True))
            )
            mine[first : len(told)] = [True] * (len(told) - first)
    spans = theirs(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [any(mine[start:end]) for start, end in spans]


def test_ids_and_masks(both: tuple[Any, ours.Tokenizer, str]) -> None:
    theirs, tokenizer, kind = both
    for talk in talks(kind):
        token, learn = chats.encode(tokenizer, talk)
        found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        assert token.tolist() == found["input_ids"], talk
        assert learn.tolist() == [bool(x) for x in found["assistant_masks"]], talk
        assert learn.tolist() == prefix_mask(theirs, talk), talk
        assert learn.any() and not learn.all()
        for i in range(1, len(talk)):
            if talk[i]["role"] == "assistant" and talk[i - 1]["role"] == "user":
                asked = theirs.apply_chat_template(talk[:i], add_generation_prompt=True, return_dict=True)["input_ids"]
                assert tokenizer.encode(tokenizer.chat(talk[:i]), special=False) == asked


def test_packed_batches(both: tuple[Any, ours.Tokenizer, str]) -> None:
    """Every document of a packed batch is one conversation of transformers, from its beginning, with its mask."""
    theirs, tokenizer, kind = both
    length = 40
    rows = chats.Chats.of([chats.Conversation(t, "") for t in talks(kind)], tokenizer, length, lambda s: None)
    wanted = set()
    for talk in talks(kind):
        found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = found["input_ids"][:length], found["assistant_masks"][:length]
        if any(mask[1:]):
            wanted.add((tuple(ids), tuple(map(bool, mask))))
    seen, batches = set(), iter(chain.batches(rows, 2, pack=length))
    for _ in range(3 * len(wanted)):
        batch = next(batches)
        for token, learn, segment, position in zip(
            batch.token, batch.learn, batch.segment, batch.position, strict=True
        ):
            assert not learn[segment == 0].any()
            for s in set(segment.tolist()) - {0}:
                here = segment == s
                assert position[here].tolist() == list(range(here.sum()))
                seen.add((tuple(token[here].tolist()), tuple(learn[here].tolist())))
    assert seen == wanted
    held = list(chain.HeldOut(rows, 2, length=length))
    assert {b.token.shape for b in held} == {(2, length)}
    assert sum(int(b.learn.sum()) for b in held) == sum(sum(mask) for _, mask in wanted)
    assert np.array_equal(held[0].segment[0] > 0, np.arange(length) < len(rows[0]["token"]))
