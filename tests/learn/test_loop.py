"""The loop: what it writes, where it goes on, when it stops."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import mesh, params
from paradec.data import chain
from paradec.data.synthetic import Markov
from paradec.errors import Diverged, InputError, Stopped
from paradec.learn import loop
from paradec.learn.loop import Run
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.report import Work
from paradec.learn.step import Loss, Plan, Share
from paradec.testing import tiny_transformer

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step

PLAN = Plan(steps=12, warmup=2, learning_rate=3e-3)
CHAIN = Markov(vocab_size=16, length=13, rows=64)


def model():
    return tiny_transformer(vocab_size=16)


def fit(out, plan=PLAN, data=None, objective=None, config=None, held=None, **run):
    structure, weights = model()
    trainable, frozen = params.partition(weights, lambda name: True)
    objective = objective or NextToken(structure)
    held = held or chain.HeldOut(Markov(16, 13, 8, seed=0), 8)
    return loop.fit(
        Run(out=out, **({"save_every": 4, "evaluate_every": 6} | run)), plan, objective, trainable, frozen,
        data or chain.batches(CHAIN, 8, threads=2), key=jax.random.key(1), config=config or {"plan": {"steps": 12}},
        evaluate=loop.Evaluator(plan, objective, frozen, held), work=Work(tokens=96, flops=1e6),
    )  # fmt: skip


def lines(out):
    """The metrics without the clock."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in read]


def same(a, b):
    plain = lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
    return all(np.array_equal(plain(x), plain(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class Interrupted:
    """Data that asks the process to go after so many batches, as a scheduler would."""

    def __init__(self, data, after):
        self.data, self.after = data, after

    def __iter__(self):
        self.inner, self.count = iter(self.data), 0
        return self

    def __next__(self):
        self.count += 1
        if self.count == self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.inner)

    def get_state(self):
        return self.inner.get_state()

    def set_state(self, state):
        self.inner.set_state(state)


class Deaf(Interrupted):
    """Data that forgets, at every batch, what was compiled before."""

    def __init__(self, data, compiled):
        super().__init__(data, 0)
        self.compiled = compiled

    def __next__(self):
        self.compiled.clear()
        return super().__next__()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        out = tmp_path_factory.mktemp("straight")
        return fit(out), lines(out)


def test_it_learns_and_writes_a_line_a_step(straight):
    _, seen = straight
    steps = [line for line in seen if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["step"] for line in seen if "evaluation" in line] == [6, 12]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.05
    assert all({"loss", "accuracy", "weight", "gradient_norm", "learning_rate"} <= set(line) for line in steps)


def test_a_finished_run_whose_log_was_lost_is_evaluated_anew(tmp_path, straight):
    """Two trainers on one folder, which nothing kept apart once, left such logs."""
    state, seen = straight
    fit(tmp_path)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    torn = "\n".join(line[: len(line) - 9 * (n % 2)] for n, line in enumerate(whole.splitlines()))
    for left in (whole[: len(whole) // 2], torn):
        file.write_text(left)
        assert same(fit(tmp_path), state)
        assert [line for line in lines(tmp_path) if "evaluation" in line][-1] == seen[-1]
    file.unlink()
    assert same(fit(tmp_path), state) and lines(tmp_path)[-1] == seen[-1]


def test_the_clock_is_in_every_line(tmp_path):
    fit(tmp_path, dataclasses.replace(PLAN, steps=3))
    timed = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in timed if "time" in line]
    assert len(times) == 3
    for spent in times:
        assert {"turn", "input", "dispatch", "wait", "tokens_per_second"} <= set(spent)
        assert "utilisation" not in spent  # a CPU's peak is not known
        assert spent["turn"] > 0 and spent["input"] + spent["dispatch"] <= spent["turn"] + spent["wait"] + 10


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_run_that_is_told_to_go_saves_and_goes_on(tmp_path, straight, after):
    data = chain.batches(CHAIN, 8, threads=2)
    with pytest.raises(Stopped, match=f"step {after} is saved"):
        fit(tmp_path, data=Interrupted(data, after))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    final = fit(tmp_path)
    assert same(final, straight[0]) and lines(tmp_path) == straight[1]


class HeldBack(list):
    """Held-out batches, at the `after`th of which, over all evaluations, the process is asked to go."""

    after, seen = 0, 0

    def __iter__(self):
        for batch in super().__iter__():
            self.seen += 1
            if self.seen == self.after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


# The first batch of all is the one that is compiled by; then each evaluation has three.
@pytest.mark.parametrize(("after", "at"), [(2, 6), (6, 12), (7, 12)])
def test_an_evaluation_is_given_up_when_the_run_must_go(tmp_path, straight, after, at):
    """Whoever goes on makes up for it."""
    batches = list(chain.HeldOut(Markov(16, 13, 24, seed=0), 8))
    fit(tmp_path / "straight", held=batches)
    held = HeldBack(batches)
    held.after = after
    with pytest.raises(Stopped, match=f"step {at} is saved"):
        fit(tmp_path / "run", held=held)
    assert held.seen == after
    assert same(fit(tmp_path / "run", held=batches), straight[0])
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def test_all_is_compiled_before_the_second_step(tmp_path):
    """A program compiled between a signal and a save, for minutes where the model is large, would outlast the patience
    of a scheduler."""
    compiled = []
    hear = lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        fit(tmp_path, dataclasses.replace(PLAN, steps=2), data=Deaf(chain.batches(CHAIN, 8, threads=2), compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert not compiled and [line["step"] for line in lines(tmp_path) if "evaluation" in line] == [2]


def test_the_data_position_matters(tmp_path, straight, monkeypatch):
    """The mutant of the law above: without its position the data starts anew, and the end is another."""
    with pytest.raises(Stopped):
        fit(tmp_path, data=Interrupted(chain.batches(CHAIN, 8, threads=2), 5))
    monkeypatch.setattr(loop, "_go_on", lambda batches, position: None)
    assert not same(fit(tmp_path).trainable, straight[0].trainable)


def test_packed_data_goes_on_in_its_own_lane(tmp_path):
    """Positions of other lanes are passed over; where there is none for this one, the run is refused."""

    class Placed:
        def get_state(self):
            return {"at": 0, "lane": [1, 2]}

        def set_state(self, state):
            self.state = state

    data, one, two = Placed(), {"at": 3, "lane": [0, 2]}, {"at": 4, "lane": [1, 2]}
    loop._go_on(data, [one, one, two, two])
    assert data.state == two
    for positions in ([one, one], [{"at": 3}], [{"at": 3, "lane": [1, 4]}] * 4):
        with pytest.raises(InputError, match=f"trained by {len(positions)} processes"):
            loop._go_on(data, positions)


def test_a_finished_run_stays_finished(tmp_path):
    first, written = fit(tmp_path), lines(tmp_path)
    again = fit(tmp_path)
    assert same(first, again) and lines(tmp_path) == written


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    fit(tmp_path, config={"plan": {"steps": 12, "clip": 1.0}, "seed": 0})
    other = {"plan": {"steps": 12, "clip": 0.5}, "seed": 0}
    with pytest.raises(InputError, match=r"plan\.clip: 1\.0 → 0\.5"):
        fit(tmp_path, config=other)
    assert int(fit(tmp_path, config=other, changed=True).step) == 12
    assert [(line["step"], line["config"]["plan"]["clip"]) for line in lines(tmp_path) if "config" in line] == [
        (0, 1.0), (12, 0.5),
    ]  # fmt: skip


def test_other_frozen_weights_are_another_run(tmp_path):
    """No checkpoint keeps them, so what was learned on some would go on with others."""
    structure, weights = model()
    sides = params.partition(weights, lambda name: name == "norm")
    ask = {"key": jax.random.key(1), "config": {}}
    go = lambda frozen, **run: loop.fit(
        Run(out=tmp_path, **run), dataclasses.replace(PLAN, steps=2), NextToken(structure), sides[0], frozen,
        chain.batches(CHAIN, 8), **ask,
    )  # fmt: skip
    first, other = go(sides[1]), sides[1].replace(embed=-sides[1].embed)
    assert same(first, go(sides[1]))
    with pytest.raises(InputError, match=r"frozen_weights: \w+ → \w+"):
        go(other)
    assert int(go(other, changed=True).step) == 2


@dataclasses.dataclass(frozen=True)
class Explodes:
    """Next-token prediction whose loss is no number when the batch begins with `token`."""

    inner: NextToken
    token: int

    def __call__(self, trainable, frozen, batch, key):
        loss = self.inner(trainable, frozen, batch, key)
        bad = jnp.where(jnp.any(batch.token[:, 0] == self.token), jnp.nan, 0.0)
        return Loss(loss.total + bad, loss.weight, loss.sums)


def test_a_loss_that_is_no_number_stops_after_a_last_checkpoint(tmp_path):
    structure, _ = model()
    batches = iter(chain.batches(CHAIN, 8, threads=2))
    first = [set(next(batches).token[:, 0].tolist()) for _ in range(12)]
    token, number = next((t, n) for n in range(2, 9) for t in first[n] if not any(t in f for f in first[:n]))
    with pytest.raises(Diverged, match=f"step {number + 1} is not finite"):
        fit(tmp_path, objective=Explodes(NextToken(structure), token))
    losses = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    assert np.isnan(losses[-1]) and np.isfinite(losses[:-1]).all() and len(losses) == number + 1
    final = fit(tmp_path, objective=NextToken(structure))  # goes on behind the batch that broke it
    assert int(final.step) == 12 and all(np.isfinite(x).all() for x in jax.tree.leaves(final.trainable))


class Solves(NextToken):
    """An objective whose solver leaves this residual after so many steps."""

    residual: ClassVar[float] = 0.0

    def __call__(self, *args):
        loss = super().__call__(*args)
        return loss._replace(sums=loss.sums | {"solver_residual": Share(jnp.float32(self.residual), jnp.float32(1))})


@pytest.mark.parametrize(("residual", "said"), [(1e-4, None), (0.01, "warns"), (2.0, "stops"), (np.nan, "stops")])
def test_a_solver_that_does_not_converge_is_told(residual, said, tmp_path, capsys):
    objective = type("Solves", (Solves,), {"residual": residual})(model()[0])
    if said == "stops":
        with pytest.raises(Diverged, match=f"solver_residual of step 1 is {residual:g}.*saved as step"):
            fit(tmp_path, objective=objective)
        return
    fit(tmp_path, objective=objective)
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("Step 1: solver_residual is 0.01, above 0.001") == (said == "warns")


def test_data_that_ends(tmp_path):
    three = [next(b) for b in [iter(chain.batches(CHAIN, 8, threads=0))] for _ in range(3)]

    class Short:
        def __iter__(self):
            self.left = iter(three)
            return self

        def __next__(self):
            return next(self.left)

        def get_state(self):
            return 0

    with pytest.raises(InputError, match="ended before step 4"):
        fit(tmp_path, data=Short())


@pytest.mark.parametrize("rules", [mesh.TENSOR, mesh.FSDP], ids=["tensor", "fsdp"])
def test_eight_devices_equal_one(tmp_path, straight, rules):
    """Also: what eight devices saved, one goes on with."""
    structure, _ = model()
    grid = mesh.make_mesh(4, 2)

    def spread(out, **rest):
        weights = jax.device_put(model()[1], params.shardings(structure.specs(), grid, rules))
        with mesh.use(grid, rules):
            return loop.fit(
                Run(out=out, save_every=4, evaluate_every=6), PLAN, NextToken(structure), weights,
                params.partition(weights, lambda n: True)[1], chain.batches(CHAIN, 8, threads=2),
                key=jax.random.key(1), config={"plan": {"steps": 12}}, **rest,
            )  # fmt: skip

    state = spread(tmp_path / "eight")
    for x, y in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(straight[0].trainable), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    moments = [x for x in jax.tree.leaves(state.optimiser) if x.ndim > 2]
    assert moments and all(not x.sharding.is_fully_replicated for x in moments)
    losses = [line["loss"] for line in lines(tmp_path / "eight") if "loss" in line]
    np.testing.assert_allclose(losses, [line["loss"] for line in straight[1] if "loss" in line], atol=1e-5)
    assert same(jax.device_get(fit(tmp_path / "eight").trainable), jax.device_get(state.trainable))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("save_every", 0, "save_every"), ("keep_last", 0, "keep_last"), ("evaluate_every", -1, "evaluate_every"),
        ("log", ("tensorbord",), "one of tensorboard, wandb"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be(field, value, words):
    with pytest.raises(InputError, match=words):
        Run(**{field: value})
