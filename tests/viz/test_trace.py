"""A trace says what it counts, survives JSON, and refuses what cannot have happened."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.types import OPEN
from paradec.viz import Trace


def test_counts(trace):
    assert (trace.tokens, trace.calls, trace.tokens_per_call, trace.tokens_per_second) == (6, 3, 2.0, 3.0)
    assert trace.text == "The quick brown fox."
    assert trace.per_call == (2, 1, 3)
    assert trace.ordered
    assert list(trace.groups()) == [(1, ("The", " quick")), (2, (" brown",)), (3, (" fox", ".", ""))]


def test_an_empty_trace_divides_by_nothing():
    empty = Trace("ar", "", (), (), calls=0, seconds=0.0)
    assert (empty.tokens, empty.tokens_per_call, empty.tokens_per_second, empty.per_call) == (0, 0.0, None, ())


@settings(deadline=None)  # the machine may be busy
@given(...)
def test_json_round_trip(trace: Trace):
    line = trace.to_json()
    assert Trace.from_json(line) == trace
    assert line.isascii() and "\n" not in line
    assert str(int(OPEN)) not in json.dumps(json.loads(line)["settled"]), "an open position is null, not a magic number"


@settings(deadline=None)  # the machine may be busy
@given(...)
def test_groups_are_the_text(trace: Trace):
    groups = list(trace.groups())
    assert tuple(piece for _, pieces in groups for piece in pieces) == trace.pieces
    assert all(a != b for (a, _), (b, _) in itertools.pairwise(groups))
    assert sum(trace.per_call) == trace.tokens


@settings(deadline=None)  # the machine may be busy
@given(trace=st.from_type(Trace), call=st.integers(-1, 14))
def test_at_is_the_past(trace: Trace, call: int):
    then = trace.at(call)
    assert all((c == now) if now <= call else (c == OPEN) for c, now in zip(then.settled, trace.settled, strict=True))
    assert then.tokens == sum(trace.per_call[: max(0, call)])
    assert then.calls == min(max(call, 0), trace.calls)
    assert dataclasses.replace(trace.at(trace.calls), seconds=trace.seconds) == trace


def test_arrays_become_plain_python():
    loose: Any = {"pieces": ["a", "b"], "settled": np.array([1, OPEN], np.int32), "calls": np.int32(1)}
    trace = Trace("ar", "", **loose)
    assert trace == Trace("ar", "", ("a", "b"), (1, int(OPEN)), calls=1)
    assert hash(trace) and json.loads(trace.to_json())["settled"] == [1, None]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"settled": (1, 1)}, "6 pieces but 2 call numbers"),
        ({"settled": (0, 1, 1, 1, 1, 1)}, "leave out the prompt"),
        ({"settled": (1, 1, 2, 3, 3, 4)}, r"settled\[5\] is call 4, outside 1..3"),
        ({"settled": (1.5,) * 6}, "must be integers"),
        ({"pieces": (1, 2, 3, 4, 5, 6)}, "not its id"),
        ({"calls": -1}, "fewer than 0"),
        ({"calls": "3"}, "must be integers"),
        ({"seconds": float("nan")}, "finite"),
        ({"seconds": -1.0}, "at least 0"),
        ({"method": ""}, "name of its method"),
    ],
)
def test_impossible_traces_are_refused(trace, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(trace, **change)


def test_foreign_json_is_refused(trace):
    with pytest.raises(ValueError, match=r"unknown fields \['color'\]"):
        Trace.from_dict(trace.to_dict() | {"color": 1})
    with pytest.raises(ValueError, match=r"missing fields \['method'"):
        Trace.from_dict({"calls": 1})
    with pytest.raises(ValueError, match="not list"):
        Trace.from_json("[]")
