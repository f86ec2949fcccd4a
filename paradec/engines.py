"""What an engine is to those who use it: how a method is put together, how long a text may become, what its calls are.

There is one object for each kind of decoding. A model names the engines that can decode it (`Model.kinds`), a method
belongs to one (`Method.kind`), and whoever sizes, starts or counts a decode asks the engine and need not know its kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from paradec.decode.canvas import Canvas
from paradec.decode.canvas_cache import POLICIES
from paradec.decode.loop import bucket
from paradec.decode.seams import Method, Region
from paradec.decode.speculative import speculative
from paradec.decode.unmasking.regions import Everything, FixedBlocks
from paradec.errors import InputError, UnknownName, shown
from paradec.system import Option, System
from paradec.types import Denoiser, Model

LONGEST = 2**30
"""Positions of a text or a block at most: what an int32 holds with room to add."""
LARGEST = 2048
"""Nodes of a draft, at most; also entries of what a drafter remembers a row, and n-grams it is told apart by."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """One kind of decoding. `does` says what its methods and models do, `wants` what to give them. `fill` says which
    system takes a slot that a method leaves open, `usual` which methods are compared unless told, the first of them
    plain decoding; `options` are those of every method of this engine."""

    kind: str
    does: str
    wants: str
    fill: Mapping[str, str]
    slots: tuple[str, ...]
    usual: tuple[str, ...]
    options: Mapping[str, Option]
    by_name: tuple[str, ...] = ()
    """Slots that an option of their name fills, too: accept=typical."""
    binds: bool = False
    """Whether its parts are leaves that hold the weights they need, and not handed them with the parameters."""
    scores: bool = False
    """Whether its models have a law of the next token, so that a text that is there can be scored."""

    @property
    def plain(self) -> str:
        """Plain decoding: what other methods are compared with."""
        return self.usual[0]

    def whole_numbers(self, slot: str) -> tuple[int, int]:
        """The least and the greatest whole number that an option of a system in this slot may be."""
        return -LONGEST, LONGEST

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` for values of this engine's own options that no model could make right."""

    def check_rows(self, rows: Mapping[str, System]) -> None:
        """Raise `InputError` for systems that do not go together, whatever the model."""

    def assemble(
        self, target: Any, rows: Mapping[str, System], made: Mapping[str, Any], *, name: str, eos: Iterable[int],
        vocab_limit: int, **options: Any,
    ) -> Method:  # fmt: skip
        """The method of these parts, by slot. Raises `InputError` for parts that this model cannot run."""
        raise NotImplementedError

    def refusal(self, method: str, model: str) -> str:
        """Why a method of this engine cannot decode a model that does not name it."""
        raise NotImplementedError

    def check_sampling(self, repetition: Sequence[float]) -> None:
        """Raise `InputError` for a way to sample that this engine cannot do."""

    def end(self, model: Any, prompt: int, new_tokens: int) -> int:
        """Where a row stops."""
        longest = LONGEST if model.max_length is None else model.max_length
        return min(prompt + new_tokens, longest)

    def slots_for(self, limit: int, prompt: int) -> int:
        """The canvas length S for texts of at most `limit` tokens whose prompts take `prompt` slots."""
        return bucket(max(limit, prompt))

    def calls(self, made: int, committed: Sequence[int]) -> int:
        """The calls of a row whose shown tokens were `committed` in these calls, of the `made` it took part in."""
        return max(committed, default=0)


@dataclasses.dataclass(frozen=True)
class PrefixEngine(Engine):
    """Texts that grow at their end: `decode.speculative`."""

    def whole_numbers(self, slot: str) -> tuple[int, int]:
        return 1, LARGEST

    def check_rows(self, rows: Mapping[str, System]) -> None:
        accept, draft = rows["accept"], rows["draft"]
        if accept.made.chains and not draft.made.chain:
            raise InputError(
                f"The {accept.name} rule verifies chains; {draft.name} drafts a tree. Use accept={self.fill['accept']}."
            )

    def assemble(
        self, target: Model, rows: Mapping[str, System], made: Mapping[str, Any], *, name: str, eos: Iterable[int],
        vocab_limit: int, **options: Any,
    ) -> Method:  # fmt: skip
        drafter = made["draft"]
        if drafter.nodes > LARGEST:
            raise InputError(
                f"{rows['draft'].name} would look at {drafter.nodes} tokens in a call; the options must keep it to "
                f"{LARGEST}."
            )
        return speculative(target, drafter, accept=made["accept"], eos=eos)

    def refusal(self, method: str, model: str) -> str:
        return f"{model} is a diffusion model: choose an unmasking rule, such as quota or threshold."


@dataclasses.dataclass(frozen=True)
class CanvasEngine(Engine):
    """Texts whose positions are committed in any order: `decode.canvas`."""

    def whole_numbers(self, slot: str) -> tuple[int, int]:
        return (1, LARGEST) if slot == "wrap" else (-LONGEST, LONGEST)  # a wrapper holds a canvas for each state

    def check_options(self, options: Mapping[str, Any]) -> None:
        if (size := options.get("block")) is not None:
            check_block(size)
        if (name := options.get("cache")) not in (None, *POLICIES):
            raise UnknownName("cache", str(name), POLICIES)
        if (eos_policy := options.get("eos_policy", "free")) not in ("free", "late", "never"):
            raise InputError(f"eos_policy is free, late or never; {eos_policy!r} was given.")

    def assemble(
        self, target: Denoiser, rows: Mapping[str, System], made: Mapping[str, Any], *, name: str, eos: Iterable[int],
        vocab_limit: int, block: int | None = None, cache: str | None = None, synchronous_blocks: bool = True,
        eos_policy: str = "free", temper_confidence: bool | None = None,
    ) -> Canvas:  # fmt: skip
        select = made["select"]
        policy = POLICIES[cache or ("causal" if target.causal_cache else "none")]
        size = block if block is not None or not select.reads else select.reads
        method = Canvas(
            target=target, select=select, region=made.get("region") or blocks(target, size),
            rewrite=made.get("rewrite"), stop=made.get("stop"), cut=made.get("cut"),
            cache=policy(synchronous_blocks=synchronous_blocks) if policy.keeps else policy(),
            eos=jnp.asarray(sorted(eos), jnp.int32).reshape(-1), eos_policy=eos_policy,
            temper_confidence=select.temper_confidence if temper_confidence is None else temper_confidence,
            vocab_limit=vocab_limit, name=name,
        )  # fmt: skip
        if problem := next(iter(problems(method, rows)), None):
            raise InputError(problem)
        if block is not None and "region" in made:
            named = rows["region"].name if "region" in rows else "this region"
            raise InputError(f"block={block} is for fixed blocks, and {named} says where a block ends: leave out one.")
        return method

    def refusal(self, method: str, model: str) -> str:
        return f"{method} fills a canvas and {model} continues a text; take ar or lookahead."

    def check_sampling(self, repetition: Sequence[float]) -> None:
        if set(repetition) != {1}:
            raise InputError("A canvas has no order of its own, so there is no repetition penalty; leave it at 1.")

    def end(self, model: Denoiser, prompt: int, new_tokens: int) -> int:
        """Where a row stops. Block-causal diffusion fills whole blocks; what is too much is cut from the text."""
        if not (block := model.block):
            return super().end(model, prompt, new_tokens)
        longest = LONGEST if model.max_length is None else model.max_length
        first = prompt if model.grid == "prompt" else 0
        whole = -(-(prompt + new_tokens - first) // block) * block + first
        return min(whole, (longest - first) // block * block + first)

    def slots_for(self, limit: int, prompt: int) -> int:
        """Hardly more than are needed, because a call may read every slot."""
        return -(-max(limit, prompt) // 16) * 16

    def calls(self, made: int, committed: Sequence[int]) -> int:
        return made


def blocks(target: Denoiser, size: int | None) -> Region:
    """Blocks of this size, or, of None, the model's own; the whole answer where it has none."""
    if size is None and not target.block:
        return Everything()
    size = target.block if size is None else check_block(size)
    if target.block and target.block % size:
        raise InputError(f"Blocks of {size} do not divide the model's blocks of {target.block}.")
    return FixedBlocks(size, target.grid if target.block else "prompt")


def check_block(size: int) -> int:
    """The block length. Raises `InputError` for one below 1 or beyond `LONGEST`."""
    if size < 1:
        raise InputError(f"A block is at least one token long; {shown(size)} was given.")
    if size > LONGEST:
        raise InputError(f"A block is at most {LONGEST} tokens long; {shown(size)} was given.")
    return size


def problems(method: Canvas, rows: Mapping[str, System]) -> Iterable[str]:
    """Why parts cannot work together, or with this model or cache, a sentence each."""
    target, region, select, keeps = method.target, method.region, method.select, method.cache.keeps
    name = rows["select"].name
    if select.reads and region.reach != select.reads:
        yield f"{name} was trained for blocks of {select.reads}; give block={select.reads}."
    if "region" in rows and target.block:
        own = rows["region"].name
        yield f"{own} cannot choose blocks for a block-causal model: its mask fixes them at {target.block}."
    if (whole := [rows[slot].name for slot in ("stop", "cut") if slot in rows]) and keeps:
        yield f"{' and '.join(whole)} must see the whole canvas; cache '{method.cache.name}' recomputes a part of it."
    if whole and target.causal_cache:
        yield f"{' and '.join(whole)} must see the whole canvas; this model reads one block of it at a time."
    if select.noisy and target.mask_id is not None:
        yield f"{name} shows a model noise where nothing is committed, and this one was trained with a mask there."
    if not select.noisy and target.mask_id is None:
        yield f"{name} leaves open positions to a mask token, and this model has none: take renoise."
    if "wrap" in rows and select.noisy:
        yield f"{rows['wrap'].name} cannot guess the noise that {name} will draw."
    if target.conditioned and region.reach != target.block:
        yield f"This model is told of its whole block of {target.block} in every call: leave out block."
    if target.conditioned and "rewrite" in rows:
        own = rows["rewrite"].name
        yield f"{own} rewrites logits, and this model is told in the next call of those that it gave."
    if "wrap" in rows and select.revocable:
        yield f"{rows['wrap'].name} needs a rule that never takes back a token, and {name} does."
    if "wrap" in rows and select.shadows:
        yield f"{rows['wrap'].name} cannot look at drafts through the shadow rows of {name}."
    if select.shadows and target.shift:
        yield f"{name} cannot verify a model with shifted logits: its shadows are one place off."
    if select.shadows and not target.shadow_rows:
        yield f"{name} needs shadow rows, which {target} does not compute."
    if reason := method.cache.check(target, region):
        yield reason


PREFIX = PrefixEngine(
    kind="prefix",
    does="continues a text",
    wants="give a Model",
    fill={"draft": "ar", "accept": "match"},
    slots=("accept", "draft"),
    usual=("ar", "prompt_lookup", "jacobi", "lookahead"),
    options={"accept": Option("accept", "match", str)},
    by_name=("accept",),
    scores=True,
)
CANVAS = CanvasEngine(
    kind="canvas",
    does="fills a canvas",
    wants="give a Denoiser",
    fill={"select": "quota"},
    slots=("select", "rewrite", "region", "stop", "cut"),
    usual=("quota", "threshold", "quota+freedave"),
    options={
        option.name: option
        for option in (
            Option("block", None, int, "the model's own"),
            Option("cache", None, str, "none"),
            Option("synchronous_blocks", True, bool),
            Option("eos_policy", "free", str),
            Option("temper_confidence", None, bool, "as the rule was published"),
        )
    },
    binds=True,
)
ENGINES: Mapping[str, Engine] = {engine.kind: engine for engine in (PREFIX, CANVAS)}


def of_slot(slot: str) -> Engine:
    """The engine whose methods have this slot."""
    return next(engine for engine in ENGINES.values() if slot in engine.slots)


def plain(model: Model | Denoiser) -> str:
    """The method that others are compared with on this model: its engine's plain decoding, or the one it asks for."""
    return model.usual or of_model(model).plain


def usual(model: Model | Denoiser) -> tuple[str, ...]:
    """The methods that are compared on this model unless told, plain decoding or its own rule among them."""
    return (model.usual,) if model.usual else of_model(model).usual


def of_model(model: Model | Denoiser) -> Engine:
    """The engine that usually decodes a model."""
    return ENGINES[model.kinds[0]]
