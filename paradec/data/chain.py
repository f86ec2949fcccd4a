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
    if batch % count:
        raise InputError(f"A batch of {batch} rows does not split over {count} processes.")
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

    The last batch is filled with rows in which nothing is learned. Rows shorter than the longest are filled likewise.
    """

    def __init__(self, source: Source, batch: int, make: Callable[[Row], Any] = text_batch):
        if batch % jax.process_count():
            raise InputError(f"A batch of {batch} rows does not split over {jax.process_count()} processes.")
        self.source, self.batch, self.make = source, batch, make

    def __iter__(self) -> Iterator[Any]:
        count, mine = jax.process_count(), jax.process_index()
        for first in range(0, len(self.source), self.batch):
            numbers = range(first + mine, first + self.batch, count)
            rows = [self.source[n] if n < len(self.source) else None for n in numbers]
            like = next((row for row in rows if row is not None), self.source[0])
            rows = [{k: np.zeros_like(v) for k, v in like.items()} if row is None else row for row in rows]
            yield self.make({name: _stack([row[name] for row in rows]) for name in like})


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    longest = max((row.shape[0] for row in rows if row.ndim), default=0)
    fill = lambda row: np.pad(row, [(0, longest - row.shape[0])] + [(0, 0)] * (row.ndim - 1)) if row.ndim else row
    return np.stack([fill(row) for row in rows])
