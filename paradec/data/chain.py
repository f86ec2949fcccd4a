"""From a source of rows to batches: shuffled, dealt out to processes, packed, resumable to the row (grain)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import grain
import numpy as np

from paradec import mesh
from paradec.data.text import Row
from paradec.errors import InputError
from paradec.types import TextBatch


class Source(Protocol):
    """Rows by their number. One with `moved(index, rng)` may vary a row from epoch to epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


def batches(
    source: Source,
    batch: int,
    *,
    seed: int = 0,
    pack: int = 0,
    make: Callable[[Row], Any] | None = None,
    threads: int = 4,
) -> Batches | Packed:
    """Endless shuffled batches of `batch` rows: of each, the rows that this process holds (`mesh.held`).

    With `pack`, rows of different lengths are put one after the other into rows of `pack` tokens, with segments and
    positions. The result's iterators have `get_state` and `set_state`. Unpacked, the batches are the same, row for row,
    on any mesh of any number of processes. `make` turns stacked rows into what the objective reads (default: a
    `TextBatch`).
    """
    check_batch(batch)
    if not len(source):
        raise InputError("The data has no rows to learn from.")
    if not pack and len(source) < batch:
        raise InputError(f"The data has {len(source)} rows, less than one batch of {batch}.")
    rows = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    moved = getattr(source, "moved", None)
    rows = rows.map(source.__getitem__) if moved is None else rows.random_map(moved)
    data = (rows, batch, make or text_batch, threads)
    return Packed(*data, pack) if pack else Batches(*data)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches whose row k of batch n is row `n * batch + k` of the shuffled order. The position counts these rows."""

    rows: grain.MapDataset
    batch: int
    make: Callable[[Row], Any]
    threads: int

    def __iter__(self) -> _Batches:
        return _Batches(self)

    def after(self, first: int) -> Iterator[Any]:
        """The batches from row `first` of the order on."""
        held = mesh.held(self.batch)
        rows = grain.MapDataset.source(_Dealt(self.rows, first, self.batch, held.tolist()))
        buffer = _buffer(self.threads, len(held))
        return iter(rows.to_iter_dataset(buffer).batch(len(held), drop_remainder=True).map(self.make))


@dataclasses.dataclass(frozen=True)
class _Dealt:
    """The rows at some places of every batch, one after the other."""

    rows: grain.MapDataset
    first: int
    batch: int
    held: list[int]

    def __len__(self) -> int:
        return (len(self.rows) - self.first) // self.batch * len(self.held)

    def __getitem__(self, index: int) -> Row:
        number, place = divmod(int(index), len(self.held))
        row = self.rows[self.first + number * self.batch + self.held[place]]
        return cast(Row, row)  # None only where a filter has dropped it, and there is none


class _Batches(Iterator):
    def __init__(self, data: Batches):
        self.data = data
        self.set_state({"row": 0})

    def __next__(self) -> Any:
        self.inner = self.data.after(self.next) if self.inner is None else self.inner
        found = next(self.inner)
        self.next += self.data.batch
        return found

    def get_state(self) -> dict[str, int]:
        return {"row": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next, self.inner = int(state["row"]), None  # read ahead when asked, not before


@dataclasses.dataclass(frozen=True)
class Packed:
    """Batches of packed rows. Each lane of processes (`mesh.lane`) packs a share of the shuffled order on its own."""

    rows: grain.MapDataset
    batch: int
    make: Callable[[Row], Any]
    threads: int
    length: int

    def __iter__(self) -> _Packed:
        number, of, lane = mesh.lane(self.batch)
        rows = self.rows[number::of].to_iter_dataset(_buffer(self.threads, len(lane)))
        lengths = {"token": self.length, "learn": self.length}
        packed = grain.experimental.FirstFitPackIterDataset(rows, length_struct=lengths, num_packing_bins=len(lane))
        mine = np.searchsorted(lane, mesh.held(self.batch))
        kept = lambda some: self.make({name: x[mine] for name, x in some.items()})
        return _Packed(iter(packed.batch(len(lane), drop_remainder=True).map(kept)), (number, of))


class _Packed(Iterator):
    """Where there are several lanes, a position is one of its lane."""

    def __init__(self, inner: Any, lane: tuple[int, int]):
        self.inner, self.lane = inner, lane

    def __next__(self) -> Any:
        return next(self.inner)

    def get_state(self) -> dict[str, Any]:
        state = self.inner.get_state()
        return state if self.lane[1] == 1 else state | {"lane": list(self.lane)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.inner.set_state({name: x for name, x in state.items() if name != "lane"})


def _buffer(threads: int, rows: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4 * threads, rows))


def text_batch(rows: Row) -> TextBatch:
    """Stacked rows as the next-token objective reads them."""
    segment, position = rows.get("token_segment_ids"), rows.get("token_positions")
    return TextBatch(
        token=rows["token"].astype(np.int32),
        learn=rows["learn"].astype(bool),
        segment=None if segment is None else segment.astype(np.int32),
        position=None if position is None else position.astype(np.int32),
    )


class HeldOut:
    """Every row of a source once, in order, in batches of one shape: what an evaluation reads, as often as it likes.

    A process reads the rows that it holds (`mesh.held`). The last batch is filled with rows in which nothing is
    learned. Rows of different lengths need `length`: they are filled likewise to so many tokens, which are a segment of
    their own, as in a packed batch.
    """

    def __init__(self, source: Source, batch: int, make: Callable[[Row], Any] = text_batch, *, length: int = 0):
        """Raises `InputError` where there is nothing to evaluate on."""
        check_batch(batch)
        if not len(source):
            raise InputError("There is nothing to evaluate on: no row is held out.")
        self.source, self.batch, self.make, self.length = source, batch, make, length

    def __iter__(self) -> Iterator[Any]:
        held = mesh.held(self.batch).tolist()
        for first in range(0, len(self.source), self.batch):
            numbers = [first + place for place in held]
            rows = [self.source[n] if n < len(self.source) else None for n in numbers]
            like = next((row for row in rows if row is not None), self.source[0])
            rows = [{k: np.zeros_like(v) for k, v in like.items()} if row is None else row for row in rows]
            if self.length:
                rows = [_filled(row, self.length) for row in rows]
            yield self.make({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _filled(row: Row, length: int) -> Row:
    """A row of tokens as the only document of a packed one."""
    size = len(row["token"])
    place = np.arange(length)
    return {name: np.pad(values, (0, length - size)) for name, values in row.items()} | {
        "token_segment_ids": (place < size).astype(np.int32),
        "token_positions": np.where(place < size, place, 0),
    }


def check_batch(batch: int) -> None:
    """Raise `InputError` for a batch that is none, or that the mesh in use does not split."""
    if batch < 1:
        raise InputError(f"A batch needs at least 1 row; {batch} were asked for.")
    mesh.held(batch)
