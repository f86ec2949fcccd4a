"""Batches: every row, any number of processes, any place to go on from."""

import contextlib

import jax
import numpy as np
import pytest

from paradec import mesh
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


@pytest.fixture
def as_process(monkeypatch):
    """Run what is inside as one of several processes that each have so many of the eight devices."""

    @contextlib.contextmanager
    def of(index, devices, data, model):
        with monkeypatch.context() as m, mesh.use(mesh.make_mesh(data, model)):
            mesh._holders.cache_clear()
            m.setattr(mesh, "_process", lambda device: device.id // devices)
            m.setattr(jax, "process_index", lambda: index)
            yield
        mesh._holders.cache_clear()

    return of


@pytest.mark.parametrize("threads", [0, 3])
def test_an_epoch_is_every_row_once_and_the_next_in_another_order(threads):
    rows = np.concatenate([b.token[:, 0] for b in take(chain.batches(Rows(24), 4, threads=threads), 12)])
    first, second = rows[:24].tolist(), rows[24:].tolist()
    assert sorted(first) == sorted(second) == list(range(24)) and first != second != sorted(second)
    other = np.concatenate([b.token[:, 0] for b in take(chain.batches(Rows(24), 4, seed=1), 6)])
    assert other.tolist() != first


PROCESSES = {"two": (4, 4, 2), "four": (2, 4, 2), "two to a data row": (2, 2, 4), "one data row": (4, 1, 8)}
"""Devices of a process, and the mesh."""


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_read_their_rows_of_the_batches_of_one(as_process, name):
    """In their places, and also from where another number of processes has stopped."""
    devices, data, model = PROCESSES[name]
    inner = iter(chain.batches(Rows(24), 8))
    wanted = [next(inner).token for _ in range(5)]
    position = inner.get_state()
    rest = [next(inner).token for _ in range(2)]
    for index in range(8 // devices):
        with as_process(index, devices, data, model):
            inner, held = iter(chain.batches(Rows(24), 8)), mesh.held(8)
            for whole in wanted:
                np.testing.assert_array_equal(next(inner).token, whole[held])
            assert inner.get_state() == position
            other = iter(chain.batches(Rows(24), 8))
            other.set_state(position)
            for whole in rest:
                np.testing.assert_array_equal(next(other).token, whole[held])


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_with_a_data_row_in_common_pack_the_same(as_process, name):
    devices, data, model = PROCESSES[name]
    rows, lanes = {}, {}
    for index in range(8 // devices):
        with as_process(index, devices, data, model):
            inner = iter(chain.batches(Rows(400, ragged=True), 8, pack=16))
            batches, (lane, of, _) = [next(inner).token for _ in range(3)], mesh.lane(8)
            for place, row in zip(mesh.held(8), np.stack(batches, 1), strict=True):
                np.testing.assert_array_equal(rows.setdefault(int(place), row), row)
            assert inner.get_state().get("lane", [0, 1]) == [lane, of]
            assert lanes.setdefault(lane, inner.get_state()) == inner.get_state()
    assert sorted(rows) == list(range(8)) and len(lanes) == of == min(data, 8 // devices)
    seen = [set(np.stack([rows[p] for p in range(8) if p * of // 8 == lane]).ravel()) for lane in range(of)]
    assert not set.intersection(*seen) - {0} or of == 1


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


@pytest.mark.parametrize("name", PROCESSES)
def test_held_out_rows_come_once_in_one_shape(as_process, name):
    wanted = list(chain.HeldOut(Rows(20), 8))
    assert [b.token.shape for b in wanted] == [(8, 4)] * 3
    assert [r for b in wanted for r in b.token[b.learn[:, 0], 0]] == list(range(20))
    devices, data, model = PROCESSES[name]
    for index in range(8 // devices):
        with as_process(index, devices, data, model):
            data_, held = chain.HeldOut(Rows(20), 8), mesh.held(8)
            for _ in range(2):
                for mine, whole in zip(data_, wanted, strict=True):
                    jax.tree.map(lambda a, b, held=held: np.testing.assert_array_equal(a, b[held]), mine, whole)


def test_held_out_rows_of_any_length(as_process):
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
        with as_process(index, 4, 2, 4):
            shapes |= {batch.token.shape for batch in held}
    assert shapes == {(2, 7)}


def test_batches_that_cannot_be():
    with pytest.raises(InputError, match="3 rows, less than one batch of 4"):
        chain.batches(Rows(3), 4)
    with pytest.raises(InputError, match="no rows to learn from"):
        chain.batches(Rows(0), 4, pack=8)
    with pytest.raises(InputError, match="no row is held out"):
        chain.HeldOut(Rows(0), 4)
    for make in (chain.batches, chain.HeldOut):
        with pytest.raises(InputError, match="at least 1 row; 0 were asked for"):
            make(Rows(8), 0)
    with mesh.use(mesh.make_mesh(8, 1)):
        for make in (chain.batches, chain.HeldOut):
            with pytest.raises(InputError, match="4 rows does not split over the 8 data rows"):
                make(Rows(8), 4)
