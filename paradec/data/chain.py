"""From a source of rows to batches: shuffled, dealt out to processes, packed, and resumable to the row (grain)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import jax
import numpy as np

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
) -> grain.IterDataset:
    """This process' rows of endless shuffled batches of `batch` rows over all processes.

    With `pack`, rows of different lengths are put one after the other into rows of `pack` tokens, with segments and
    positions. The result's iterators have `get_state` and `set_state`. Unpacked, every process reads as many batches,
    and the batches are the same for any number of processes up to the order of their rows. `make` turns stacked rows
    into what the objective reads (default: a `TextBatch`).
    """
    count, mine = jax.process_count(), jax.process_index()
    check_batch(batch)
    if not len(source):
        raise InputError("The data has no rows to learn from.")
    if not pack and len(source) < batch:
        raise InputError(f"The data has {len(source)} rows, less than one batch of {batch}.")
    rows = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    moved = getattr(source, "moved", None)
    rows = rows.map(source.__getitem__) if moved is None else rows.random_map(moved)
    buffer = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4 * threads, batch // count))
    rows = rows[mine::count].to_iter_dataset(buffer)
    if pack:
        lengths = {"token": pack, "learn": pack}
        rows = grain.experimental.FirstFitPackIterDataset(rows, length_struct=lengths, num_packing_bins=batch // count)
    return rows.batch(batch // count, drop_remainder=True).map(make or text_batch)


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

    The last batch is filled with rows in which nothing is learned. Rows of different lengths need `length`: they are
    filled likewise to so many tokens, which are a segment of their own, as in a packed batch.
    """

    def __init__(self, source: Source, batch: int, make: Callable[[Row], Any] = text_batch, *, length: int = 0):
        """Raises `InputError` where there is nothing to evaluate on."""
        check_batch(batch)
        if not len(source):
            raise InputError("There is nothing to evaluate on: no row is held out.")
        self.source, self.batch, self.make, self.length = source, batch, make, length

    def __iter__(self) -> Iterator[Any]:
        count, mine = jax.process_count(), jax.process_index()
        for first in range(0, len(self.source), self.batch):
            numbers = range(first + mine, first + self.batch, count)
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
    """Raise `InputError` for a batch that is none, or that the processes cannot share."""
    if batch < 1:
        raise InputError(f"A batch needs at least 1 row; {batch} were asked for.")
    if batch % jax.process_count():
        raise InputError(f"A batch of {batch} rows does not split over {jax.process_count()} processes.")
