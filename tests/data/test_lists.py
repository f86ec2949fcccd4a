"""List operations as rows: every answer is right, wrong ones are not, and all answers are equally likely."""

from collections import Counter

import numpy as np
import pytest

from paradec.data.lists import OPERATIONS, Lists
from paradec.errors import InputError


def test_every_row_is_right_and_others_are_not():
    source, kinds = Lists(items=5, symbols=12, rows=400), Counter()
    for index in range(400):
        row = source[index]
        token, answer = row["token"], row["token"][source.prompt :].tolist()
        operation = OPERATIONS[token[0] - source.symbols]
        kinds[operation] += 1
        assert len(answer) == source.answer_length(operation) and row["learn"].sum() == len(answer)
        assert not row["learn"][: source.prompt].any() and source.right(token, answer)
        assert token.max() < source.mask_id and len(token) <= source.length
        given = token[3 : source.prompt]
        assert len(set(given.tolist())) == 5
        assert not source.right(token, [*answer[:-1], answer[0]])
        if operation in ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index"):
            assert not source.right(token, answer[::-1])
    assert set(kinds) == set(OPERATIONS) and min(kinds.values()) > 20
    np.testing.assert_array_equal(source[7]["token"], Lists(items=5, symbols=12, rows=9)[7]["token"])


def test_random_places_are_even():
    source = Lists(items=4, symbols=8, rows=4000, operations=["replace_random"])
    places = Counter(int(np.flatnonzero(source[i]["token"][-4:] != source[i]["token"][3:7])[0]) for i in range(4000))
    assert all(abs(places[p] - 1000) < 120 for p in range(4))


def test_bad_input():
    assert Lists(operations="sort").operations == ("sort",)
    with pytest.raises(InputError, match="There is no list operation"):
        Lists(operations=["swap"])
    with pytest.raises(InputError, match="need more than 6 symbols"):
        Lists(items=6, symbols=6)
