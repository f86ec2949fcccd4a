"""How a model asks to be sampled and where it ends: generation_config.json and config.json, every value checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paradec.io.fields import FLOAT_MAX, INT32_MAX, Fields
from paradec.io.regular_file import read_json

FILE = "generation_config.json"
# What transformers takes, in sampling, for keys that the file leaves out. Names are those of a `Request`.
_SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda x: 0 <= x <= FLOAT_MAX, "a number from 0 on"),
    "top_k": (lambda x: isinstance(x, int) and 0 <= x <= INT32_MAX, "a whole number from 0 (off) on"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda x: 0 < x <= FLOAT_MAX, "a number above 0"),
}


def read_defaults(folder: Path) -> dict[str, Any]:
    """The sampling that a folder's generation_config.json asks for, as fields of a `Request`.

    Empty where there is no such file or it asks for greedy decoding; a repetition penalty counts in greedy decoding
    too. Raises `WeightsError` for a file that is damaged or a number out of its range.
    """
    fields = Fields(_object(folder / FILE), {}, str(folder / FILE))
    sampled = {key: _number(fields, key, otherwise) for key, otherwise in _SAMPLED.items()}
    repetition = _number(fields, "repetition_penalty", 1.0)
    return (sampled if fields.flag("do_sample") else {}) | ({"repetition": repetition} if repetition != 1 else {})


def read_ends(folder: Path, vocabulary: int) -> tuple[int, ...]:
    """The tokens that end a text by generation_config.json, or, where it names none, by config.json.

    `vocabulary` is the tokenizer's; the model's table may be longer. Raises `WeightsError` for anything but token ids
    of either.
    """
    config = _object(folder / "config.json")
    nested = config.get("text_config")
    inner = nested if isinstance(nested, Mapping) else {}
    rows = [values.get(key) for values in (config, inner) for key in ("vocab_size", "embedding_size")]
    limit = max([vocabulary, *(n for n in rows if isinstance(n, int) and n <= INT32_MAX)])
    for file, values in ((FILE, _object(folder / FILE)), ("config.json", config), ("config.json, text_config,", inner)):
        fields = Fields(values, {}, str(folder / file))
        if (stated := fields.get("eos_token_id")) is None:
            continue
        ids = stated if isinstance(stated, list) else [stated]
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < limit for i in ids):
            fields.fail("eos_token_id", stated, f"a token id from 0 to {limit - 1}, or a list of them")
        return tuple(ids)
    return ()


def read_policy(folder: Path, block: int) -> tuple[str, dict[str, Any]]:
    """The unmasking rule and its options that a Nemotron-Labs-Diffusion folder asks for; ("ar", {}) where it asks none.

    The keys are those of vLLM: `diffusion_selection_policy`, `diffusion_confidence_threshold` (0.9 where it is left
    out) and `max_denoising_steps` (`block`, the model's, where it is). Deviation: with top-k or top-p vLLM takes a
    position's confidence from the law that they leave, and these rules from the whole one. Raises `WeightsError` for
    another policy and numbers out of their range.
    """
    fields = Fields(_object(folder / FILE), {}, str(folder / FILE))
    policy, tau, steps = "diffusion_selection_policy", "diffusion_confidence_threshold", "max_denoising_steps"
    if all(fields.get(key) is None for key in (policy, tau, steps)):
        return "ar", {}
    name = fields.get(policy)
    most = fields.count(steps, block)
    if name in (None, "confidence_threshold"):
        return "threshold", {"tau": fields.number(tau, 0.9, most=1.0), "max_steps": most}
    if name == "low_confidence":
        return "quota", {"steps": most}
    if name == "leftmost":
        return "quota", {"steps": most, "score": "position"}
    fields.fail(policy, name, "confidence_threshold, low_confidence or leftmost")


def _number(fields: Fields, key: str, otherwise: float) -> float:
    value = fields.get(key)
    if value is None:
        return otherwise
    holds, wanted = _RANGES[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        fields.fail(key, value, wanted)
    return value


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
