"""One training step: a pure function of state and batch that knows no objective, no model and no data.

An objective is `loss(trainable, frozen, batch, key) -> (total, weight, sums)`: a sum over what the batch teaches, how
much that was (tokens, say), and further sums to report, each with what it is divided by. Sums, because micro-batches
and hosts with uneven masks then add up to the loss of the whole batch, which means of means do not. One that changes
over the run has `at(step)`, which returns the objective of that step; one that must know the whole batch before it sees
a part of it has `over(frozen, batch)`, which returns the objective of that batch's parts; one with `limits` bounds what
it reports: name → (a run warns above this, and stops above that). Source of what is trained:
`params.partition`, whose gaps (None) are invisible to gradients, optimiser, averages and checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int32, PyTree

from paradec import params, struct
from paradec.errors import InputError, check_fields, check_kinds


class Share(NamedTuple):
    """A sum, and what it is divided by once all micro-batches, hosts and batches are added up."""

    sum: Float[Array, ""]
    of: Float[Array, ""]


class Loss(NamedTuple):
    """What an objective returns: parts that can be added up, leaf by leaf."""

    total: Float[Array, ""]
    weight: Float[Array, ""]
    sums: dict[str, Share]

    def means(self) -> dict[str, Float[Array, ""]]:
        """The loss by its weight, and every sum by its own; 0 where there was nothing to count."""
        every = self.sums | {"loss": Share(self.total, self.weight)}
        return {name: share.sum / jnp.maximum(share.of, 1e-9) for name, share in every.items()}


Objective = Callable[[PyTree, PyTree, PyTree, jax.Array], Loss]


@struct.dataclass
class TrainState:
    """All that a training run is, but for its data: what a checkpoint holds."""

    step: Int32[Array, ""]
    trainable: PyTree  # float32 master weights; None where frozen
    optimiser: PyTree
    average: PyTree | None  # exponential moving average of the trainable weights
    key: jax.Array  # folded with the step, never consumed

    @property
    def learned(self) -> PyTree:
        """The weights to evaluate and to export: their average, where one is kept."""
        return self.trainable if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run learns: everything about its steps that is not data, model or objective."""

    steps: int = 1000
    """Steps to learn for."""
    learning_rate: float = 3e-4
    """The peak."""
    warmup: int = 100
    """Steps of linear rise from 0."""
    decay: str = "cosine"
    """After the warm-up: cosine or linear to `floor`, constant, or wsd (constant, then linear over the last fifth)."""
    floor: float = 0.1
    """Where the decay ends, as a fraction of the peak."""
    weight_decay: float = 0.1
    """Of matrices alone (AdamW), embeddings and vocabulary heads among them."""
    spared: tuple[str, ...] = ("norm", "bias", "modulation")
    """Weights whose names end so do not decay: vectors, which are stacked over layers. Nor do those with one axis."""
    beta1: float = 0.9
    """Decay of the mean of gradients (AdamW)."""
    beta2: float = 0.95
    """Decay of the mean of their squares."""
    clip: float = 1.0
    """Largest global norm of a gradient; 0 is off."""
    micro: int = 1
    """Micro-batches that one step adds up."""
    compute: str = "float32"
    """Dtype of the forward and backward pass; master weights, gradients, optimiser and routers stay float32."""
    average: float = 0.0
    """Decay of the moving average of the weights; 0 is off."""
    faster: tuple[tuple[str, float], ...] = ()
    """Weights whose names begin so learn at that multiple of the rate."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value of another kind, or out of its range."""
        check_kinds(self)
        above = lambda x: (0 < x < math.inf, "above 0 and finite")
        least = lambda x, off="": (0 <= x < math.inf, f"0{off} or more, and finite")
        decay = lambda x, off="": (0 <= x < 1, f"at least 0{off} and below 1")
        wanted = {
            "steps": (0 <= self.steps < 2**31, "0 or more, and below 2**31"),
            "learning_rate": above(self.learning_rate),
            "warmup": (0 <= self.warmup <= self.steps, f"between 0 and steps ({self.steps})"),
            "decay": (self.decay in DECAYS, f"one of {', '.join(DECAYS)}"),
            "floor": (0 <= self.floor <= 1, "between 0 and 1"),
            "weight_decay": least(self.weight_decay),
            "spared": (all(self.spared), "ends of names, none of them empty"),
            "beta1": decay(self.beta1),
            "beta2": decay(self.beta2),
            "clip": least(self.clip, " (off)"),
            "micro": (self.micro >= 1, "at least 1"),
            "compute": (self.compute in COMPUTE, f"one of {', '.join(COMPUTE)}"),
            "average": decay(self.average, " (off)"),
            "faster": (all(above(factor)[0] for _, factor in self.faster), "names with factors above 0 and finite"),
        }
        check_fields(self, wanted)


DECAYS = ("cosine", "linear", "constant", "wsd")
COMPUTE = ("float32", "bfloat16")
WIDE = ("router", "experts/bias")
"""Weights with this in their name are float32 in every compute type: they choose, and a choice does not round."""


def schedule(plan: Plan) -> optax.Schedule:
    """The learning rate of every step. The floor is reached at `plan.steps`, just after the last one."""
    peak, rest, low = plan.learning_rate, max(plan.steps - plan.warmup, 1), plan.learning_rate * plan.floor
    tail = min(max(plan.steps // 5, 1), rest)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, plan.floor),
        "linear": lambda: optax.linear_schedule(peak, low, rest),
        "constant": lambda: optax.constant_schedule(peak),
        "wsd": lambda: optax.linear_schedule(peak, low, tail, transition_begin=rest - tail),
    }[plan.decay]()
    # The first step already learns: a rise from 0 would waste it.
    rise = optax.linear_schedule(peak / max(plan.warmup, 1), peak, max(plan.warmup - 1, 1))
    return optax.join_schedules([rise, after], [plan.warmup])


def _rate(plan: Plan, step: Int32[Array, ""]) -> Float[Array, ""]:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.float32(schedule(plan)(step))


def optimiser(plan: Plan) -> optax.GradientTransformation:
    """AdamW as the plan says, behind a clip of the global norm, for a learning rate of 1.

    The rate is the step's, not the optimiser's: a step that is skipped does not put the schedule off.
    """
    clip = optax.clip_by_global_norm(plan.clip) if plan.clip else optax.identity()
    adam = optax.scale_by_adam(plan.beta1, plan.beta2)
    return optax.chain(clip, adam, optax.add_decayed_weights(plan.weight_decay, partial(decays, plan)))


def decays(plan: Plan, tree: PyTree) -> PyTree:
    """Whether each leaf decays."""
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and not params.name(path).endswith(plan.spared), tree)


def _moved(plan: Plan, weights: PyTree, updates: PyTree, rate: Float[Array, ""]) -> PyTree:
    def one(path: tuple, weight: Array, update: Array) -> Array:
        name = params.name(path)
        return weight - rate * math.prod(factor for start, factor in plan.faster if name.startswith(start)) * update

    return jax.tree.map_with_path(one, weights, updates)


def narrowed(plan: Plan, tree: PyTree) -> PyTree:
    """The tree in the type that the plan computes in, but for `WIDE`."""

    def one(path: tuple, leaf: Array) -> Array:
        wide = any(f"/{part}/" in f"/{params.name(path)}/" for part in WIDE)  # an adapter's parts stand below the name
        return params.cast(leaf, jnp.float32 if wide else plan.compute)

    return jax.tree.map_with_path(one, tree)


def init(plan: Plan, trainable: PyTree, key: jax.Array) -> TrainState:
    """The state before the first step. The float32 master is a copy: the state will be donated, `trainable` stays."""
    master = jax.tree.map(jnp.copy, params.cast(trainable, jnp.float32))
    average = jax.tree.map(jnp.copy, master) if plan.average else None  # a donated state may not hold one buffer twice
    return TrainState(
        step=jnp.int32(0), trainable=master, optimiser=optimiser(plan).init(master), average=average, key=key
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def step(
    plan: Plan, objective: Objective, state: TrainState, frozen: PyTree, batch: PyTree
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The next state, and metrics of this step: the objective's means, weight, gradient_norm, learning_rate, finite.

    Every leaf of `batch` has its rows first, a multiple of `plan.micro`. A step whose loss or gradient is not finite
    changes nothing but the step number and reports `finite` 0, so that the last good weights can still be saved. The
    state is donated. Noise comes from the key, the step and the micro-batch.
    """
    key = jax.random.fold_in(state.key, state.step)
    if hasattr(objective, "at"):
        objective = objective.at(state.step)
    gradient, loss = accumulate(plan, objective, state.trainable, frozen, batch, key)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-9), gradient)
    norm, rate = optax.global_norm(gradient), _rate(plan, state.step)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 step
        updates, moments = optimiser(plan).update(gradient, state.optimiser, state.trainable)
    weights = _moved(plan, state.trainable, updates, rate)
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, w: plan.average * a + (1 - plan.average) * w, average, weights)
    finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
    old, new = (state.trainable, state.optimiser, state.average), (weights, moments, average)
    weights, moments, average = jax.tree.map(lambda a, b: jnp.where(finite, b, a), old, new)
    metrics = loss.means() | {"weight": loss.weight, "gradient_norm": norm}
    metrics |= {"learning_rate": rate, "finite": finite.astype(jnp.float32)}
    return state.replace(step=state.step + 1, trainable=weights, optimiser=moments, average=average), metrics


def accumulate(
    plan: Plan, objective: Objective, trainable: PyTree, frozen: PyTree, batch: PyTree, key: jax.Array
) -> tuple[PyTree, Loss]:
    """The summed gradient and loss of all micro-batches.

    Rows are dealt out in turn, so that a batch split over devices stays split in every micro-batch. What is frozen is
    computed in the plan's type too: with a float32 base every product of an adapter's training would be float32.
    """
    still = narrowed(plan, frozen)
    if hasattr(objective, "over"):
        objective = objective.over(still, batch)

    def total(weights: PyTree, part: PyTree, key: jax.Array) -> tuple[Array, Loss]:
        # Cast inside: gradients arrive at the float32 master.
        loss = objective(narrowed(plan, weights), still, part, key)
        return loss.total, loss

    gradient = jax.grad(total, has_aux=True)
    if plan.micro == 1:
        return gradient(trainable, batch, jax.random.fold_in(key, 0))
    rows = {x.shape[0] for x in jax.tree.leaves(batch)}
    if any(n % plan.micro for n in rows):
        raise InputError(f"A batch of {min(rows)} rows does not split into {plan.micro} micro-batches (plan.micro).")
    dealt = jax.tree.map(lambda x: x.reshape(x.shape[0] // plan.micro, plan.micro, *x.shape[1:]).swapaxes(0, 1), batch)

    def one(so_far: PyTree, inputs: tuple[PyTree, Array]) -> tuple[PyTree, None]:
        part, number = inputs
        new = gradient(trainable, part, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, so_far, new), None

    shape = jax.eval_shape(gradient, trainable, jax.tree.map(lambda x: x[0], dealt), key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    return lax.scan(one, zero, (dealt, jnp.arange(plan.micro)))[0]
