"""Several methods on the same prompts, in one interleaved run, against plain decoding."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from paradec import composition, engines
from paradec.decode.seams import Method
from paradec.errors import MOST_REPEATS, InputError, UnknownName, at_least
from paradec.lm import Decoder, Generation, LanguageModel, Request
from paradec.request import Prompts, names, options_of, texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLD = -1
"""The turn that compiles, before those that are timed."""
COUNTED = ("offered", "accepted", "queries", "drafts")
"""What a finished state has counted, row by row."""
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
    """What `paradec compare` prints and writes.

    `settings` say how many prompts and timed rounds are in it. `asked` says how many were wanted: more than that where
    the run ended early, and then this is the comparison of the first prompts.
    """

    model: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    asked: dict[str, int]
    methods: tuple[Entry, ...]
    generations: dict[str, list[Generation]] = dataclasses.field(repr=False)

    @property
    def partial(self) -> bool:
        """Whether less was measured than was asked for."""
        return any(self.settings[name] != wanted for name, wanted in self.asked.items())

    @property
    def extent(self) -> str:
        """How much was measured, in words."""
        prompts, rounds = self.asked["prompts"], self.asked["repeats"]
        if not self.partial:
            return f"{prompts} prompt{'s' * (prompts != 1)}"
        timed = f", {self.settings['repeats']} of {rounds} round{'s' * (rounds != 1)}" if rounds else ""
        return f"partial: {self.settings['prompts']} of {prompts} prompt{'s' * (prompts != 1)}{timed}"

    def public(self, texts: bool = False) -> dict[str, Any]:
        """The JSON document: everything but the texts; with `texts` also each method's generations."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "generations"}
        methods = [dataclasses.asdict(e) for e in self.methods]
        for row in methods if texts else ():
            row["generations"] = [g.public() for g in self.generations[row["method"]]]
        return fields | {"partial": self.partial, "methods": methods}

    def broken(self) -> list[Entry]:
        """Methods that promise plain decoding's tokens and did not return them."""
        return [e for e in self.methods if e.exact and e.identical < e.total]

    def figure(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Bars of speed-up and tokens per call, saved to `path` if given: `viz.speed_bars`."""
        from paradec import viz

        return viz.speed_bars(self, path)


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that met `compare` when there was something to tell: what was measured is `comparison`."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(f"Interrupted. What was measured is `comparison` of this error; {comparison.extent}.")
        self.comparison = comparison


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one method did of one batch in one turn. All but the seconds is known of the turn that compiles."""

    seconds: float
    rows: list[Generation] = dataclasses.field(default_factory=list)
    stats: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    divergence: dict[str, Any] | None = None


@dataclasses.dataclass
class Runner:
    """One method's decoder and what its runs gave, by batch (its first row) and turn."""

    ask: Request
    decoder: Decoder
    exact: bool
    cells: dict[tuple[int, int], Cell] = dataclasses.field(default_factory=dict)

    def cold(self, starts: Sequence[int]) -> list[Cell]:
        """Of these batches, the runs that compiled."""
        return [self.cells[first, COLD] for first in starts]

    def seconds(self, starts: Sequence[int], rounds: int) -> list[float]:
        """Of these batches, the seconds of each timed round."""
        return [sum(self.cells[first, turn].seconds for first in starts) for turn in range(rounds)]


@dataclasses.dataclass
class ComparisonRun:
    """A comparison under way. It can be reported after any cell, by arithmetic alone: an interrupt leaves no time."""

    lm: LanguageModel
    base: Request
    prompts: Sequence[Any]
    encoded: list[list[int]]
    runners: dict[str, Runner]
    plain: str
    repeats: int

    @property
    def starts(self) -> range:
        """The first row of every batch."""
        return range(0, len(self.encoded), self.base.batch_size)

    def work(self) -> list[tuple[int, int, str]]:
        """Batch, turn and method of every cell, in the order in which they run."""
        return [*itertools.product(self.starts, (COLD, *range(self.repeats)), self.runners)]

    def do(self, first: int, turn: int, name: str) -> None:
        """ComparisonRun one cell. It is there when all of it is done."""
        runner, rows = self.runners[name], range(len(self.encoded))[first : first + self.base.batch_size]
        batch = [self.encoded[row] for row in rows]
        if turn == COLD:
            runner.cells[first, turn] = self._warm_up(name, batch, rows)
        else:
            seconds = self.lm.decode(runner.decoder, batch, runner.ask, rows)[0].seconds
            runner.cells[first, turn] = Cell(seconds)

    def _warm_up(self, name: str, batch: list[list[int]], rows: range) -> Cell:
        """The run that compiles, whose texts and statistics are kept."""
        runner, shown = self.runners[name], [self.lm.shown(self.prompts[row]) for row in rows]
        results, state = self.lm.finish(runner.decoder, batch, runner.ask, rows, shown)
        counted = jax.device_get(state.stats)
        stats = {kind: getattr(counted, kind)[: len(batch)].sum(0) for kind in COUNTED}
        seconds, leaves = results[0].seconds, None
        if name != self.plain and not any(cell.divergence for cell in runner.cells.values()):
            ar = self.runners[self.plain].cells[rows[0], COLD].rows
            leaves = divergence(self.lm, self.encoded, rows, results, ar)
        return Cell(seconds, results, stats, leaves)

    def measured(self) -> tuple[Sequence[int], int] | None:
        """The batches and the rounds that every method has done, as many as make a whole comparison.

        That are the batches with all their rounds, or those and the next one with as many rounds as that has, whichever
        is more. None: not even one batch was decoded by every method.
        """
        has = lambda *cell: all(cell in runner.cells for runner in self.runners.values())
        rounds = [sum(has(first, turn) for turn in (COLD, *range(self.repeats))) - 1 for first in self.starts]
        whole = sum(n == self.repeats for n in rounds)
        more = rounds[whole] if whole < len(rounds) else -1
        if more >= 0 and (not whole or (whole + 1) * more > whole * self.repeats):
            return self.starts[: whole + 1], more
        return (self.starts[:whole], self.repeats) if whole else None

    def report(self, starts: Sequence[int], rounds: int) -> Comparison:
        """The comparison that these batches and so many rounds are."""
        texts = {name: [g for cell in r.cold(starts) for g in cell.rows] for name, r in self.runners.items()}
        size = {"repeats": rounds, "prompts": len(texts[self.plain])}
        return Comparison(
            model=self.lm.name,
            device=device(),
            versions=versions(),
            settings=dataclasses.asdict(self.base) | size | {"dtype": self.lm.model.dtype},
            asked={"prompts": len(self.encoded), "repeats": self.repeats},
            methods=tuple(entry(name, self.runners, self.plain, starts, rounds) for name in self.runners),
            generations=texts,
        )


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
    """Decode `prompts` with every method, plain decoding always among them (`Engine.plain`), and compare.

    Each batch is first decoded once by every method (compilation and warm-up, also the texts compared), then `repeats`
    rounds are timed, methods in turn within a batch, so that a machine's drift meets all of them alike; 0 repeats give
    texts and counts alone. `request` is that of `lm.generate`; `method_args` maps a method's name to its options.
    `track` gets what there is to run, and passes it through: for a progress bar, such as `console.track`. Where it ends
    early, the comparison is partial; and a KeyboardInterrupt comes out as `Interrupted`, which has what was measured,
    once every method has decoded the first batch. Raises `UnknownName` for options of a method that is not compared.
    """
    plain, given, repeats = (
        engines.plain(lm.model),
        texts(prompts),
        at_least("repeats", repeats, 0, MOST_REPEATS),
    )
    wanted = {composition.title(method): method for method in [plain, *names(methods)]}
    args = {name: options_of(own, f"method_args[{name!r}]") for name, own in options_of(method_args).items()}
    for name in args:
        if name not in wanted:
            raise UnknownName("method among those compared", name, wanted)
    base = Request.of(request).within(len(given))
    runners = {}
    for name, method in wanted.items():
        ask = dataclasses.replace(base, method=method)
        exact = composition.promises(method, args.get(name, {}), max(base.every("temperature")))
        runners[name] = Runner(ask, lm.decoder(ask, args.get(name)), exact)
    run = ComparisonRun(lm, base, given, [lm.encode(p, **base.reading) for p in given], runners, plain, repeats)
    try:
        for cell in track(run.work()):
            run.do(*cell)
    except KeyboardInterrupt:
        if (done := run.measured()) is None:
            raise
        raise Interrupted(run.report(*done)) from None
    if (done := run.measured()) is None:
        raise InputError("track ended before every method had decoded one batch; it passes on what it is given.")
    return run.report(*done)


def entry(name: str, runners: dict[str, Runner], plain: str, starts: Sequence[int], rounds: int) -> Entry:
    """Summarise one method against plain decoding."""
    mine, cells, ar = runners[name], runners[name].cold(starts), runners[plain].cold(starts)
    rows, theirs = ([g for cell in some for g in cell.rows] for some in (cells, ar))
    tokens, calls = sum(g.new_tokens for g in rows), sum(g.calls for g in rows)
    spent = mine.seconds(starts, rounds)
    ratios = tuple(a / m for a, m in zip(runners[plain].seconds(starts, rounds), spent, strict=True))
    seconds = statistics.median(spent) if spent else sum(cell.seconds for cell in cells)
    stats = {kind: sum(cell.stats[kind] for cell in cells) for kind in COUNTED}
    offered, accepted = np.atleast_1d(stats["offered"]), np.atleast_1d(stats["accepted"])
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
        identical=sum(g.token_ids == r.token_ids for g, r in zip(rows, theirs, strict=True)),
        total=len(rows),
        first_divergence=next((cell.divergence for cell in cells if cell.divergence), None),
        acceptance_by_depth=tuple(float(a) / max(int(o), 1) for a, o in zip(accepted, offered, strict=True)),
        queries_per_call=float(stats["queries"]) / max(calls, 1),
        draft_calls=int(stats["drafts"]),
        compile_seconds=mine.decoder.compile_seconds,
    )


def divergence(
    lm: LanguageModel, encoded: list[list[int]], rows: Sequence[int], mine: list[Generation], ar: list[Generation]
) -> dict[str, Any] | None:
    """The first of `rows`, numbers of prompts, that leaves plain decoding's text: which, where, and how close the
    target's two best logits are there."""
    for row, mine_, ar_ in zip(rows, mine, ar, strict=True):
        a, r = mine_.token_ids, ar_.token_ids
        if a != r:
            at = next((i for i, (x, y) in enumerate(zip(a, r, strict=False)) if x != y), min(len(a), len(r)))
            return {"row": row, "position": at, "top2_gap": top2_gap(lm, [*encoded[row], *r[:at]])}
    return None


def top2_gap(lm: LanguageModel, text: list[int]) -> float | None:
    """How far apart the target's two best logits are behind a text. None for a canvas, which is seen from both ends."""
    if not engines.of_model(lm.model).scores:
        return None
    row = jnp.asarray([text], jnp.int32)
    best = jax.jit(lambda weights, row: jnp.sort(lm.model.forward(weights, row).logits[0, -1])[-2:])(lm.params, row)
    return float(best[1] - best[0])


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
