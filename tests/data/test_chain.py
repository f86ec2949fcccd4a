"""Batches: every row, any number of processes, any place to go on from."""

import jax
import numpy as np
import pytest

from paradec.data import chain
from paradec.errors import InputError


class Rows:
    """Row i is i + 2 times the number i."""

    def __init__(self, count, ragged=False):
        self.count, self.ragged = count, ragged

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        length = i % 5 + 2 if self.ragged else 4
        return {"token": np.full(length, i, np.int32), "learn": np.ones(length, bool)}


def take(data, count):
    inner = iter(data)
    return [next(inner) for _ in range(count)]


def as_process(monkeypatch, index, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


@pytest.mark.parametrize("threads", [0, 3])
def test_an_epoch_is_every_row_once_and_the_next_in_another_order(threads):
    rows = np.concatenate([b.token[:, 0] for b in take(chain.batches(Rows(24), 4, threads=threads), 12)])
    first, second = rows[:24].tolist(), rows[24:].tolist()
    assert sorted(first) == sorted(second) == list(range(24)) and first != second != sorted(second)
    other = np.concatenate([b.token[:, 0] for b in take(chain.batches(Rows(24), 4, seed=1), 6)])
    assert other.tolist() != first


def test_two_processes_read_what_one_does(monkeypatch):
    whole = take(chain.batches(Rows(24), 4), 9)
    parts = []
    for index in (0, 1):
        as_process(monkeypatch, index, 2)
        parts.append(take(chain.batches(Rows(24), 4), 9))
    for one, a, b in zip(whole, *parts, strict=True):
        assert a.token.shape == (2, 4)
        assert sorted(one.token[:, 0]) == sorted([*a.token[:, 0], *b.token[:, 0]])


@pytest.mark.parametrize("pack", [0, 8])
@pytest.mark.parametrize("after", [1, 5])
def test_it_goes_on_where_it_was(pack, after):
    data = chain.batches(Rows(24, ragged=bool(pack)), 4, pack=pack)
    first = iter(data)
    for _ in range(after):
        next(first)
    position = first.get_state()
    wanted = [next(first) for _ in range(5)]
    again = iter(data)
    again.set_state(position)
    for a, b in zip(wanted, [next(again) for _ in range(5)], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_packed_rows_keep_documents_apart():
    seen = set()
    for batch in take(chain.batches(Rows(24, ragged=True), 4, pack=16), 12):
        for token, learn, segment, position in zip(
            batch.token, batch.learn, batch.segment, batch.position, strict=True
        ):
            assert not learn[segment == 0].any() and (segment > 0).sum() > 8
            for s in set(segment.tolist()) - {0}:
                document = token[segment == s]
                assert len(set(document.tolist())) == 1 and len(document) == document[0] % 5 + 2
                assert position[segment == s].tolist() == list(range(len(document)))
                seen.add(int(document[0]))
    assert seen == set(range(24))


def test_rows_may_vary_from_epoch_to_epoch():
    class Moving(Rows):
        def moved(self, i, rng):
            return {"token": np.full(4, i * 100 + rng.integers(100), np.int32), "learn": np.ones(4, bool)}

    data = chain.batches(Moving(8), 4)
    a, b = (np.concatenate([x.token[:, 0] for x in part]) for part in (take(data, 4)[:2], take(data, 4)[2:]))
    assert sorted(a // 100) == sorted(b // 100) == list(range(8)) and sorted(a) != sorted(b)
    np.testing.assert_array_equal(np.concatenate([x.token[:, 0] for x in take(data, 2)]), a)


def test_held_out_rows_come_once_in_one_shape(monkeypatch):
    held = chain.HeldOut(Rows(10), 4)
    for _ in range(2):
        batches = list(held)
        assert [b.token.shape for b in batches] == [(4, 4)] * 3
        assert [r for b in batches for r in b.token[b.learn[:, 0], 0]] == list(range(10))
    parts = []
    for index in (0, 1):
        as_process(monkeypatch, index, 2)
        for b in chain.HeldOut(Rows(10), 4):
            parts += b.token[b.learn[:, 0], 0].tolist()
    assert sorted(parts) == list(range(10))


def test_held_out_rows_of_any_length(monkeypatch):
    """They are filled to one length, whichever process reads them, and the filling is apart from the document."""
    held = chain.HeldOut(Rows(8, ragged=True), 4, length=7)
    sizes = [2, 3, 4, 5, 6, 2, 3, 4]
    for first, batch in zip((0, 4), held, strict=True):
        assert batch.token.shape == (4, 7) and batch.learn.sum(1).tolist() == sizes[first : first + 4]
        np.testing.assert_array_equal(batch.segment, batch.learn)
        for size, place in zip(sizes[first : first + 4], batch.position, strict=True):
            assert place[:size].tolist() == list(range(size))
    shapes = set()
    for index in (0, 1):
        as_process(monkeypatch, index, 2)
        shapes |= {batch.token.shape for batch in held}
    assert shapes == {(2, 7)}


def test_batches_that_cannot_be(monkeypatch):
    with pytest.raises(InputError, match="3 rows, less than one batch of 4"):
        chain.batches(Rows(3), 4)
    with pytest.raises(InputError, match="no rows to learn from"):
        chain.batches(Rows(0), 4, pack=8)
    with pytest.raises(InputError, match="no row is held out"):
        chain.HeldOut(Rows(0), 4)
    for make in (chain.batches, chain.HeldOut):
        with pytest.raises(InputError, match="at least 1 row; 0 were asked for"):
            make(Rows(8), 0)
    as_process(monkeypatch, 0, 3)
    for make in (chain.batches, chain.HeldOut):
        with pytest.raises(InputError, match="4 rows does not split over 3 processes"):
            make(Rows(8), 4)
