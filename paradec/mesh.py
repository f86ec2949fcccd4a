"""Meshes, the rules that put logical axes on them, and the start-up of many hosts.

A parameter says what its dimensions *mean* (`Spec.axes`: "vocab", "mlp", …); a `Rules` table says on which mesh axis
each meaning is split. Changing the parallelism of a program is changing the table.

    mesh = make_mesh(data=4, model=2)
    weights = params.init(specs, key, params.shardings(specs, mesh, TENSOR))
    with use(mesh, TENSOR):
        decode.run(...)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from paradec.errors import InputError, ResourceError, UnknownName


class Rules(Mapping[str, str | tuple[str, ...] | None]):
    """Logical axis → the mesh axis (or axes) it is split over; None: replicated. Frozen, hashable, equal by value.

    It names every logical axis there is, so a misspelt one is an error and not a silent replica. `rules | {…}` makes
    a changed copy.
    """

    def __init__(self, table: Mapping[str, str | tuple[str, ...] | None]):
        self._table = dict(table)

    def __getitem__(self, axis: str) -> str | tuple[str, ...] | None:
        return self._table[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __or__(self, other: Mapping[str, str | tuple[str, ...] | None]) -> Rules:
        return Rules({**self._table, **other})

    def __hash__(self) -> int:
        return hash(frozenset(self._table.items()))

    def __repr__(self) -> str:
        return f"Rules({self._table})"


REPLICATED = Rules({"batch": "data", "layers": None, "vocab": None, "embed": None, "kv_heads": None, "mlp": None})
"""Data parallelism: rows are split, every device holds all weights."""

TENSOR = REPLICATED | {"vocab": "model", "kv_heads": "model", "mlp": "model"}
"""Rows over "data"; vocabulary, heads and the MLP's width over "model"."""

FSDP = TENSOR | {"embed": "data"}
"""As `TENSOR`, and every weight's width is split over "data" too, to be gathered where it is used."""


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes "data" and "model" over the first `data * model` devices. `data=-1` takes all that are left."""
    available = list(jax.devices() if devices is None else devices)
    if data == -1:
        data = len(available) // max(model, 1)
    if data < 1 or model < 1 or data * model > len(available):
        raise ResourceError(
            f"A mesh of data={data} × model={model} does not fit the {len(available)} device(s) here. On a CPU, "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8, set before Python starts, pretends to have eight."
        )
    # jax's default is Explicit axis types, under which every gather and scatter of a decoding rule needs annotations.
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=types, devices=available[: data * model])


def layout(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: Mapping = TENSOR
) -> PartitionSpec:
    """How an array of this shape, with these logical axes, lies on the mesh.

    A dimension that the mesh axis does not divide stays replicated (3 heads on 8 devices), and so does one whose mesh
    axis this mesh lacks. Two dimensions of one array on the same mesh axis are an error, at any mesh size.
    """
    if len(axes) != len(shape):
        raise InputError(f"Axes {tuple(axes)} do not fit shape {tuple(shape)}: name every dimension (None: unsplit).")
    owner: dict[str, str | None] = {}
    split = []
    for axis, size in zip(axes, shape, strict=True):
        names = _mesh_axes(axis, rules)
        for name in names:
            if name in owner:
                raise InputError(
                    f"Logical axes {owner[name]!r} and {axis!r} of one array ({', '.join(map(str, axes))}) would both "
                    f"be split over mesh axis {name!r}. Name one of them None, or change the rules."
                )
            owner[name] = axis
        names = tuple(name for name in names if name in mesh.shape)
        fits = names and size % math.prod(mesh.shape[name] for name in names) == 0
        split.append(names if fits else None)
    return PartitionSpec(*split)


def _mesh_axes(axis: str | None, rules: Mapping) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in rules:
        raise UnknownName("logical axis", axis, rules, hint='Add it to the rules: `TENSOR | {"name": "model"}`.')
    names = rules[axis]
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def batch_axes(rules: Mapping = TENSOR) -> tuple[str, ...]:
    """The mesh axes over which the rows of a batch are split: what a mean over the batch reduces over."""
    return _mesh_axes("batch", rules)


def batch_sharding(mesh: Mesh, rules: Mapping = TENSOR) -> NamedSharding:
    """The sharding of any array whose first axis is the batch. The mesh must divide the batch."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(rules) or None))


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh and rules in use. Ask it where an array lies."""

    mesh: Mesh
    rules: Rules

    def spec(self, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """See `layout`."""
        return layout(axes, shape, self.mesh, self.rules)

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """The same, bound to the mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))


# Read while tracing, so it must be part of jit's cache key: a plain context variable would leave an old trace in force.
_in_use = jax.make_user_context(None)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Mapping = TENSOR) -> Iterator[Placement]:
    """Run what is inside on this mesh: `jax.set_mesh`, and `current()` for the ops that lay out by hand."""
    placement = Placement(mesh, Rules(rules))
    with jax.set_mesh(mesh), _in_use(placement):
        yield placement


def current() -> Placement | None:
    """The placement of the enclosing `use`, also while tracing. None outside, and inside a `shard_map` body, where
    arrays are one device's part already."""
    inside_shard_map = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    return None if inside_shard_map else _in_use.value


def constrain(x: Any, axes: Sequence[str | None]) -> Any:
    """The array, told to the compiler to lie as the enclosing `use` lays out these axes; outside one, the array itself.

    Needed where nothing else says it: with weights split over "data" too (`FSDP`), the compiler would split activations
    like them and keep every row of the batch on every device.
    """
    placement = current()
    return x if placement is None else jax.lax.with_sharding_constraint(x, placement.sharding(axes, x.shape))


def held(rows: int) -> np.ndarray:
    """Which rows of a batch of `rows` this process' devices hold on the mesh in use, ascending; outside one, all.

    These are what a process has to read. Processes that share a data row of the mesh hold, and read, the same rows.
    Raises `InputError` where the data rows of the mesh do not divide the batch, or none is on this process.
    """
    place, here = current(), jax.process_index()
    if place is None:
        return np.arange(rows)
    found = _holders(place, rows)
    if here not in found:
        raise InputError(
            f"Process {here} has no device in the mesh of {place.mesh.size}: make it of all {jax.device_count()} "
            "devices, or start fewer processes."
        )
    return found[here]


def lane(rows: int) -> tuple[int, int, np.ndarray]:
    """This process' lane, its number, of how many, and its rows: `held`, and those of processes that share any of them.

    A stream that cannot be cut into rows before it is read (packed text) is read whole by each process of a lane.
    """
    mine, place = held(rows), current()
    lanes: list[set[int]] = []
    for some in [mine] if place is None else _holders(place, rows).values():
        touched = [other for other in lanes if not other.isdisjoint(some.tolist())]
        lanes = [other for other in lanes if other not in touched] + [set(some.tolist()).union(*touched)]
    lanes.sort(key=min)
    number = next(n for n, some in enumerate(lanes) if mine[0] in some)
    return number, len(lanes), np.asarray(sorted(lanes[number]))


def whole(batch: PyTree) -> PyTree:
    """The batch of which this process has read its rows (`held`), as arrays that lie as the mesh in use says."""
    place = current()
    if place is None:
        return jax.device_put(batch)
    sharding, parts = batch_sharding(place.mesh, place.rules), _parts(place)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    here = len(held(parts))

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        rows = len(x) * parts // here
        place_of = {row: n for n, row in enumerate(held(rows).tolist())}
        cut = lambda index: x[(first := place_of[index[0].indices(rows)[0]]) : first + rows // parts]
        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, cut)

    return jax.tree.map(one, batch)


def fetched(tree: PyTree, at_once: int = 2**28) -> PyTree:
    """The arrays of a tree as numpy's, whole in every process of the job; all must call it together.

    What lies on several processes is gathered `at_once` bytes at a time, because a device that holds its part of a
    stack of layers has no room for all of it.
    """

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        some = max(1, min(len(x), at_once * len(x) // x.nbytes))
        part = jax.jit(
            lambda x, first: jax.lax.dynamic_slice_in_dim(x, first, some),
            out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()),
        )
        out = np.empty(x.shape, x.dtype)
        for first in range(0, len(x), some):
            begin = min(first, len(x) - some)  # where a slice that sticks out would be moved to without a word
            out[begin : begin + some] = part(x, np.int32(begin))
        return out

    return jax.tree.map(one, tree)


@functools.lru_cache(maxsize=64)
def _holders(place: Placement, rows: int) -> dict[int, np.ndarray]:
    """The rows that each process holds."""
    if rows % _parts(place):
        raise InputError(f"A batch of {rows} rows does not split over the {_parts(place)} data rows of the mesh.")
    found: dict[int, set[int]] = {}
    for device, index in batch_sharding(place.mesh, place.rules).devices_indices_map((rows,)).items():
        found.setdefault(_process(device), set()).update(range(*index[0].indices(rows)))
    return {process: np.asarray(sorted(some)) for process, some in found.items()}


def _parts(place: Placement) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(place.mesh.shape[name] for name in batch_axes(place.rules))


def _process(device: Any) -> int:
    return device.process_index


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **rest: Any,
) -> None:
    """Join the other processes of this job, before anything else touches a device.

    Without arguments jax finds the cluster by itself (Cloud TPU, Slurm, Open MPI, Kubernetes); where there is none, or
    one process, or it has been called before, this does nothing. Arguments go to `jax.distributed.initialize`.
    """
    if jax.distributed.is_initialized() or num_processes == 1:
        return
    asked = not (coordinator_address is num_processes is process_id is None)
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, **rest)
    except ValueError as error:
        if asked or "coordinator_address should be defined" not in str(error):
            raise InputError(f"This process cannot join its job: {error}") from error
    except RuntimeError as error:
        if "must be called before" not in str(error):  # a network failure, say
            raise
        if asked or any(int(os.environ.get(size, 1)) > 1 for size in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
            raise InputError("Call paradec.mesh.start() first: jax has already started without the others.") from error


def first_says(number: int) -> int:
    """The number that process 0 has, in every process of the job: what one alone can know and all must act on."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number


def wait(where: str) -> None:
    """Return when every process of the job has come here; `where` names the place in error messages."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
