"""Methods of the canvas engine by name: `credit+local_leap+ada_block` is one part for each of three slots."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from paradec.decode.canvas import Canvas, fact
from paradec.decode.canvas_cache import POLICIES
from paradec.decode.unmasking.ada_block import AdaBlock
from paradec.decode.unmasking.credit import Credit
from paradec.decode.unmasking.eb import EntropyBounded
from paradec.decode.unmasking.entropy import Entropy
from paradec.decode.unmasking.factor import Factor
from paradec.decode.unmasking.freedave import FreeDave
from paradec.decode.unmasking.hierarchical import Hierarchical
from paradec.decode.unmasking.klass import Klass
from paradec.decode.unmasking.learned_filter import EndOfText, LearnedFilter
from paradec.decode.unmasking.local_leap import LocalLeap
from paradec.decode.unmasking.oracle import Oracle
from paradec.decode.unmasking.prophet import Prophet
from paradec.decode.unmasking.quota import Quota
from paradec.decode.unmasking.regions import Blocks, Everything
from paradec.decode.unmasking.renoise import Renoise
from paradec.decode.unmasking.threshold import Threshold
from paradec.decode.unmasking.time_grid import TimeGrid
from paradec.decode.unmasking.wino import Wino
from paradec.decode.view import bar
from paradec.errors import InputError, UnknownName
from paradec.models.heads import ConfidenceFilter
from paradec.types import Denoiser


@dataclasses.dataclass(frozen=True)
class Part:
    """A published rule: which slot it fills, and how it is made of plain numbers."""

    name: str
    slot: str
    title: str
    arxiv: str | None
    make: Callable[..., Any]

    def public(self) -> dict[str, Any]:
        """The part without its factory, as `catalog.Row.public`."""
        exact = self.name == "freedave"  # the text of what it wraps
        row = {"name": self.name, "title": self.title, "arxiv": self.arxiv, "family": "unmasking", "slot": self.slot}
        trained = self.name == "learned_filter"
        return row | {"exact_greedy": exact, "exact_sampled": exact, "trained": trained, "status": "ready"}

    def options(self) -> dict[str, Any]:
        """Its options and their defaults; those without one must be given."""
        return {p.name: p.default for p in inspect.signature(self.make).parameters.values()}


def _filter(filter: Any = "", weights: Any = None, tau: float = 0.96) -> LearnedFilter:
    if not isinstance(filter, ConfidenceFilter) or weights is None:  # a language model opens the file
        raise ValueError("learned_filter needs a filter trained for the model: pass filter=FILE, a safetensors file.")
    return LearnedFilter(weights, filter, bar(tau))


def _end_of_text(eos: Iterable[int], tau: float = 0.0, leftmost: bool = False) -> EndOfText:
    return EndOfText(jnp.asarray(sorted(eos), jnp.int32), bar(tau), leftmost)


def _freedave(drafts: int = 4) -> int:
    if drafts < 1:
        raise ValueError(f"freedave looks at one state or more; drafts={drafts} was given.")
    return drafts


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part("quota", "select", "LLaDA: a schedule of confidence", "2502.09992", Quota.of),
        Part("time_grid", "select", "Dream: a grid of noise levels", "2508.15487", TimeGrid.of),
        Part("threshold", "select", "Fast-dLLM: confidence threshold", "2505.22618", Threshold.of),
        Part("factor", "select", "Fast-dLLM: factor", "2505.22618", Factor.of),
        Part("entropy", "select", "dParallel: entropy threshold", "2509.26488", Entropy.of),
        Part("eb", "select", "EB-sampler", "2505.24857", EntropyBounded.of),
        Part("klass", "select", "KLASS", "2511.05664", Klass.of),
        Part("hierarchical", "select", "dInfer: hierarchical", "2510.08666", Hierarchical.of),
        Part("local_leap", "select", "LocalLeap", "2510.07081", LocalLeap.of),
        Part("learned_filter", "select", "Learn2PD: learned filter", "2509.25188", _filter),
        Part("wino", "select", "WINO", "2507.18578", Wino.of),
        Part("renoise", "select", "DiffusionGemma: noise drawn anew", None, Renoise.of),
        Part("oracle", "select", "Extremely greedy parallel decoding", "2509.25188", Oracle),
        Part("credit", "rewrite", "CreditDecoding", "2510.06133", Credit.of),
        Part("ada_block", "region", "AdaBlock", "2509.26432", AdaBlock.of),
        Part("prophet", "stop", "Prophet", "2508.19982", Prophet.of),
        Part("end_of_text", "cut", "Learn2PD: end-of-text prediction", "2509.25188", _end_of_text),
        Part("freedave", "wrap", "FreeDave", "2510.00294", _freedave),
    )
}


def compose(
    target: Denoiser,
    names: str,
    options: Mapping[str, Any] | None = None,
    *,
    block: int | None = None,
    cache: str | None = None,
    wait: bool = True,
    eos: Iterable[int] = (),
    ends: str = "free",
    tempered: bool | None = None,
    words: int = 0,
) -> Canvas | FreeDave:
    """The method that `names`, joined by "+", describe, for one model.

    Without a select rule it is static decoding, one position a call. `options` are the parts' own: "tau", or
    "threshold.tau" where several parts have one. `block` is the block length: None is the model's own, or the whole
    answer; `cache` one of "none", "dual", "prefix", "block", "sub_block", "causal" (see `decode.canvas_cache`; None is
    "causal" for models that read finished text causally, and "none" for others), and `wait` says whether rows wait for
    each other at block borders under it; `ends`, `tempered` and `words` are `Canvas`' own, and
    `tempered` None is as the select rule was published (Dream's after temperature, others before).
    Raises `UnknownName` for a part or an option that does not exist, `InputError` for parts that do not go together,
    or a model that fills no canvas.
    """
    if not hasattr(target, "mask_id"):
        raise InputError(f"{names} fills a canvas, and a {type(target).__name__} continues a text; give a Denoiser.")
    chosen = _parts(names)
    _check_names(chosen.values(), options or {})
    made = {slot: _make(part, _own(part, chosen, options or {}, eos)) for slot, part in chosen.items()}
    select = made.get("select", Quota.of())
    fixed = block is not None or target.block > 0
    cache = cache or ("causal" if target.causal_cache else "none")
    region = made.get("region") or (_blocks(target, block) if fixed else Everything())
    method = Canvas(
        target=target, select=select, region=region, rewrite=made.get("rewrite"),
        stop=made.get("stop"), cut=made.get("cut"), cache=_policy(cache, wait),
        eos=jnp.asarray(sorted(eos), jnp.int32).reshape(-1), ends=ends,
        tempered=fact(select, "tempered") if tempered is None else tempered, words=words,
        name="+".join(part.name for part in chosen.values()) or "quota",
    )  # fmt: skip
    check(method, chosen)
    return FreeDave(method, made["wrap"]) if "wrap" in made else method


ENGINE: Mapping[str, Any] = {"block": 32, "cache": "none", "wait": True, "ends": "free", "tempered": False}
"""Options of every canvas method, beside its parts'. `block` unset is the model's own, or the whole answer."""
LONGEST = 2**30


def known_options(names: str) -> dict[str, Any]:
    """Every option of the parts and of the engine, also under its part's name, and its default."""
    own = {n: v for part in _parts(names).values() for k, v in part.options().items() for n in (k, f"{part.name}.{k}")}
    return dict(ENGINE) | own


def parse(names: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Options from `key=value` strings, typed by the parts' defaults; a list of token ids reads 198,271.

    Raises `UnknownName` and `InputError` as `compose` does.
    """
    known, out = known_options(names), {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"A method option reads key=value; {pair!r} has no '='.")
        if key not in known:
            raise UnknownName(f"option of {names}", key, known)
        try:
            out[key] = _typed(known[key], text)
        except (ValueError, KeyError, TypeError):
            default = "the model's own" if key == "block" else known[key]
            raise InputError(f"Option {key} of {names} cannot be {text!r}; its default is {default}.") from None
    return out


def check_options(names: str, options: Mapping[str, Any]) -> None:
    """Raise what `compose` would, whatever the model: for numbers out of their range and parts that fill one slot."""
    chosen = _parts(names)
    engine = dict(ENGINE) | {name: value for name, value in options.items() if name in ENGINE}
    own = {name: value for name, value in options.items() if name not in ENGINE}
    _check_names(chosen.values(), own)
    _check_block(engine["block"])
    _check_ends(engine["ends"])
    _policy(engine["cache"], engine["wait"])
    for part in chosen.values():
        if part.name not in ("learned_filter", "oracle"):  # made of what only a file or a text can give
            _make(part, _own(part, chosen, own, eos=(0,)))


def _typed(default: Any, text: str) -> Any:
    if default is inspect.Parameter.empty:  # the only options without a default that a command line can give
        return tuple(whole(i) for i in text.split(","))
    if isinstance(default, bool):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    return whole(text) if isinstance(default, int) else type(default)(text)


def whole(text: str) -> int:
    """A whole number that an array of the device can hold. Raises `ValueError`."""
    if abs(number := int(text)) > LONGEST:
        raise ValueError(text)
    return number


def check(method: Canvas, chosen: Mapping[str, Part]) -> None:
    """Raise `InputError` for parts that cannot work together, or with this model or cache."""
    target, region, select = method.target, method.region, method.select
    _check_ends(method.ends)
    reads, shadows, keeps = fact(select, "reads"), fact(select, "shadows"), method.cache.keeps
    whole = [chosen[slot].name for slot in ("stop", "cut") if slot in chosen]
    name = chosen["select"].name if "select" in chosen else "quota"
    noisy = fact(select, "noise") is not None
    problems = (
        (bool(reads) and region.reach != reads, f"{name} was trained for blocks of {reads}; give block={reads}."),
        (
            "region" in chosen and bool(target.block),
            f"ada_block cannot choose blocks for a block-causal model: its mask fixes them at {target.block}.",
        ),
        (
            bool(whole) and keeps,
            f"{' and '.join(whole)} must see the whole canvas; cache '{method.cache.name}' recomputes a part of it.",
        ),
        (
            bool(whole) and target.causal_cache,
            f"{' and '.join(whole)} must see the whole canvas; this model reads one block of it at a time.",
        ),
        (
            noisy and target.mask_id is not None,
            f"{name} shows a model noise where nothing is settled, and this one was trained with a mask there.",
        ),
        (
            not noisy and target.mask_id is None,
            f"{name} leaves open positions to a mask token, and this model has none: take renoise.",
        ),
        ("wrap" in chosen and noisy, f"freedave cannot guess the noise that {name} will draw."),
        (
            bool(target.conditioned) and region.reach != target.block,
            f"This model is told of its whole block of {target.block} in every call: leave out block.",
        ),
        (
            bool(target.conditioned) and "rewrite" in chosen,
            "credit rewrites logits, and this model is told in the next call of those that it gave.",
        ),
        (
            "wrap" in chosen and fact(select, "revocable"),
            f"freedave needs a rule that never takes back a token, and {name} does.",
        ),
        ("wrap" in chosen and shadows, f"freedave cannot look at drafts through the shadow rows of {name}."),
        (shadows and target.shift, f"{name} cannot verify a model with shifted logits: its shadows are one place off."),
        (shadows and not hasattr(target, "base"), f"{name} needs shadow rows, which {target} does not compute."),
    )
    for wrong, sentence in problems:
        if wrong:
            raise InputError(sentence)
    if reason := method.cache.check(target, region):
        raise InputError(reason)


def _parts(names: str) -> dict[str, Part]:
    chosen: dict[str, Part] = {}
    for name in filter(None, (n.strip() for n in names.split("+"))):
        if name not in PARTS:
            raise UnknownName("unmasking rule", name, PARTS)
        part = PARTS[name]
        if part.slot in chosen:
            first = chosen[part.slot].name
            raise InputError(f"{first!r} and {name!r} both fill the slot {part.slot!r}; leave one out.")
        chosen[part.slot] = part
    return chosen


def _make(part: Part, own: Mapping[str, Any]) -> Any:
    try:
        return part.make(**own)
    except ValueError as error:
        raise InputError(str(error)) from None


def _own(part: Part, chosen: Mapping[str, Part], options: Mapping[str, Any], eos: Iterable[int]) -> dict[str, Any]:
    known, own = part.options(), {}
    if part.name == "end_of_text":
        own["eos"] = tuple(eos)
        if not own["eos"]:
            raise InputError("end_of_text needs end-of-text token ids: give eos.")
    for key, value in options.items():
        owner, _, field = key.rpartition(".")
        if field not in known or owner not in ("", part.name):
            continue
        sharing = [p.name for p in chosen.values() if field in p.options()]
        if not owner and len(sharing) > 1:
            raise InputError(f"{' and '.join(sharing)} all have an option {field}; write {part.name}.{field}.")
        own[field] = value
    missing = [k for k, v in known.items() if v is inspect.Parameter.empty and k not in own]
    if missing:
        raise InputError(f"{part.name} needs the option {part.name}.{missing[0]}.")
    return own


def _check_names(chosen: Iterable[Part], options: Mapping[str, Any]) -> None:
    known = {n for part in chosen for field in part.options() for n in (field, f"{part.name}.{field}")}
    for key in options:
        if key not in known:
            raise UnknownName("option of these rules", key, known)


def _policy(name: str, wait: bool) -> Any:
    if name not in POLICIES:
        raise UnknownName("cache", name, POLICIES)
    policy = POLICIES[name]
    return policy(wait=wait) if policy.keeps else policy()


def _check_ends(ends: str) -> None:
    if ends not in ("free", "late", "never"):
        raise InputError(f"ends is free, late or never; {ends!r} was given.")


def _check_block(size: int) -> int:
    if size < 1:
        raise InputError(f"A block is at least one token long; {size} was given.")
    if size > LONGEST:
        raise InputError(f"A block is at most {LONGEST} tokens long; {size} was given.")
    return size


def _blocks(target: Denoiser, block: int | None) -> Blocks:
    size = target.block if block is None else _check_block(block)
    if target.block and target.block % size:
        raise InputError(f"Blocks of {size} do not divide the model's blocks of {target.block}.")
    return Blocks(size, target.grid if target.block else "prompt")
