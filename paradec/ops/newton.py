"""Nonlinear recurrences `h_t = step(params, h_{t-1}, x_t)` for a whole sequence at once, by Newton's method.

All states are one unknown. Each iteration evaluates the cell and its Jacobian at all steps in parallel, from the states
of the iteration before, and corrects them by a linear recurrence, which is a parallel scan (DEER, arXiv 2309.12252;
ParaRNN, arXiv 2510.21450, where the cell's Jacobian is diagonal or in blocks; quasi-DEER and ELK, arXiv 2407.19115).
The gradient is that of the recurrence, by the implicit function theorem at the states that were found: it does not
depend on the method, and nothing is kept of the iterations.

Departures from these papers. The residual decides whether a solution counts, and where it does not the recurrence is
computed step by step. The backward pass has the full Jacobian, also of methods that solve with a part of it. Both
passes go window by window, so memory beyond the states themselves is that of one window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.errors import InputError, UnknownName, at_least
from paradec.ops import jacobian, recurrence
from paradec.ops.jacobian import Step
from paradec.ops.kalman import filtered
from paradec.ops.recurrence import Masks, Recurrence
from paradec.ops.scan import affine_scan

METHODS = {"newton": 16, "quasi": 48, "damped": 48, "jacobi": 48}
"""What can be iterated, and how often at most where nothing else is asked for."""


@struct.dataclass
class Info:
    """What a solve says of itself, of all its windows together; zeros where nothing was solved (`sequential`).

    The residual is that of the states returned: the largest `|step(h_{t-1}, x_t) - h_t| / max(1, |h_t|)` of all steps,
    numbers and rows, NaN where a state is not finite. Watch it in training where `fallback` is off: above 1e-3 is worth
    a warning, above 1 the states mean nothing, whatever the loss says.
    """

    iterations: Int32[Array, ""]  # the most that a window took
    residual: Float[Array, ""]  # the largest of a window
    fell_back: Int32[Array, ""]  # windows that did not converge and were computed step by step


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static of a solve."""

    structure: str
    method: str
    iterations: int
    adaptive: bool
    fallback: bool
    window: int
    scan: str


def solve(
    step: Step,
    params: PyTree,
    x: PyTree,
    h0: PyTree | None = None,
    *,
    structure: str = "diagonal",
    method: str = "auto",
    iterations: int | None = None,
    adaptive: bool = True,
    tol: float | Float[Array, ""] = 1e-5,
    fallback: bool = True,
    window: int | None = 512,
    damping: float | Float[Array, ""] = 1e-8,
    segment: Int[Array, "T ..."] | None = None,
    valid: Bool[Array, "T ..."] | None = None,
    scan: str = "auto",
) -> tuple[PyTree, Info]:
    """The states after every step, "T *B n" (of a block cell a tuple of them), float32 or wider, and how it went.

    `step(params, h, x_t)` returns a state like h, is elementwise over batch axes, and must not close over arrays whose
    gradient is wanted: pass them in `params`. `x` is a tree whose leaves lead with T. `h0` is the state before the
    first step (None: zeros, only of a diagonal cell that takes a scalar in its place). The cell gets params, x and h
    as float32. Its Jacobian must have the declared `structure`; `ops.jacobian.check_cell` says whether it has.

    Methods: `sequential` is a `lax.scan`. `newton` uses the whole Jacobian, `quasi` its diagonal, `damped` (ELK) a
    Kalman filter on that diagonal, whose observations are the states of the iteration before, with noise `1 / damping`;
    `jacobi` uses none. `auto` is `sequential` where compiled for a CPU, which no parallel method beats, and `newton`
    elsewhere. All start from the step on a state of zeros; after k iterations states 0 to k of a window are exact, of
    `damped` state 0 alone.

    A window of `window` steps (None: all) is solved from the last state of the one before, all rows of the batch in it
    together, with at most `iterations` iterations: until the residual (see `Info`) is at most `tol`, or exactly so many
    where not `adaptive`. A window whose residual is larger in the end, or NaN, is computed step by step and counted
    in `fell_back`; without `fallback` its states are returned as they are. NaN in x gives NaN in the states from there
    on and in `Info.residual`; it is no error. Under `vmap` both branches are paid for: batch in the leading axes of h.

    `segment` are integer ids: where one differs from that of the step before, the state is set to zeros first; step 0
    continues from `h0`. Where `valid` is False the state passes unchanged. Both lead with T and batch axes. `scan` is
    the implementation of the linear scans. Differentiable in params, x and h0 in reverse mode, also twice. Raises
    `InputError` for a cell or sizes that do not fit.
    """
    if method not in METHODS and method not in ("auto", "sequential"):
        raise UnknownName("method of solving a recurrence", method, ("auto", "sequential", *METHODS))
    x = jax.tree.map(jnp.asarray, x)
    T = _steps(x)
    size = at_least("window", T if window is None else window, 0 if window is None else 1)
    count = at_least("iterations", METHODS.get(method, METHODS["newton"]) if iterations is None else iterations, 0)
    h0 = _first(step, params, x, h0, structure)
    dtype = recurrence.wide(h0)
    cell = Recurrence(step, recurrence.cast(params, dtype))
    jacobian.check_shapes(step, cell.params, h0, _one(x, dtype))
    masks = Masks.of(segment, valid, (T, *jax.tree.leaves(h0)[0].shape[:-1]))
    if T == 0:
        return jax.tree.map(lambda h: jnp.zeros((0, *h.shape), dtype), h0), _nothing()
    if structure == "diagonal" and method == "quasi":
        method = "newton"
    plan = _Plan(structure, method, count, adaptive, fallback, max(min(size, T), 1), scan)
    return _solve(plan, cell, x, h0, masks, (jnp.asarray(tol, dtype), jnp.asarray(damping, dtype)))


# The solve and its gradient.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solve(plan: _Plan, *operands: Any) -> tuple[PyTree, Info]:
    """`operands` are the cell, x, h0, masks, and (tol, damping)."""
    by_windows = partial(_by_windows, plan)
    if plan.method == "auto":
        return lax.platform_dependent(*operands, cpu=_by_steps, default=by_windows)
    return (_by_steps if plan.method == "sequential" else by_windows)(*operands)


def _forward(plan: _Plan, *operands: Any) -> tuple[tuple[PyTree, Info], tuple]:
    out: Any = _solve(plan, *operands)  # itself, not what it computes: a gradient of the gradient comes through here
    return out, (*operands[:4], out[0])


def _backward(plan: _Plan, saved: tuple, cotangent: tuple[PyTree, Any]) -> tuple:
    """The cotangents of all operands. Windows go from the last to the first; of each the cotangents of its states are
    solved for, then pulled back through the cell at all of its steps at once. `carry` is what reaches a window's last
    state from later ones, and the sum for the weights."""
    cell, x, h0, masks, h = saved
    T = _steps(x)
    x, masks, h = recurrence.cut(plan.window, x, masks, h)
    g = jax.tree.map(lambda a: recurrence.split(a, plan.window, "constant"), cotangent[0])
    first = jax.tree.map(lambda h0, h: jnp.concatenate([h0[None], h[:-1, -1]]), h0, h)

    def window(carry: tuple, each: tuple) -> tuple[tuple, PyTree]:
        (late, total), (x, masks, first, h, g) = carry, each
        before = recurrence.before(h, first)
        g = jax.tree.map(lambda g, late: g.at[-1].add(late), g, late)
        lam = _costates(plan, cell, before, x, masks, g)
        to_cell, to_state, to_x = cell.pulled(before, x, masks, lam)
        return (recurrence.at(to_state, 0), jax.tree.map(jnp.add, total, to_cell)), to_x

    carry = (jax.tree.map(jnp.zeros_like, h0), jax.tree.map(jnp.zeros_like, recurrence.parted(cell)[0]))
    (to_h0, to_cell), to_x = recurrence.over(window, carry, (x, masks, first, h, g), reverse=True)
    return to_cell, recurrence.whole(to_x, T), to_h0, None, None


_solve.defvjp(_forward, _backward)


def _costates(plan: _Plan, cell: Recurrence, before: PyTree, x: PyTree, masks: Masks, g: PyTree) -> PyTree:
    """`lam_t = g_t + J_{t+1}^T lam_{t+1}` of a window, with the full Jacobian at the states that were found."""

    def scanned(cell: Recurrence, before: PyTree, x: PyTree, masks: Masks, g: PyTree) -> PyTree:
        _, J = jacobian.probe(cell.sweep(x, masks), before, plan.structure)
        late = jax.tree.map(lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), J)
        turned = jacobian.transposed(late, plan.structure)
        return affine_scan(turned, g, kind=plan.structure, reverse=True, implementation=plan.scan)

    operands = (cell, before, x, masks, g)
    # The Jacobian of a dense cell costs n sweeps. Step by step none is needed, and a CPU does not mind the steps.
    if plan.structure == "dense" and plan.method == "auto":
        return lax.platform_dependent(*operands, cpu=Recurrence.costates, default=scanned)
    stepped = plan.structure == "dense" and plan.method == "sequential"
    return (Recurrence.costates if stepped else scanned)(*operands)


# Forward.


def _by_steps(cell: Recurrence, x: PyTree, h0: PyTree, masks: Masks, numbers: Any) -> tuple[PyTree, Info]:
    h = cell.states(h0, x, masks)
    finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), h))
    return h, _nothing().replace(residual=jnp.where(finite, 0.0, jnp.nan).astype(jnp.float32))


def _by_windows(
    plan: _Plan, cell: Recurrence, x: PyTree, h0: PyTree, masks: Masks, numbers: tuple[Array, Array]
) -> tuple[PyTree, Info]:
    T = _steps(x)

    def window(h0: PyTree, each: tuple) -> tuple[PyTree, tuple[PyTree, Info]]:
        h, info = _window(plan, cell, each[0], h0, each[1], numbers)
        return recurrence.at(h, -1), (h, info)

    _, (h, info) = recurrence.over(window, h0, recurrence.cut(plan.window, x, masks))
    info = Info(jnp.max(info.iterations), jnp.max(info.residual), jnp.sum(info.fell_back, dtype=jnp.int32))
    return recurrence.whole(h, T), info


def _window(
    plan: _Plan, cell: Recurrence, x: PyTree, h0: PyTree, masks: Masks, numbers: tuple[Array, Array]
) -> tuple[PyTree, Info]:
    """The states of one window, by iterations, or step by step where these did not converge."""
    sweep = cell.sweep(x, masks)
    empty = jax.tree.map(lambda h: jnp.zeros((_steps(x), *h.shape), h.dtype), h0)
    h, count, residual = _iterated(plan, sweep, h0, sweep(recurrence.before(empty, h0)), numbers)
    good = residual <= numbers[0]  # False where it is NaN

    def exact() -> tuple[PyTree, Array]:
        h = cell.states(h0, x, masks)
        return h, _residual(sweep, h0, h)

    if plan.fallback:
        h, residual = lax.cond(good, lambda: (h, residual), exact)
    fell_back = ~good if plan.fallback else jnp.zeros((), bool)
    return h, Info(count, residual.astype(jnp.float32), fell_back.astype(jnp.int32))


def _iterated(
    plan: _Plan, sweep: Callable, h0: PyTree, guess: PyTree, numbers: tuple[Array, Array]
) -> tuple[PyTree, Array, Array]:
    """The states after the last iteration, how many there were, and the residual.

    The residual costs a sweep, so it is asked where it may be small: Newton's next error is about the square of this
    correction, so from a correction of `sqrt(tol)` on; other methods converge linearly, so from one of `tol` on.
    """
    tol, damping = numbers
    small = jnp.sqrt(tol) if plan.method in ("newton", "auto") else tol
    unknown = jnp.asarray(jnp.inf, tol.dtype)

    def iteration(carry: tuple) -> tuple:
        h, i, _ = carry
        new = _improved(plan, sweep, recurrence.before(h, h0), h, damping)
        ask = i + 1 == plan.iterations
        if plan.adaptive:
            ask = ask | ~(_size(new, h) > small)  # also where it is NaN
        return new, i + 1, lax.cond(ask, lambda: _residual(sweep, h0, new), lambda: unknown)

    def more(carry: tuple) -> Array:
        _, i, residual = carry
        some = i < plan.iterations
        return some & ~((residual <= tol) | jnp.isnan(residual)) if plan.adaptive else some

    if plan.iterations == 0:
        return guess, jnp.zeros((), jnp.int32), _residual(sweep, h0, guess)
    return lax.while_loop(more, iteration, (guess, jnp.zeros((), jnp.int32), unknown))


def _improved(plan: _Plan, sweep: Callable, before: PyTree, h: PyTree, damping: Array) -> PyTree:
    """The states after one iteration from `h`."""
    if plan.method == "jacobi":
        return sweep(before)
    y, J = jacobian.probe(sweep, before, plan.structure)
    own = None if plan.method in ("newton", "auto") else jacobian.diagonal(J, plan.structure)
    if plan.method == "damped":
        return jax.tree.map(lambda f, y, hp, h: filtered(f, y - f * hp, h, damping, y[0]), own, y, before, h)
    change = jax.tree.map(jnp.subtract, y, h)
    if own is None:
        change = affine_scan(J, change, kind=plan.structure, implementation=plan.scan)
    else:
        change = jax.tree.map(lambda f, r: affine_scan(f, r, kind="diagonal", implementation=plan.scan), own, change)
    return jax.tree.map(jnp.add, h, change)


def _residual(sweep: Callable, h0: PyTree, h: PyTree) -> Array:
    return _size(sweep(recurrence.before(h, h0)), h)


def _size(new: PyTree, h: PyTree) -> Array:
    """The largest difference, relative to h where that is above 1; NaN where one is NaN."""
    far = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b) / jnp.maximum(1, jnp.abs(b)), initial=0), new, h)
    return jax.tree.reduce(jnp.maximum, far)


# What is given.


def _steps(x: PyTree) -> int:
    """T of inputs whose leaves lead with it. Raises `InputError` where they do not agree."""
    lengths = {a.shape[0] if a.ndim else -1 for a in jax.tree.leaves(x)}
    if len(lengths) != 1 or -1 in lengths:
        raise InputError("The inputs of a recurrence are arrays that lead with one axis of time, all of one length.")
    return lengths.pop()


def _first(step: Step, params: PyTree, x: PyTree, h0: PyTree | None, structure: str) -> PyTree:
    """The state before the first step, at least float32."""
    if h0 is None:
        wide = recurrence.wide(x)
        try:
            if structure != "diagonal":
                raise TypeError("only a diagonal cell may take a scalar in place of a state")
            like = jax.eval_shape(step, recurrence.cast(params, wide), jnp.zeros((), wide), _one(x, wide))
            h0 = jnp.zeros(like.shape, like.dtype)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"The shape of the state cannot be told from the inputs ({error}); pass h0, zeros for an empty state."
            ) from error
    jacobian.check_state(h0, structure)
    return recurrence.cast(jax.tree.map(jnp.asarray, h0), recurrence.wide(h0))


def _one(x: PyTree, dtype: Any) -> PyTree:
    """The shapes of one step's inputs, as a cell sees them."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], dtype if recurrence.is_float(a) else a.dtype), x)


def _nothing() -> Info:
    return Info(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
