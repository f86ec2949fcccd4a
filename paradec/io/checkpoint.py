"""Checkpoints of a training run: Orbax writes them, a digest of every leaf tells whether they are still whole.

One step is one folder: `state`, arrays by the names of their leaves, and `facts`, JSON with the data position, the
configuration and, for every leaf, its type, shape and digest. Orbax renames the folder when all of it is written, so a
torn save never counts. It does not notice a flipped bit in array data, which is what the digests are for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32
from orbax.checkpoint import v1 as ocp

from paradec import mesh, params
from paradec.errors import InputError, ResourceError
from paradec.io.whole_file import cannot_write

policies = ocp.training.preservation_policies
FULL = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota")
POSITION_BYTES = 1 << 16
log = logging.getLogger("paradec")
Check = Callable[[dict[str, Any]], None]


class Restored(NamedTuple):
    """A step as it was saved. `positions` are those of the data, one of each process."""

    step: int
    state: PyTree
    positions: list[Any]
    config: dict[str, Any]


class Damaged(Exception):
    """A step that cannot be used, and why."""


def _unsaid(record: logging.LogRecord) -> bool:
    """Whether a record tells what no exception will. Orbax' threads each log a full disk, with a traceback, before it
    reaches us, and once more at the end of the process; who waits for one of them logs that it was interrupted."""
    if "orbax" not in record.pathname:
        return True
    cause = record.exc_info[1] if record.exc_info else ""
    told = any(sign in f"{record.getMessage()} {cause}" for sign in FULL)
    return not told and not isinstance(cause, KeyboardInterrupt)


class Checkpoints:
    """The checkpoints of one run, in one folder. A context manager: leaving it waits for the last save.

    The newest `keep_last` steps are kept, and of those saved with a finite `loss` the `keep_best` with the smallest.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: int = 1):
        keep = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: -metrics["loss"], n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self.folder = Path(folder).absolute()
        logging.getLogger("absl").addFilter(_unsaid)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._orbax = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,  # torn saves of a killed run
            )
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._guard(self._orbax.close)
            return
        try:  # the error on its way out matters more than one of closing
            self._orbax.close()
        except Exception as second:
            log.warning("Closing the checkpoints in %s failed as well: %s", self.folder, second)

    def steps(self) -> list[int]:
        """The steps that are whole on disk as far as their folders say, newest first."""
        return sorted((c.step for c in self._orbax.checkpoints), reverse=True)

    def save(
        self, step: int, state: PyTree, position: Any, config: Mapping[str, Any], loss: float | None = None
    ) -> None:
        """Save one step in the background. An earlier save that is still running is awaited first.

        `state` is copied before this returns, so it may be donated at once. Raises `ResourceError` when the disk is
        full, here or at the next call; what was saved before stays whole.
        """
        facts = {"config": dict(config), "position": _gather(position), "leaves": _table(state)}
        facts["sha256"] = _sha(facts)
        # NaN is in no order: Orbax would drop the best step beside it.
        metrics = {"loss": float(loss)} if loss is not None and math.isfinite(loss) else None
        contents = {"state": _named(state), "facts": facts}
        self._guard(self._orbax.wait)
        self._guard(partial(self._orbax.save_checkpointables_async, step, contents, metrics=metrics, overwrite=True))

    def wait(self) -> None:
        """Return when everything is on disk."""
        self._guard(self._orbax.wait)

    def restore(self, abstract: PyTree, check: Check = lambda config: None) -> Restored | None:
        """The newest step that is whole, laid out as `abstract` says; None where there is none.

        A damaged step is named in a warning, moved aside (`STEP.damaged`) and passed over. `check` sees the saved
        configuration before anything is loaded and may refuse it. Raises `InputError` where the state has other leaves,
        shapes or types than `abstract`: that is another run, not damage; and `ResourceError` where every step was
        damaged, so that a long run is not begun anew unseen.
        """
        steps = self.steps()
        for step in steps:
            try:
                return self._load(step, abstract, check)
            except Damaged as why:
                log.warning("The checkpoint of step %d in %s is damaged and is passed over: %s", step, self.folder, why)
                self._set_aside(step)
        if steps:
            raise ResourceError(
                f"Every checkpoint in {self.folder} was damaged and is moved aside as STEP.damaged. Put a good copy"
                " there, or start once more to train from the beginning."
            )
        return None

    def _load(self, step: int, abstract: PyTree, check: Check) -> Restored:
        try:
            facts = self._orbax.load_checkpointables(step, {"facts": None})["facts"]
            said = facts.pop("sha256")
        except Exception as error:  # Orbax raises many kinds; all of them mean that this step cannot be read
            raise Damaged(f"its facts cannot be read ({_first_line(error)})") from error
        if said != _sha(facts):
            raise Damaged("its facts are not those that were written")
        check(facts["config"])
        _same_leaves(facts["leaves"], abstract, self.folder)
        try:
            found = self._orbax.load_checkpointables(step, {"state": _named(abstract)})["state"]
            state = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in _named(abstract)])
        except Exception as error:
            raise Damaged(f"its arrays cannot be read ({_first_line(error)})") from error
        now = _table(state)
        broken = [name for name, leaf in facts["leaves"].items() if now[name] != leaf]
        if broken:
            raise Damaged(f"the numbers of {', '.join(broken[:3])}{' and others' if broken[3:] else ''} have changed")
        return Restored(step, state, facts["position"], facts["config"])

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            here, number = self.folder / str(step), 0
            while (there := self.folder / f"{step}.damaged{number or ''}").exists():
                number += 1
            here.rename(there)
        mesh.wait(f"set aside {step}")
        self._orbax.reload()

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            if any(sign in str(error) for sign in FULL):
                raise ResourceError(
                    f"The disk is full: a checkpoint in {self.folder} could not be written. Earlier ones are whole; "
                    "make room and start again, and the run goes on from the last one."
                ) from error
            raise


def digest(leaf: Array) -> UInt32[Array, "2"]:
    """A hash of an array's bits and their places. Sharded arrays are hashed where they lie."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    word = np.dtype(f"uint{min(leaf.dtype.itemsize, 4) * 8}")  # 64-bit numbers become two words
    bits = lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    mixed = (bits ^ (place * jnp.uint32(2654435761))) * jnp.uint32(2246822519)
    mixed ^= mixed >> jnp.uint32(15)
    weighted = mixed * (jnp.uint32(2) * place + jnp.uint32(1))
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(weighted, dtype=jnp.uint32)])


@jax.jit
def digests(state: PyTree) -> PyTree:
    """`digest` of every leaf, in one program."""
    return jax.tree.map(digest, state)


def _table(state: PyTree) -> dict[str, list]:
    """Type, shape and digest of every leaf by its name."""
    hashed = jax.device_get(digests(state))
    leaves, hashes = jax.tree.leaves_with_path(state), jax.tree.leaves(hashed)
    return {
        params.name(path): [str(leaf.dtype), list(leaf.shape), [int(word) for word in hash_]]
        for (path, leaf), hash_ in zip(leaves, hashes, strict=True)
    }


def _named(state: PyTree) -> dict[str, Any]:
    """The leaves by name, in their order. Unlike the tree, this stays the same when a model gains an unused option."""
    return {params.name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def _same_leaves(saved: Mapping[str, list], abstract: PyTree, folder: Path) -> None:
    wanted = {params.name(p): [str(x.dtype), list(x.shape)] for p, x in jax.tree.leaves_with_path(abstract)}
    for name in sorted({*saved, *wanted}):
        there, here = saved.get(name, [None, None])[:2], wanted.get(name, [None, None])
        if there != here:
            raise InputError(
                f"The checkpoints in {folder} are of another run: {name} is {_leaf(*there)} there and {_leaf(*here)} "
                "here. Choose another folder, or the configuration they were made with."
            )


def _leaf(dtype: str | None, shape: list[int] | None) -> str:
    return "missing" if dtype is None else f"{dtype}{shape}"


def _sha(facts: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _gather(position: Any) -> list[Any]:
    """The data positions of all processes, in their order."""
    if jax.process_count() == 1:
        return [position]
    text = json.dumps(position).encode()
    if len(text) > POSITION_BYTES:
        raise InputError(f"A data position of {len(text)} bytes is too long; at most {POSITION_BYTES} are exchanged.")
    padded = np.zeros(POSITION_BYTES, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    every = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row).rstrip(b"\0")) for row in every]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
