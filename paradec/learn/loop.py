"""The training loop: batches in, steps, metrics, checkpoints out. It knows no objective, no model and no data.

A run that was killed is started again by the same command: it goes on from its last whole checkpoint, and on one device
reaches the same bits as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int, PyTree

from paradec import config as configs
from paradec import mesh, params
from paradec.errors import Diverged, InputError, Stopped, check_least
from paradec.io import run_lock, writers
from paradec.io.checkpoint import Checkpoints, digests
from paradec.learn import step as steps
from paradec.learn.report import Clock, RunReport, Work
from paradec.learn.step import Loss, Objective, Plan, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run keeps what it makes, and how often it looks up."""

    out: Path = Path("out/run")
    """Folder of the checkpoints and of metrics.jsonl. A run that is already there goes on."""
    save_every: int = 500
    """Steps between two checkpoints."""
    evaluate_every: int = 500
    """Steps between two evaluations; 0: at the end alone."""
    keep_last: int = 2
    """Latest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints kept for their evaluation loss."""
    changed: bool = False
    """Go on although the configuration differs from the checkpoint's."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides metrics.jsonl (extra `log`)."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value of another kind or out of its range, `ResourceError` for a log whose package
        is lacking."""
        check_least(self, {"save_every": 1, "evaluate_every": 0, "keep_last": 1, "keep_best": 0})
        writers.check(self.log)


class Data(Protocol):
    """What yields batches: every `iter` starts anew, with a position that can be read and set (a grain dataset)."""

    def __iter__(self) -> Any: ...


def fit(
    run: Run,
    plan: Plan,
    objective: Objective,
    trainable: PyTree,
    frozen: PyTree,
    data: Data,
    *,
    key: jax.Array,
    config: Mapping[str, Any],
    evaluate: Evaluator | None = None,
    work: Work = Work(),
) -> TrainState:
    """Train until `plan.steps`, from the newest whole checkpoint in `run.out` or from the beginning.

    `data` yields the rows of each batch that this process holds (`mesh.held`), as numpy arrays. `config` is the whole
    configuration as JSON; a checkpoint made with another, or on other frozen weights, is refused, with the differences,
    unless `run.changed`.
    SIGTERM (and a preemption notice, under `jax.distributed`) gives up an evaluation, saves and raises `Stopped`, so
    that nobody takes half-trained weights for the result. All programs are compiled before the second step: from then
    on a save waits for none. Raises `Diverged` after a last checkpoint when loss or gradient is not finite.
    """
    trainable, frozen, key = (_on_mesh(tree) for tree in (trainable, steps.narrowed(plan, frozen), key))
    config = dict(config) | _told_by(frozen)
    abstract = abstract_state(plan, trainable, key)
    make = jax.jit(partial(steps.init, plan), out_shardings=jax.tree.map(lambda x: x.sharding, abstract))
    batches = iter(data)
    folder = run.out / "checkpoints"
    with run_lock.alone(run.out), Checkpoints(folder, run.keep_last, run.keep_best) as kept, _Terminated() as asked:
        found = kept.restore(abstract, partial(_same_config, run, config))
        if found is None:
            state, first = make(trainable, key), 0
            digests(state)  # compiled here: the first save may be one that a scheduler waits for
        else:
            state, first = found.state, found.step
            _go_on(batches, found.positions)
        with (
            writers.opened(run.out, run.log, first, config) as logs,
            RunReport(logs, first, plan.steps, work) as report,
        ):
            turn = _Turn(run, plan, objective, frozen, batches, config, evaluate, kept, report, asked)
            return turn.all(state, first)


@dataclasses.dataclass
class _Turn:
    """What every turn of the loop needs."""

    run: Run
    plan: Plan
    objective: Objective
    frozen: PyTree
    batches: Any
    config: dict[str, Any]
    evaluate: Evaluator | None
    kept: Checkpoints
    report: RunReport
    asked: _Terminated
    warned: set[str] = dataclasses.field(default_factory=set)

    def all(self, state: TrainState, first: int) -> TrainState:
        """Every step that is left. Metrics are fetched one step late, so that the device never waits for the host."""
        if self.evaluate and first < self.plan.steps:
            self.evaluate.prepare(state)
        if first and self.due(first) and not mesh.first_says(writers.evaluated(self.run.out, first) is not None):
            self.look(first, state)  # it was given up, or its log was lost
        n, late, stop = first, None, False
        for n in range(first + 1, self.plan.steps + 1):
            clock = Clock()
            with clock("input"):
                batch = mesh.whole(_next(self.batches, n))
            with clock("dispatch"):
                state, metrics = steps.step(self.plan, self.objective, state, self.frozen, batch)
            self.asked.waits = True
            self.tell(late, state, n)
            late = (n, metrics, clock)
            stop = self.stopping(n)
            if n == self.plan.steps or self.due(n) or stop or n % self.run.save_every == 0:
                self.tell(late, state, n)  # what the checkpoint holds must be in the log before it
                late = None
                self.save(n, state, self.look(n, state) if self.due(n) and not stop else None)
                stop = stop or self.asked.event.is_set()
            if stop:
                break
        self.kept.wait()
        if stop or self.asked.event.is_set():
            raise Stopped(f"Asked to stop: step {n} is saved. Start the same command again to go on.")
        return state

    def tell(self, late: tuple | None, state: TrainState, now: int) -> None:
        """RunReport the step before, once its numbers are there."""
        if late is None:
            return
        n, metrics, clock = late
        with clock("wait"):
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        self.report.step(n, values, clock)
        self.check(n, values, now, state)
        if not values["finite"]:
            self.save(now, state, None)
            self.kept.wait()
            raise Diverged(
                f"Loss or gradient of step {n} is not finite. The weights from before it are saved as step {now} in "
                f"{self.run.out}; lower the learning rate, or start again to go on past this batch."
            )

    def check(self, n: int, values: dict[str, float], now: int, state: TrainState) -> None:
        """Say it once where a metric is above its first limit; above its second, save and raise `Diverged`."""
        for name, (warn, most) in getattr(self.objective, "limits", {}).items():
            found = values.get(name, 0.0)
            if found > warn and name not in self.warned:
                self.warned.add(name)
                self.report.say(
                    f"Step {n}: {name} is {found:.3g}, above {warn:g}; the run ends where it exceeds {most:g}."
                )
            if not found <= most:  # NaN too
                self.save(now, state, None)
                self.kept.wait()
                raise Diverged(
                    f"{name} of step {n} is {found:.3g}, above {most:g}: what was computed is not what the model says. "
                    f"The weights are saved as step {now} in {self.run.out}; lower the learning rate, or solve exactly."
                )

    def due(self, n: int) -> bool:
        """Whether an evaluation belongs to this step."""
        every = self.run.evaluate_every
        return self.evaluate is not None and (n >= self.plan.steps or (every > 0 and n % every == 0))

    def look(self, n: int, state: TrainState) -> float | None:
        """The loss of an evaluation, which is written down; None where it is given up, because the job must go."""
        values = self.evaluate(state, self.asked.event.is_set)
        if values is None:
            return None
        self.report.evaluated(n, values)
        return values["loss"]

    def save(self, n: int, state: TrainState, loss: float | None) -> None:
        self.kept.save(n, state, self.batches.get_state(), self.config, loss)

    def stopping(self, n: int) -> bool:
        """Whether this machine, or any of the job's, has been told to go."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(n)
        return self.asked.event.is_set()


class Evaluator:
    """The objective's loss and sums over held-out `batches`, with the averaged weights where there are.

    Batch i is always seen with the same noise, key i.
    """

    def __init__(self, plan: Plan, objective: Objective, frozen: PyTree, batches: Iterable[PyTree]):
        @jax.jit
        def score(weights: PyTree, frozen: PyTree, batch: PyTree, number: Int[Array, ""]) -> Loss:
            weights, frozen = steps.narrowed(plan, weights), steps.narrowed(plan, frozen)
            return objective(weights, frozen, batch, jax.random.key(number))

        self._score, self._frozen, self._batches = score, frozen, batches

    def prepare(self, state: TrainState) -> None:
        """Compile, by the first batch alone. Raises `InputError` where there is none."""
        _means(list(itertools.islice(self._scored(state), 1)))

    def __call__(self, state: TrainState, asked: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The means, `loss` among them; None where it was `asked` to stop before all was scored."""
        total: list[Loss] = []
        for sums in self._scored(state):
            total.append(sums)
            jax.block_until_ready(total[-2:][0])  # one batch ahead of the device, so that it can be stopped
            if asked():
                return None
        return _means(total)

    def _scored(self, state: TrainState) -> Iterator[Loss]:
        for i, batch in enumerate(self._batches):
            yield self._score(state.learned, self._frozen, mesh.whole(batch), np.int32(i))


def _means(total: Sequence[Loss]) -> dict[str, float]:
    if not total:
        raise InputError("There is nothing to evaluate on: the held-out data has not one whole batch.")
    whole_set = jax.tree.map(lambda *parts: np.sum(parts, dtype=np.float64), *jax.device_get(total))
    return {name: float(mean) for name, mean in whole_set.means().items()}


def _next(batches: Iterator[PyTree], n: int) -> PyTree:
    try:
        return next(batches)
    except StopIteration:
        raise InputError(f"The data ended before step {n}: repeat it, or ask for fewer steps.") from None


def _go_on(batches: Any, positions: Sequence[Any]) -> None:
    """Set the data to where the processes had been: each to where its own lane had been (`mesh.lane`)."""
    lane = lambda position: position.get("lane") if isinstance(position, Mapping) else None
    here = lane(batches.get_state())
    mine = [position for position in positions if lane(position) == here]
    if not mine or any(position != mine[0] for position in mine):
        raise InputError(
            f"This run was trained by {len(positions)} processes, each at its own place in packed data, and there are "
            f"{jax.process_count()} now. Start it with {len(positions)}, on the same mesh."
        )
    try:
        batches.set_state(mine[0])
    except Exception as error:  # grain raises many kinds
        raise InputError(f"The data cannot go on where the checkpoint left it ({error}); it has changed.") from error


def _told_by(frozen: PyTree) -> dict[str, str]:
    """A hash of the weights that no checkpoint keeps."""
    hashes = [hash_.tolist() for hash_ in jax.tree.leaves(jax.device_get(digests(frozen)))]
    return {"frozen_weights": hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]} if hashes else {}


def _same_config(run: Run, mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    changes = configs.differences(saved, mine)
    if changes and not run.changed:
        raise InputError(
            f"The run in {run.out} was made with another configuration:\n"
            + "\n".join(f"  {line}" for line in changes)
            + "\nGive it another folder (--run.out), or pass --run.changed to go on with the new one."
        )


def abstract_state(plan: Plan, trainable: PyTree, key: Any) -> TrainState:
    """The first state without its numbers, laid out; `trainable` and `key` may be without them too.

    Moments and averages lie like the weight whose name ends theirs; everything else is on every device.
    """
    abstract = jax.eval_shape(partial(steps.init, plan), trainable, key)
    place, everywhere = mesh.current(), _everywhere()
    like = {params.name(path): leaf for path, leaf in jax.tree.leaves_with_path(trainable)}

    def lie(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        parts = params.name(path).split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((like[name] for name in names if name in like and like[name].shape == leaf.shape), None)
        there = everywhere if found is None or place is None else found.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

    return jax.tree.map_with_path(lie, abstract)


def _everywhere() -> jax.sharding.Sharding:
    place = mesh.current()
    return SingleDeviceSharding(jax.devices()[0]) if place is None else NamedSharding(place.mesh, PartitionSpec())


def _on_mesh(tree: PyTree) -> PyTree:
    """The tree, with whatever is not laid out on the mesh yet put on all of it."""

    def put(x: Any) -> Any:
        if isinstance(getattr(x, "sharding", None), NamedSharding):
            return x
        if jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):  # no device_put of jax sends one everywhere
            return jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(x))), impl=jax.random.key_impl(x))
        return jax.device_put(x, _everywhere())

    return jax.tree.map(put, tree)


class _Terminated:
    """Remembers SIGTERM while it is open, so that a run can save before it goes."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.waits = False
        """Whether there is anything to save: until then `guard.Asked` need not wait for a program to be compiled."""

    def __call__(self, *_: Any) -> None:
        self.event.set()

    def __enter__(self) -> _Terminated:
        self._before = None
        if threading.current_thread() is threading.main_thread() and not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
