"""What a caller may hand over: one string is one string, numbers are plain numbers, and the rest is a sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError, UnknownName, as_kind
from paradec.learn.loop import Run
from paradec.learn.objectives.masked import Noise
from paradec.learn.step import Plan
from paradec.request import EACH, Request, names, texts
from tests.fixtures import write_tiny_model
from tests.quick import quick_environment

IDS = [3, 1, 2]


def shown(value):
    """A test's name for a value: the same in every process, so without its address."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hello", ["Hello"]),
        (["Hello", "x"], ["Hello", "x"]),
        (("Hello",), ["Hello"]),
        ((p for p in ("a", "b")), ["a", "b"]),
        (np.asarray(["a", "b"]), ["a", "b"]),
        (IDS, [IDS]),
        ([IDS, "x"], [IDS, "x"]),
        (np.asarray(IDS), [IDS]),
        (jnp.asarray(IDS), [IDS]),
        ([np.int64(i) for i in IDS], [IDS]),
        ([jnp.int32(i) for i in IDS], [IDS]),
        ([np.asarray(IDS), jnp.asarray(IDS)], [IDS, IDS]),
        (np.asarray([IDS, IDS]), [IDS, IDS]),
        ((i for i in IDS), [IDS]),
        (range(3), [[0, 1, 2]]),
    ],
    ids=shown,
)
def test_prompts_in_every_form(given, prompts):
    found = texts(given)
    assert found == prompts
    assert all(isinstance(i, int) for p in found if not isinstance(p, str) for i in p)


@pytest.mark.parametrize(
    "given",
    [[], (), iter(()), np.zeros(0, int), b"Hello", {"a": 1}, {1, 2}, [1, "x"], [None], [1.5], np.ones(3), [[["x"]]],
     [[1.0]], [True], np.asarray(3), [b"x"]],
    ids=shown,
)  # fmt: skip
def test_what_is_no_prompt_is_said(given):
    with pytest.raises(InputError):
        texts(given)


def test_one_name_is_one_name():
    assert names("jacobi") == ["jacobi"] and names(("ar", "jacobi")) == ["ar", "jacobi"]
    assert Request(stop="END").stop == Request(stop=["END"]).stop == ("END",)
    assert Request(stop=None).stop == ()


def test_numbers_become_plain():
    ask = Request(max_new_tokens=np.int64(3), top_k=jnp.int32(2), temperature=np.float32(0.5), min_p=0, raw=np.True_)
    assert ask == Request(max_new_tokens=3, top_k=2, temperature=0.5, min_p=0.0, raw=True)
    assert all(type(value) is type(vars(Request())[name]) for name, value in vars(ask).items())


WRONG = ["3", b"3", None, True, 2.5, float("inf"), float("nan"), {}, 3j, object(), np.ones((2, 2)), 10**40]
ROWS = [[3], (3,), np.ones(2)]
NOT_EACH = [["3"], [None], (True,), [float("nan")], [[1]], [3j], ((3,),), [1, 10**40]]


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "batch_size"])
@pytest.mark.parametrize("value", [*WRONG, *ROWS, *NOT_EACH], ids=shown)
def test_whole_numbers_are_whole(name, value):
    if name in ("max_new_tokens", "batch_size") and isinstance(value, int) and value > 1:
        assert getattr(Request(**{name: value}), name) == value  # what is too much is cut where it is used
    elif name in EACH and any(value is row for row in ROWS[:2]):
        assert getattr(Request(**{name: value}), name) == (3,)
    else:
        with pytest.raises(InputError, match=name):
            Request(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition"])
@pytest.mark.parametrize(
    "value", [*(w for w in WRONG if not (isinstance(w, float) and w == 2.5)), *NOT_EACH], ids=shown
)
def test_numbers_are_numbers(name, value):
    with pytest.raises(InputError, match=name):
        Request(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition"])
@pytest.mark.parametrize("value", [[0.5, 1], (0.5, 1), np.asarray([0.5, 1]), jnp.asarray([0.5, 1])], ids=shown)
def test_numbers_may_be_one_for_each_prompt(name, value):
    assert getattr(Request(**{name: value}), name) == (0.5, 1.0)


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 2**31}, {"raw": 1}, {"ignore_eos": "no"}, {"stop": 3}, {"stop": [3]}, {"stop": b"x"}, {"method": None},
     {"method": 3}, {"temperature": 1e39}, {"temperature": 1e-40}, {"repetition": 1e-40}],
    ids=shown,
)  # fmt: skip
def test_other_values_are_sentences(fields):
    with pytest.raises(InputError):
        Request(**fields)


def test_an_option_that_is_not_there_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'max_new_tokens'"):
        Request.of({"max_tokens": 3})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(Plan, {"steps": 2.5}), (Plan, {"learning_rate": "1e-3"}), (Plan, {"micro": True}), (Plan, {"beta1": None}),
     (Run, {"save_every": "5"}), (Run, {"keep_last": 1.5}), (Run, {"changed": 1}), (Noise, {"block": 1.0}),
     (Noise, {"low": "x"}), (Noise, {"even": 1})],
    ids=shown,
)  # fmt: skip
def test_other_options_are_checked_alike(kind, fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        kind(**fields)


def test_kinds():
    assert as_kind("x", np.float64(3), float) == 3.0 and type(as_kind("x", 3, float)) is float
    assert as_kind("x", np.str_("a"), str) == "a"
    with pytest.raises(InputError, match="x must be a whole number; 3.0 was given"):
        as_kind("x", 3.0, int)


def test_odd_values_at_the_door(tmp_path):
    """Thousands of calls with values of any kind: an answer or a sentence, soon, and in little memory."""
    cases = os.environ.get("PARADEC_CASES", "400")
    program = Path(__file__).with_name("fuzz_door.py")
    command = [sys.executable, program, write_tiny_model(tmp_path / "tiny"), cases]
    done = subprocess.run([*map(str, command)], env=quick_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["decoded"] > int(cases) / 4 and found["refused"] > int(cases)
    assert found["slowest"] < 5, found
    assert found["gibibytes"] < 2, found
