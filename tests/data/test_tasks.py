"""Padded answers and running sums as rows: one answer is right, and rows say what is learned."""

from collections import Counter

import numpy as np
import pytest

from paradec.data.padded import OPERATIONS, Padded
from paradec.data.sums import Sums
from paradec.errors import InputError


@pytest.fixture(scope="module")
def padded():
    return Padded(items=6, symbols=24, rows=400, longest=20, answer=22)


def test_padded_rows_are_right_and_end(padded):
    kinds, lengths = Counter(), set()
    for index in range(400):
        row = padded[index]
        token, answer = row["token"], row["token"][padded.prompt :]
        text = [int(t) for t in answer if t != padded.eos]
        kinds[OPERATIONS[token[0] - padded.symbols]] += 1
        lengths.add(len(text))
        assert len(token) == padded.length and token.max() == padded.eos < padded.mask_id < padded.vocab_size
        assert not row["learn"][: padded.prompt].any() and row["learn"][padded.prompt :].all()
        assert max(text) < padded.symbols and (answer[len(text) :] == padded.eos).all()
        assert padded.right(token, answer) and padded.right(token, text)
        assert not padded.right(token, text[:-1]) and not padded.right(token, [*text, text[-1]])
        assert not padded.right(token, [text[0] ^ 1, *text[1:]])
    assert set(kinds) == set(OPERATIONS) and min(kinds.values()) > 100
    assert lengths == set(range(4, 21))
    np.testing.assert_array_equal(padded[7]["token"], Padded(6, 24, rows=9, longest=20, answer=22)[7]["token"])


def test_what_follows_the_end_does_not_count(padded):
    token = padded[3]["token"].copy()
    answer = token[padded.prompt :]
    answer[-1] = 0
    assert padded.right(token, answer)
    answer[np.argmax(answer == padded.eos)] = 0
    assert not padded.right(token, answer)


@pytest.mark.parametrize(
    ("operation", "given", "answer"),
    [("count", [3, 7], [3, 4, 5, 6, 7]), ("repeat", [9, 4], [9] * 4), ("sort", [8, 2, 5, 1], [1, 2, 5, 8])],
)
def test_what_is_asked(padded, operation, given, answer):
    none = [padded.none] * (6 - len(given))
    assert padded.solved([padded.symbols + OPERATIONS.index(operation), *given, *none, *[padded.eos] * 22]) == answer


def test_sums_follow_from_one_another():
    source = Sums(items=9, base=7, rows=50)
    for index in range(50):
        row = source[index]
        digits, sums = row["token"][:9].tolist(), row["token"][9:].tolist()
        assert sums[0] == digits[0] and all(sums[i] == (sums[i - 1] + digits[i]) % 7 for i in range(1, 9))
        assert row["learn"].tolist() == [False] * 9 + [True] * 9 and len(row["token"]) == source.length
        assert source.right(row["token"], sums) and not source.right(row["token"], [*sums[:-1], (sums[-1] + 1) % 7])
    assert source.mask_id == 7 and source.vocab_size == 8
    assert len({tuple(source[i]["token"]) for i in range(50)}) == 50


def test_bad_input():
    with pytest.raises(InputError, match="There is no operation"):
        Padded(operations=["swap"])
    for wrong in ({"symbols": 24}, {"answer": 24}, {"items": 3}, {"items": 25}):
        with pytest.raises(InputError, match="must rise"):
            Padded(**wrong)
    with pytest.raises(InputError, match="needs a digit"):
        Sums(items=0)
