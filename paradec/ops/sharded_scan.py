"""The affine scan of a sequence that is split over devices, for use inside `shard_map`.

Every device composes its steps to one map, these maps are exchanged, and from them each device knows the state that its
own part starts from. A plain scan under `jit` whose time axis is sharded would gather its inputs on every device.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from paradec.errors import InputError, UnknownName
from paradec.ops import affine
from paradec.ops.affine import Leaves
from paradec.ops.scan import ScanForm, as_form, check_kernel, gradient_of_a, run
from paradec.ops.scan_inputs import borders, check_flags, fitted, last_id, masked

EXCHANGES = ("all_gather", "ppermute")


class _Sharded(NamedTuple):
    """How a recurrence is computed, and over which devices. Places count in the direction of travel."""

    form: ScanForm
    axis: str
    exchange: str

    def turned(self) -> _Sharded:
        return self._replace(form=self.form._replace(reverse=not self.form.reverse))

    def place(self) -> Array:
        """This device's: 0 begins with h0."""
        rank = lax.axis_index(self.axis)
        return lax.axis_size(self.axis) - 1 - rank if self.form.reverse else rank

    def passed_on(self, tree: Any, places: int = 1) -> Any:
        """What the device so many places before sends; zeros where there is none."""
        size = lax.axis_size(self.axis)
        pairs = [(i, i + places) for i in range(size - places)]
        pairs = [(j, i) for i, j in pairs] if self.form.reverse else pairs
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)


def sharded_scan(
    a: Leaves,
    b: Leaves,
    h0: Leaves | None,
    axis_name: str,
    *,
    exchange: str = "all_gather",
    kind: str = "diagonal",
    reverse: bool = False,
    implementation: str = "auto",
    chunk: int = 64,
    segment: Int[Array, "..."] | None = None,
    valid: Bool[Array, "..."] | None = None,
    checked: bool = True,
) -> Leaves:
    """This device's states of `affine_scan` over a sequence of which each device of a mesh axis holds an equal part.

    Parts lie in the order of the axis. All but `h0` are this device's part; `h0` is the state before the whole sequence
    and the same on all of them, and its gradient is the sum over them. Other axes of the mesh may split the batch.

    Args:
        axis_name: the mesh axis that splits time.
        exchange: "all_gather" sends the maps of all N devices to all, in one step. "ppermute" composes them in log2 N
            rounds between neighbours at growing distance, and one more for the state: less memory for many devices.
        checked: as for `affine_scan`, and also whether the exchanged maps have overflowed: then the devices compute one
            after the other, all taking the same branch.

    The other arguments are those of `affine_scan`; ids of segments are compared across devices too. Raises what it
    raises, and `InputError` outside a `shard_map` over that axis.
    """
    if exchange not in EXCHANGES:
        raise UnknownName("exchange of a sharded scan", str(exchange), EXCHANGES)
    if axis_name not in _manual_axes():
        raise InputError(
            f"sharded_scan runs inside jax.shard_map over a mesh axis {axis_name!r}; "
            f"here are {', '.join(map(repr, _manual_axes())) or 'none'}."
        )
    spec = _Sharded(as_form(kind, reverse, implementation, chunk, checked), axis_name, exchange)
    a, b, h0 = fitted(kind, a, b, h0)
    if affine.length(b) == 0:
        return b
    if segment is not None or valid is not None:
        check_flags(kind, b, segment, valid)
        border = None if segment is None else _borders(spec, segment, valid)
        a, b = masked(spec.form.structure, a, b, border, valid)
    check_kernel(spec.form, a, b)
    # What is the same everywhere is said to vary first, because then it is jax that sums its gradient over devices.
    return _scan(*jax.tree.map(lambda x: affine.varying(x, {axis_name}), (a, b, h0)), spec)


def _manual_axes() -> tuple[str, ...]:
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _borders(spec: _Sharded, segment: Array, valid: Array | None) -> Array:
    """Where the id is another than at the valid step before, which may be on a device before."""
    known, id_ = last_id(segment, valid, spec.form.reverse)
    known, id_ = (lax.all_gather(x, spec.axis) for x in (known, id_))
    rank = lax.broadcasted_iota(jnp.int32, known.shape, 0)
    mine = lax.axis_index(spec.axis)
    if spec.form.reverse:
        size = lax.axis_size(spec.axis)
        nearest = jnp.min(jnp.where(known & (rank > mine), rank, size), axis=0)
        found = nearest < size
    else:
        nearest = jnp.max(jnp.where(known & (rank < mine), rank, -1), axis=0)
        found = nearest >= 0
    nearest = jnp.clip(nearest, 0, len(known) - 1)[None]
    return borders(segment, valid, spec.form.reverse, (found, jnp.take_along_axis(id_, nearest, axis=0)[0]))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(a: Any, b: Any, h0: Any, spec: _Sharded) -> Any:
    form = spec.form
    start = (_gathered if spec.exchange == "all_gather" else _passed_along)(spec, a, b, h0)
    if not form.checked:
        return run(form, a, b, start)
    # A device that took the other branch would wait for ever, so all that compute together agree.
    wrong = affine.varying(~affine.all_finite(start), set(_manual_axes()))
    fine = lax.psum(wrong.astype(jnp.int32), _manual_axes()) == 0
    return lax.cond(fine, lambda: run(form, a, b, start), lambda: _one_after_the_other(spec, a, b, h0))


def _forward(a: Any, b: Any, h0: Any, spec: _Sharded) -> tuple[Any, Any]:
    h = _scan(a, b, h0, spec)
    return h, (a, h0, h)


def _backward(spec: _Sharded, saved: Any, g: Any) -> tuple[Any, Any, Any]:
    """As on one device, with a step of the neighbour at each end of a part."""
    a, h0, h = saved
    form, structure = spec.form, spec.form.structure
    first, last = (-1, 0) if form.reverse else (0, -1)
    begins = spec.place() == 0
    turned = structure.transpose(a)
    behind = affine.before(turned, spec.turned().passed_on(affine.at(turned, first)), not form.reverse)
    adjoint = _scan(behind, g, affine.zeros(h0), spec.turned())
    previous = affine.before(h, _choose(begins, h0, spec.passed_on(affine.at(h, last))), form.reverse)
    of_h0 = structure.apply(affine.at(turned, first), affine.at(adjoint, first))
    return gradient_of_a(structure, a, adjoint, previous), adjoint, _choose(begins, of_h0, affine.zeros(of_h0))


_scan.defvjp(_forward, _backward)


def _gathered(spec: _Sharded, a: Any, b: Any, h0: Any) -> Any:
    """The state before this device's part, from the maps of all."""
    form = spec.form
    maps = affine.total(form.structure, a, b, form.reverse, form.chunk)
    maps = jax.tree.map(lambda x: lax.all_gather(x, spec.axis), maps)
    starts = affine.before(affine.sequential(form.structure, *maps, h0, form.reverse), h0, form.reverse)
    rank = lax.axis_index(spec.axis)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, rank, keepdims=False), starts)


def _passed_along(spec: _Sharded, a: Any, b: Any, h0: Any) -> Any:
    """The same in rounds (Hillis and Steele): before the one of distance k, a device holds the map of its own part and
    the k - 1 parts before it; it then takes in that of the device k places before.

    Of four devices, round 1 gives the maps of parts 0, 01, 12, 23, and round 2 those of 0, 01, 012, 0123.
    """
    structure, place = spec.form.structure, spec.place()
    a, b = affine.total(structure, a, b, spec.form.reverse, spec.form.chunk)
    b = _choose(place == 0, affine.plus(structure.apply(a, h0), b), b)
    distance = 1
    while distance < lax.axis_size(spec.axis):
        longer = affine.compose(structure, (a, b), spec.passed_on((a, b), distance))
        a, b = _choose(place >= distance, longer, (a, b))
        distance *= 2
    return _choose(place == 0, h0, spec.passed_on(b))


def _one_after_the_other(spec: _Sharded, a: Any, b: Any, h0: Any) -> Any:
    """The states by a loop over all of time: in turn i, the device at place i hands its last state to the next."""
    structure, reverse, place = spec.form.structure, spec.form.reverse, spec.place()
    step = lambda h, ab: (affine.plus(structure.apply(ab[0], h), ab[1]), None)

    def turn(i: Array, start: Any) -> Any:
        end, _ = lax.scan(step, start, (a, b), reverse=reverse)
        return _choose(place == i + 1, spec.passed_on(end), start)

    start = lax.fori_loop(0, lax.axis_size(spec.axis) - 1, turn, h0)
    return affine.sequential(structure, a, b, start, reverse)


def _choose(flag: Array, x: Any, y: Any) -> Any:
    return jax.tree.map(partial(jnp.where, flag), x, y)
