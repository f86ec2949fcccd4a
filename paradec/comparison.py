"""Several methods on the same prompts, in one interleaved run, against plain decoding."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradec import catalog
from paradec.errors import MOST_REPEATS, UnknownName, at_least
from paradec.lm import Decoder, Generation, LanguageModel, Request
from paradec.request import Prompts, names, options_of, texts
from paradec.types import Method

COLD = -1
"""The turn that compiles, before those that are timed."""
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method's row of a comparison. `speedup` is the median over repeats of plain decoding's seconds over the
    method's (None without repeats: the one run of each then says nothing about speed). Plain decoding is `ar`; of a
    diffusion model, one position a call.

    `identical` counts rows equal to plain decoding's, token for token; `first_divergence` names the first that is not,
    the new token where it leaves, and the gap between the target's two best logits there (a rounding tie shows as
    about 0; None for a diffusion model).
    `acceptance_by_depth[d]` is how often a token drafted at depth d + 1 was kept, of the calls that offered one.
    """

    method: str
    exact: bool
    tokens_per_call: float
    calls: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    speedup: float | None
    speedups: tuple[float, ...]
    identical: int
    total: int
    first_divergence: dict[str, Any] | None
    acceptance_by_depth: tuple[float, ...]
    queries_per_call: float
    draft_calls: int
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `paradec compare` prints and writes."""

    model: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    methods: tuple[Entry, ...]
    generations: dict[str, list[Generation]] = dataclasses.field(repr=False)

    def public(self) -> dict[str, Any]:
        """The JSON document: everything but the texts."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "generations"}
        return fields | {"methods": [dataclasses.asdict(e) for e in self.methods]}

    def broken(self) -> list[Entry]:
        """Methods that promise plain decoding's tokens and did not return them."""
        return [e for e in self.methods if e.exact and e.identical < e.total]


@dataclasses.dataclass
class Runner:
    """One method's decoder and what its runs gave."""

    ask: Request
    decoder: Decoder
    exact: bool
    seconds: list[float] = dataclasses.field(default_factory=list)  # per repeat
    first: float = 0.0  # of the run whose texts are kept
    rows: list[Generation] = dataclasses.field(default_factory=list)
    stats: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def add(self, state: Any, rows: int) -> None:
        """Count the statistics of a finished batch (its first `rows` rows)."""
        s = jax.device_get(state.stats)
        for name in ("offered", "accepted", "queries", "drafts"):
            total = getattr(s, name)[:rows].sum(0)
            self.stats[name] = self.stats.get(name, 0) + total


def compare(
    lm: LanguageModel,
    prompts: Prompts,
    methods: str | Method | Iterable[str | Method],
    *,
    repeats: int = 3,
    method_args: Mapping[str, Mapping[str, Any] | None] | None = None,
    track: Track = iter,
    **request: Any,
) -> Comparison:
    """Decode `prompts` with every method, plain decoding always among them (`catalog.reference`), and compare.

    Each batch is first decoded once by every method (compilation and warm-up, also the texts compared), then `repeats`
    rounds are timed, methods in turn within a batch, so that a machine's drift meets all of them alike; 0 repeats give
    texts and counts alone. `request` is that of `lm.generate`; `method_args` maps a method's name to its options.
    `track` gets what there is to run, and passes it through: for a progress bar, such as `console.track`. Raises
    `UnknownName` for options of a method that is not compared.
    """
    plain, given, repeats = catalog.reference(lm.model), texts(prompts), at_least("repeats", repeats, 0, MOST_REPEATS)
    wanted = {catalog.title(method): method for method in [plain, *names(methods)]}
    args = {name: options_of(own, f"method_args[{name!r}]") for name, own in options_of(method_args).items()}
    for name in args:
        if name not in wanted:
            raise UnknownName("method among those compared", name, wanted)
    base = Request.of(request).within(len(given))
    runners = {}
    for name, method in wanted.items():
        ask = dataclasses.replace(base, method=method)
        exact = catalog.promises(method, args.get(name, {}), base.temperature)
        runners[name] = Runner(ask, lm.decoder(ask, args.get(name)), exact, seconds=[0.0] * repeats)
    turns = (COLD, *range(repeats))
    encoded = [lm.encode(p, **base.reading) for p in given]
    shown = [lm.shown(p) for p in given]
    for first, turn, name in track([*itertools.product(range(0, len(encoded), base.batch_size), turns, runners)]):
        batch, runner = encoded[first : first + base.batch_size], runners[name]
        rows = range(first, first + len(batch))
        if turn == COLD:
            warm_up(lm, runner, batch, rows, [shown[r] for r in rows])
        else:
            runner.seconds[turn] += lm.decode(runner.decoder, batch, runner.ask, rows)[0].seconds
    return Comparison(
        model=lm.name,
        device=device(),
        versions=versions(),
        settings=dataclasses.asdict(base) | {"repeats": repeats, "prompts": len(given), "dtype": lm.model.dtype},
        methods=tuple(entry(lm, encoded, name, runners, plain) for name in runners),
        generations={name: r.rows for name, r in runners.items()},
    )


def warm_up(
    lm: LanguageModel, runner: Runner, batch: list[list[int]], rows: Sequence[int], shown: Sequence[str]
) -> None:
    """The run that compiles, whose texts and statistics are kept."""
    results, state = lm.finish(runner.decoder, batch, runner.ask, rows, shown)
    runner.add(state, len(batch))
    runner.rows += results
    runner.first += results[0].seconds


def entry(lm: LanguageModel, encoded: list[list[int]], name: str, runners: dict[str, Runner], plain: str) -> Entry:
    """Summarise one method against plain decoding."""
    mine, ar = runners[name], runners[plain]
    tokens, calls = sum(g.new_tokens for g in mine.rows), sum(g.calls for g in mine.rows)
    differ = [b for b, (g, r) in enumerate(zip(mine.rows, ar.rows, strict=True)) if g.token_ids != r.token_ids]
    ratios = tuple(a / m for a, m in zip(ar.seconds, mine.seconds, strict=True))
    seconds = statistics.median(mine.seconds) if mine.seconds else mine.first
    offered, accepted = np.atleast_1d(mine.stats["offered"]), np.atleast_1d(mine.stats["accepted"])
    return Entry(
        method=name,
        exact=mine.exact,
        tokens_per_call=tokens / max(calls, 1),
        calls=calls,
        new_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        speedup=statistics.median(ratios) if ratios else None,
        speedups=ratios,
        identical=len(mine.rows) - len(differ),
        total=len(mine.rows),
        first_divergence=divergence(lm, encoded, differ[0], mine.rows, ar.rows) if differ else None,
        acceptance_by_depth=tuple(float(a) / max(int(o), 1) for a, o in zip(accepted, offered, strict=True)),
        queries_per_call=float(mine.stats["queries"]) / max(calls, 1),
        draft_calls=int(mine.stats["drafts"]),
        compile_seconds=mine.decoder.compile_seconds,
    )


def divergence(
    lm: LanguageModel, encoded: list[list[int]], b: int, mine: list[Generation], ar: list[Generation]
) -> dict[str, Any]:
    """Where row b leaves `ar`, and how close the target's two best logits are there."""
    a, r = mine[b].token_ids, ar[b].token_ids
    at = next((i for i, (x, y) in enumerate(zip(a, r, strict=False)) if x != y), min(len(a), len(r)))
    text = jnp.asarray([[*encoded[b], *r[:at]]], jnp.int32)
    if catalog.denoises(lm.model):  # its next token depends on the canvas behind it too
        return {"row": b, "position": at, "top2_gap": None}
    best = jax.jit(lambda weights, text: jnp.sort(lm.model.forward(weights, text).logits[0, -1])[-2:])(lm.params, text)
    return {"row": b, "position": at, "top2_gap": float(best[1] - best[0])}


def device() -> str:
    """The device decoding runs on, in words."""
    d = jax.devices()[0]
    many = f" x{jax.device_count()}" if jax.device_count() > 1 else ""
    return f"{'cpu' if d.platform == 'cpu' else d.device_kind}{many}"


def versions() -> dict[str, str]:
    """Versions of what decides numbers and speed."""
    import platform

    packages = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "numpy")}
    return {"python": platform.python_version(), **packages}
