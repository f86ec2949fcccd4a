"""The tokenizer of a Hugging Face folder: tokenizer.json and what the files beside it add, as `transformers` 5 has it.

tokenizer.json decides how text is cut and which tokens are put around it, so `add_bos_token` and `add_eos_token` are
not asked. The other files name the special tokens, declare more tokens, and hold the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers

from paradec.errors import WeightsError
from paradec.io import regular_file
from paradec.io.generation_config import read_ends
from paradec.io.gguf_vocab import frame

# Named special tokens get new ids in this order.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Model types that learned from texts which all begin with a token that GPT-2's tokenizer puts before none.
_BEGUN = {"mdlm": "<|endoftext|>", "bd3lm": "<|endoftext|>"}
# The model types of the Llama family whose tokenizer.json is taken as it is, whatever class its folder names.
_TAKEN_AS_IT_IS = ("mistral", "mixtral")


class FolderTokenizer(NamedTuple):
    """What `Tokenizer` is made of."""

    core: tokenizers.Tokenizer
    names: dict[str, str]
    eos_ids: tuple[int, ...]
    chat_template: str | None


def read_folder(folder: Path) -> FolderTokenizer:
    """Raises `WeightsError` when tokenizer.json is missing, and for a file that is damaged or holds a wrong value."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise WeightsError(
            f"{folder} has no tokenizer.json. Save the tokenizer there in its fast form:"
            " AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    regular_file.check_regular(path)
    with _damage(path):
        core = tokenizers.Tokenizer.from_file(str(path))
        core.no_truncation()
        core.no_padding()
        _keep_spaces(core)
    config, model = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "config.json")
    if "added_tokens_decoder" not in config:  # written before there was such a list
        config |= _read_json(folder / "special_tokens_map.json")
    begin = _BEGUN.get(str(model.get("model_type")), "")
    if core.token_to_id(begin) is not None:
        config |= {"bos_token": begin}
        core.post_processor = frame(core, begin, None)
    with _damage(folder / "tokenizer_config.json"):
        if _is_llama(core, config, model):
            _cut_as_llama(core, config)
        names = _declare(core, config, folder)
    vocabulary = 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)
    return FolderTokenizer(core, names, read_ends(folder, vocabulary), _chat_template(folder, config))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What the Rust library raises for a damaged file is a bare Exception, or its own kind of panic."""
    try:
        yield
    except WeightsError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise WeightsError(f"{path} is damaged, download it again: {error}.") from error


def _keep_spaces(core: tokenizers.Tokenizer) -> None:
    """Let the spans of tokens hold their spaces, as a mask over characters needs it; some files cut them off."""
    post = core.post_processor
    state = {} if post is None else json.loads(post.__getstate__())
    for step in [post[i] for i in range(len(state["processors"]))] if "processors" in state else [post]:
        if hasattr(step, "trim_offsets"):
            step.trim_offsets = False
    core.post_processor = post


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} when there is no such file."""
    try:
        return regular_file.read_json(path)
    except FileNotFoundError:
        return {}


def _is_llama(core: tokenizers.Tokenizer, config: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether the folder names the one class that cuts by its own rules: a sentencepiece vocabulary by pairs."""
    named = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    pairs = isinstance(core.model, tokenizers.models.BPE) and core.model.byte_fallback
    return named and pairs and model.get("model_type") not in _TAKEN_AS_IT_IS


def _cut_as_llama(core: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """A space is put before a text, or (`legacy`) before each piece of it between special tokens."""
    for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        config.setdefault(name, text)
    prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def _declare(core: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Add the tokens that only the files beside tokenizer.json declare; returns the texts of the named ones.

    Without them special tokens would be cut into pieces. New ones get the next ids, in the order of `transformers`.
    """
    named = {name: _added_token(config[name], True) for name in _NAMED if config.get(name)}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    models_own = {name: text for name, text in config.items() if name.endswith("_token") and isinstance(text, str)}
    models_own |= extra if isinstance(extra, dict) else {}
    named |= {name: _added_token(text, True) for name, text in models_own.items() if name not in named and text}
    texts = {token.content for token in named.values()}
    declared = {token.content: token for token in _declared(core, config, folder, texts)}
    for token in declared.values():
        token.special |= token.content in texts
    known = {token.content for token in core.get_added_tokens_decoder().values()} | set(declared)
    more = [*named.values(), *([_added_token(text, True) for text in extra] if isinstance(extra, list) else [])]
    core.add_tokens([*declared.values(), *{t.content: t for t in more if t.content not in known}.values()])
    return {name: token.content for name, token in named.items()}


def _declared(
    core: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path, named: Container[str]
) -> Sequence[AddedToken]:
    """Tokens with ids: of `added_tokens_decoder`, else of added_tokens.json and tokenizer.json itself."""
    if "added_tokens_decoder" in config:
        found = {int(i): _added_token(token, False) for i, token in config["added_tokens_decoder"].items()}
    else:
        listed = _read_json(folder / "added_tokens.json")
        found = {
            int(i): AddedToken(text, special=text in named, normalized=text not in named) for text, i in listed.items()
        }
        found |= core.get_added_tokens_decoder()
    return [found[i] for i in sorted(found)]


def _added_token(token: Any, special: bool) -> AddedToken:
    """A token as the files write it: its text, or an object with the key "content". `special` where it says nothing."""
    if isinstance(token, str):
        return AddedToken(token, special=special)
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise WeightsError(f"A special token is a text, or an object with the text as its content, not {token!r:.80}.")
    flags = {name: token[name] for name in _FLAGS if name in token}
    return AddedToken(token["content"], **{"special": special, **flags})


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    try:
        return regular_file.read_text(folder / "chat_template.jinja")
    except FileNotFoundError:
        pass
    template = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        template = {entry["name"]: entry.get("template") for entry in named}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise WeightsError(f"The chat template in {folder} is a {type(template).__name__}; it must be a text.")
    return template
