"""State tracking: a label is what the whole word up to it leads to, computed here another way."""

from __future__ import annotations

import numpy as np
import pytest

from paradec.data.tracking import TASKS, Tracking
from paradec.errors import InputError, UnknownName


def composed(source: Tracking, token: np.ndarray) -> str:
    """The name of the state after a word, from what its symbols mean and not from the table."""
    if source.task == "parity":
        return ["even", "odd"][int(token.sum()) % 2]
    if source.task == "counter":
        return str(int((token - 1).sum()) % source.modulus)
    things = list("abcde"[: int(source.task[1:])])
    for symbol in token:
        if symbol:
            things[symbol - 1], things[symbol] = things[symbol], things[symbol - 1]
    return "".join(things)


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_where_the_word_leads(task):
    source = Tracking(task, length=30, rows=20)
    assert len(source) == 20
    for index in range(20):
        row = source[index]
        assert row["token"].dtype == row["label"].dtype == np.int32 and row["learn"].all()
        assert row["token"].shape == row["label"].shape == row["learn"].shape == (30,)
        for t, label in enumerate(row["label"]):
            assert source.machine.states[label] == composed(source, row["token"][: t + 1])
    np.testing.assert_array_equal(source[7]["token"], Tracking(task, length=30, rows=9)[7]["token"])


SIZES = [("parity", 2, 2), ("counter", 3, 5), ("s3", 3, 6), ("s5", 5, 120)]


@pytest.mark.parametrize(("task", "symbols", "states"), SIZES)
def test_machines(task, symbols, states):
    """Every symbol permutes the states, and every state is reached from the first."""
    source = Tracking(task)
    machine = source.machine
    assert (len(machine.symbols), len(machine.states)) == (symbols, states) == machine.after.shape
    assert source.vocab_size == max(symbols, states)
    assert all(sorted(row) == list(range(states)) for row in machine.after)
    reached = {0}
    while more := {int(s) for s in machine.after[:, sorted(reached)].flat} - reached:
        reached |= more
    assert reached == set(range(states))


def commutators(group: np.ndarray) -> np.ndarray:
    """All a b a⁻¹ b⁻¹ of permutations "G S", each once."""
    inverse = np.argsort(group, axis=1).astype(group.dtype)
    back = inverse[:, inverse]  # a⁻¹ b⁻¹, "G G S"
    both = np.take_along_axis(group[None], back, axis=2)
    found = np.take_along_axis(group[:, None], both, axis=2).reshape(-1, group.shape[1])
    return np.asarray(sorted({p.tobytes(): p for p in found}.values(), key=lambda p: p.tobytes()))


def test_s5_is_not_solvable():
    """The symbols generate a group whose commutators stay 60 elements, however often they are taken; S3's vanish."""
    for task, sizes in (("s3", [6, 3, 1]), ("s5", [120, 60, 60])):
        after = Tracking(task).machine.after
        group = {tuple(range(after.shape[1]))}
        while more := {tuple(np.asarray(p)[m].tolist()) for p in group for m in after} - group:
            group |= more
        elements, found = np.asarray(sorted(group), np.uint8), []
        for _ in sizes:
            found.append(len(elements))
            elements = commutators(elements)
        assert found == sizes


def test_the_test_is_longer_and_of_other_words():
    source = Tracking("s3", length=8, rows=50)
    assert (source.test_length, len(source.test[0]["token"]), len(source.test)) == (32, 32, 50)
    assert len(Tracking("s3", 8, test_length=11).test[0]["token"]) == 11
    assert len(Tracking("s3", 8).test) == 1000
    shared = sum((source.test[i]["token"][:8] == source[i]["token"]).all() for i in range(50))
    assert shared < 3


def test_what_is_no_task():
    with pytest.raises(UnknownName, match="no task of state tracking named 's4'"):
        Tracking("s4")
    with pytest.raises(InputError, match="length 0"):
        Tracking(length=0)
    with pytest.raises(InputError, match="modulus 1"):
        Tracking("counter", modulus=1)
