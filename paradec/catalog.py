"""One row per published system that paradec holds. The README's table, `paradec methods` and the laws all read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.lookahead import Lookahead
from paradec.decode.drafters.medusa import Medusa
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.speculative import Speculative, speculative
from paradec.decode.unmasking import compose as unmasking
from paradec.decode.verify import Match, Rejection, Typical
from paradec.errors import InputError, UnknownName, as_kind
from paradec.types import Method, Model


@dataclasses.dataclass(frozen=True)
class Row:
    """A method of the catalogue. `exact_*` is a promise with a law behind it: the tokens of `ar`, in float32."""

    name: str
    title: str
    arxiv: str | None
    family: str
    exact_greedy: bool
    exact_sampled: bool
    trained: bool
    drafter: Callable[..., Any]
    part: str | None = None  # what it needs besides the target: a "draft" model, or "heads"
    status: str = "ready"

    def public(self) -> dict[str, Any]:
        """The row without its factory: what `paradec methods --json` prints."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in ("drafter", "part")}

    def options(self) -> dict[str, Any]:
        """The method's own options and their defaults, `accept` among them."""
        own = {
            f.name: f.default
            for f in dataclasses.fields(self.drafter)
            if f.name not in ("taps", "model", "vocab_size", "heads", "tree", "base", "depth", "span", "nodes")
        }
        return own | {"accept": "match"}


ROWS = (
    Row("ar", "Plain autoregressive decoding", None, "baseline", True, True, False, NoDraft),
    Row("prompt_lookup", "Prompt lookup decoding", None, "lookup", True, True, False, PromptLookup),
    Row("jacobi", "Jacobi decoding", "2305.10427", "fixed point", True, True, False, Jacobi),
    Row("lookahead", "Lookahead decoding", "2402.02057", "fixed point", True, True, False, Lookahead),
    Row("draft_model", "Speculative decoding", "2211.17192", "draft model", True, True, False, DraftModel, "draft"),
    Row("medusa", "Medusa heads", "2401.10774", "heads", True, True, True, Medusa, "heads"),
)
METHODS: Mapping[str, Row] = {row.name: row for row in ROWS}
RULES: Mapping[str, Callable[[], Any]] = {"match": Match, "rejection": Rejection, "typical": Typical.of}


USUAL = (("ar", "prompt_lookup", "jacobi", "lookahead"), ("quota", "threshold", "quota+freedave"))
"""What `compare` runs unless told: for models that continue a text, and for those that fill a canvas."""


def find(name: str) -> Row:
    """The row of that name. Raises `UnknownName` with the nearest one."""
    if name not in METHODS:
        raise UnknownName("method", name, {*METHODS, *unmasking.PARTS})
    return METHODS[name]


def row_of(method: Method) -> Row | None:
    """The row of a method that was built already; None: it is of no row of this table."""
    drafter = type(getattr(method, "drafter", None))
    return next((row for row in ROWS if row.drafter is drafter), None)


def title(method: str | Method) -> str:
    """What results call a method: its name, or of one that was built by hand that of its row or its rules."""
    if isinstance(method, str):
        return method
    row = row_of(method)
    own = type(getattr(method, "drafter", method)).__name__.lower()
    return row.name if row else getattr(method, "name", own)


def unmasks(name: str) -> bool:
    """Whether the name is an unmasking rule, or several joined by "+": a method for diffusion models."""
    return name not in METHODS and any(part in unmasking.PARTS for part in name.split("+"))


def denoises(model: Any) -> bool:
    """Whether a model fills a canvas (`types.Denoiser`) instead of continuing a text."""
    return hasattr(model, "mask_id")


def reference(model: Any) -> str:
    """The method that others are compared with: plain decoding, one token a call."""
    return "quota" if denoises(model) else "ar"


def takes(name: str, option: str) -> bool:
    """Whether a method has an option of that name."""
    if unmasks(name):
        return option in unmasking.known_options(name)
    return option in find(name).options() or option == find(name).part


def promises(name: str | Method, options: Mapping[str, Any], temperature: float) -> bool:
    """Whether the method, with these options, promises the tokens of the `reference` at this temperature."""
    if not isinstance(name, str):
        row, rule = row_of(name), "match" if isinstance(getattr(name, "accept", None), Match) else "other"
        if row is None:
            return False
    elif unmasks(name):
        return name in ("quota", "quota+freedave") and not {*options} - {"drafts", "freedave.drafts"}
    else:
        row, rule = find(name), options.get("accept", "match")
    if temperature <= 0:
        return row.exact_greedy
    # Rejection is exact in law, but draws other tokens than `ar`; typical acceptance is lossy.
    return row.exact_sampled and rule == "match"


def parse(name: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Options from `key=value` strings, typed by the method's defaults. Raises on what the method does not have."""
    if unmasks(name):
        return unmasking.parse(name, pairs)
    row, out = find(name), {}
    known = row.options()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"A method option reads key=value; {pair!r} has no '='.")
        if key == row.part:
            out[key] = text
            continue
        check(name, {key: None})
        out[key] = _typed(name, key, text, known[key])
    return out


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` for what no model could make right: a number out of its range, options at odds.

    For options as `parse` returns them. What a model or a file has to say on them comes later.
    """
    if unmasks(name):
        return unmasking.check_options(name, options)
    row = find(name)
    check(name, options)
    own = {key: value for key, value in options.items() if key not in ("accept", row.part)}
    _check_values(row, own, options.get("accept", "match"))


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raise `UnknownName` for the first option that the method does not have."""
    row = find(name)
    known = {*row.options()} | ({row.part} if row.part else set())
    for key in options:
        if key not in known:
            raise UnknownName(f"option of {name}", key, known)


def _typed(name: str, key: str, text: str, default: Any) -> Any:
    kinds: dict[type, Callable[[str], Any]] = {bool: _boolean, int: unmasking.whole, float: float, str: str}
    try:
        return kinds[type(default)](text)
    except ValueError:
        kind = type(default).__name__
        raise InputError(f"Option {key} of {name} is {_article(kind)} (default {default}); {text!r} is not.") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _article(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind, "a word")


def build(
    name: str, target: Model, eos: Iterable[int], draft: Model | None = None, heads: Any = None, **options: Any
) -> Speculative:
    """The method of that name for `target`. Its parameters are {"target": …} and its part's, under "draft" or "heads".

    `draft` is a draft model, `heads` a pair (`MedusaHeads`, tree). A draft's vocabulary may be padded otherwise
    than the target's; that they share a tokenizer only the caller can know.
    """
    row = find(name)
    check(name, options)
    rule = options.pop("accept", "match")
    options = _check_values(row, options, rule)
    if row.part == "draft":
        if draft is None:
            raise InputError(
                "draft_model needs a second model: pass draft=… (a preset, a folder, a hub id or layers:N)."
            )
        options = {"model": draft, "vocab_size": target.vocab_size, "shared_noise": rule == "match"} | options
    if row.part == "heads":
        if heads is None:
            raise InputError(f"{name} needs heads trained for the model: pass heads=FILE, a safetensors file.")
        options = {"heads": heads[0], "tree": heads[1], "base": target} | options
    drafter = row.drafter(**options)
    if drafter.nodes > LARGEST:
        raise InputError(
            f"{name} would look at {drafter.nodes} tokens in a call; the options must keep it to {LARGEST}."
        )
    return speculative(target, drafter, accept=RULES[rule](), eos=eos)


LARGEST = 2048
"""Nodes of a draft, at most; also entries of what a drafter remembers a row, and n-grams it is told apart by."""


def _check_values(row: Row, options: Mapping[str, Any], rule: Any) -> dict[str, Any]:
    """The options as plain values of their defaults' kinds."""
    if not isinstance(rule, str) or rule not in RULES:
        raise UnknownName("accept rule", str(rule), RULES)
    out: dict[str, Any] = {}
    for key, value in options.items():
        name, default = f"Option {key} of {row.name}", row.options()[key]
        out[key] = as_kind(name, value, type(default))
        if type(default) is int and not 1 <= out[key] <= LARGEST:
            raise InputError(f"{name} must be at least 1 and at most {LARGEST}; {out[key]} was given.")
    options = out
    if rule == "rejection" and row.name not in ("ar", "prompt_lookup", "jacobi", "draft_model"):
        raise InputError(f"The rejection rule verifies chains; {row.name} drafts a tree. Use accept=match.")
    if row.name == "prompt_lookup" and options.get("min_ngram", 3) > options.get("max_ngram", 8):
        raise InputError("Option min_ngram of prompt_lookup is above max_ngram, so it never drafts; lower it.")
    if row.name == "lookahead" and options.get("ngram", 5) < 3:
        raise InputError("Option ngram of lookahead must be at least 3: with 2 there is no window row to iterate.")
    if row.name == "prompt_lookup" and options.get("max_ngram", 8) > 64:
        raise InputError("Option max_ngram of prompt_lookup must be at most 64: each length is compared on its own.")
    return out


def table() -> str:
    """The methods of autoregressive models as a Markdown table, for the README."""
    lines = ["| method | system | paper | exact greedy / sampled | needs training |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        exact = f"{'yes' if row.exact_greedy else 'no'} / {'yes' if row.exact_sampled else 'no'}"
        lines.append(
            f"| `{row.name}` | {row.title} | {_paper(row.arxiv)} | {exact} | {'yes' if row.trained else 'no'} |"
        )
    return "\n".join(lines)


def rules() -> str:
    """The unmasking rules of diffusion models as a Markdown table, for the README."""
    lines = ["| rule | system | paper | slot |", "| --- | --- | --- | --- |"]
    for part in unmasking.PARTS.values():
        lines.append(f"| `{part.name}` | {part.title} | {_paper(part.arxiv)} | {part.slot} |")
    return "\n".join(lines)


def _paper(arxiv: str | None) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "-"
