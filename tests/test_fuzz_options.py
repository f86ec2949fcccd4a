"""Any value for any option of any system and engine: a method, or a sentence of ours, and never a traceback.

Nothing is decoded. The signatures are not checked by the tests' import hook here, as they are for nobody else.
`PARADEC_CASES` asks for 10,000 cases in all.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradec import catalog, composition
from paradec.decode.canvas_cache import POLICIES
from paradec.decode.unmasking.regions import Everything
from paradec.decode.view import SCORES
from paradec.errors import ParadecError
from paradec.methods import method_for
from paradec.request import Request
from paradec.system import Option
from paradec.testing.check import CANVAS_TARGETS, PREFIX_TARGETS, sample_components

ROWS = catalog.SYSTEMS
DOORS = 4
CASES = (10_000 if "PARADEC_CASES" in os.environ else 1_000) // DOORS
FUZZ = settings(
    max_examples=CASES, deadline=None, derandomize="PARADEC_CASES" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

EDGES = {
    int: (
        0, 1, 2, 3, 8, 64, 65, 2048, 2049, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**63, 10**400, 10**5000, -1,
        -(2**30), -(2**31), -(10**400),
    ),
    float: (
        0.0, -0.0, 0.3, 1.0, 1.5, -0.1, 1e-320, 1e38, 1e39, 1e308, -1e308, float("inf"), -float("inf"), float("nan"),
    ),
    bool: (True, False),
    str: (
        *SCORES, *POLICIES, "origin", "free", "late", "never", "match", "typical", "rejection", "", "none ", "\0",
        "\udcff",
    ),
}  # fmt: skip
ODD = st.one_of(
    *(st.sampled_from(edges) for edges in EDGES.values()), st.none(), st.integers(), st.floats(), st.text(max_size=4),
    st.binary(max_size=3), st.fractions(), st.decimals(), st.complex_numbers(),
    st.recursive(
        st.integers(-2, 2**40) | st.text(max_size=2) | st.none() | st.floats(), lambda x: st.lists(x, max_size=3)
    ),
    st.lists(st.integers(-3, 100), max_size=4).map(tuple), st.sets(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(lambda: iter([3, 5])), st.builds(object),
    st.sampled_from([
        np.int64(3), np.uint64(2**64 - 1), np.float16(0.5), np.float64("nan"), np.bool_(True), np.str_("late"),
        np.zeros(2), np.zeros((3, 24), np.int32), np.full((2, 2), 2**40), np.zeros((2, 0), np.int32), np.array([2.5]),
        np.array("a"), np.array([None, 1]), jnp.int32(2), jnp.float32(0.7), jnp.zeros((2, 2), jnp.int32),
        jnp.ones(3), len, int, Ellipsis, range(3), range(2**40, 2**40 + 2), NotImplemented, ["a", 3], [[1, 2], [3]],
    ]),
)  # fmt: skip
"""What users hand in by mistake, of any kind."""


def values(option: Option):
    """For one option: mostly in its range, else at its edges or anything at all."""
    if option.kind is None:
        usual = edges = st.lists(st.integers(0, 96), min_size=1, max_size=4)
    else:
        plain = {int: st.integers(1, 8), float: st.floats(0.1, 0.9), bool: st.booleans(), str: st.text(max_size=5)}
        usual, edges = plain[option.kind], st.sampled_from(EDGES[option.kind])
    if not option.required:
        usual |= st.just(option.default)
    chances = st.sampled_from([usual] * 7 + [edges, edges, ODD])
    return chances.flatmap(lambda chosen: chosen)


@st.composite
def method_names(draw) -> str:
    """Systems joined by "+": mostly such as go together, sometimes not, sometimes none at all."""
    kind = draw(st.sampled_from(["one", "one", "one", "engine", "engine", "engine", "any", "odd"]))
    if kind == "one":
        return draw(st.sampled_from(list(ROWS)))
    if kind == "odd":
        known = ["", "+", "++", " quota ", "quota+", "+quota", "quota+quota", "quotas", "QUOTA", "ar + typical"]
        return draw(st.sampled_from(known)
                    | st.text(max_size=8) | st.text(alphabet="+ aàe🙂", max_size=5))  # fmt: skip
    if kind == "any":
        return "+".join(draw(st.lists(st.sampled_from(list(ROWS)), max_size=4)))
    slots = draw(st.sampled_from([("draft", "accept"), ("select", "rewrite", "region", "stop", "cut", "wrap")]))
    chosen = [draw(st.sampled_from(["", *(n for n, row in ROWS.items() if row.slot == slot)])) for slot in slots]
    return "+".join(draw(st.permutations([name for name in chosen if name])))


@st.composite
def asked(draw) -> tuple[str, dict[str, Any]]:
    """Names, and options most of which the method has: what must be given mostly is."""
    names = draw(method_names())
    try:
        known = composition.known_options(names)
    except ParadecError:
        known = {}
    keys = draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True)) if known else []
    keys += [key for key, option in known.items() if option.required and "." in key and draw(st.integers(0, 5))]
    options = {key: draw(values(known[key])) for key in dict.fromkeys(keys)}
    if not draw(st.integers(0, 7)):
        odd = st.sampled_from(
            ["", ".", "tau", "quota.tau", ".tau", "a.b.c", "block.", "eos", "base", "target", "names", "words"]
        )
        options[draw(odd | st.text(max_size=4))] = draw(ODD)
    return names, options


@pytest.fixture(autouse=True, scope="module")
def _as_users_run():
    """No checks of signatures."""
    try:
        import jaxtyping

        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
    except ImportError:
        jaxtyping = None
    yield
    if jaxtyping is not None:
        jaxtyping.config.update("jaxtyping_disable", before)


TARGETS = {
    name: make() for name, make in (PREFIX_TARGETS | CANVAS_TARGETS).items() if name in ("transformer", "full", "both")
}
COMPONENTS = {
    name: {kind: part for row in ROWS.values() for kind, part in sample_components(row, *made).items()}
    for name, made in TARGETS.items() if name != "full"
}  # fmt: skip
COMPONENTS["full"] = {"filter": COMPONENTS["both"]["filter"]}
pytestmark = pytest.mark.filterwarnings("error")
SEEN = {"made": 0, "refused": 0}


def attempt(door, *args: Any, **how: Any) -> Any:
    """What the door returns; None where it refuses in a sentence, soon. Anything else that it raises is the finding."""
    start = time.perf_counter()
    try:
        made = door(*args, **how)
    except ParadecError as refusal:
        said, made = str(refusal), None
        assert said.endswith((".", ".)")) and "\n" not in said and len(said) < 4000, said
        SEEN["refused"] += 1
    else:
        SEEN["made"] += 1
    assert time.perf_counter() - start < 5, "it took too long to say so"
    return made


@FUZZ
@given(ask=asked())
def test_the_check_before_a_model_is_there(ask):
    attempt(composition.check_options, *ask)


@FUZZ
@given(ask=asked(), target=st.sampled_from(list(TARGETS)))
def test_composing(ask, target):
    attempt(composition.compose, TARGETS[target][0], *ask, eos=(3,), components=COMPONENTS[target])


WORDS = st.sampled_from([
    "", "=", "nan", "-inf", "1e999", "1,2", "1,x", ",", "9" * 500, "0x1", "1_0", "true", "None", "🙂", "٣", "0", "-1",
    str(2**31), str(2**64),
]) | st.text(max_size=6)  # fmt: skip


@FUZZ
@given(names=method_names(), data=st.data())
def test_the_text_of_a_command_line(names, data):
    """`key=value` as the command line hands it on; what can be read goes through the check as well."""
    try:
        known = sorted(composition.known_options(names))
    except ParadecError:
        known = ["tau"]
    key = st.sampled_from(known) if known else st.text(max_size=3)
    pairs = data.draw(st.lists(st.tuples(key, WORDS).map("=".join) | WORDS, max_size=3))
    read = attempt(composition.parse, names, pairs)
    if read is not None:
        attempt(composition.check_options, names, read)


@FUZZ
@given(ask=asked(), target=st.sampled_from(list(TARGETS)), part=st.booleans())
def test_what_a_language_model_is_asked(ask, target, part):
    """A method by name, or one part of it that is there already, with options that are left for the rest."""
    names, options = ask
    model, params = TARGETS[target]
    kinds = set(COMPONENTS) | {"draft", "heads", "filter"}  # what names a file or a model is loading's to judge
    options = {key: value for key, value in options.items() if key.rpartition(".")[2] not in kinds}
    tokenizer = SimpleNamespace(eos_ids=(3,), vocab_size=90)
    lm = SimpleNamespace(model=model, params=params, name="tiny", tokenizer=tokenizer, components={}, method_args={})
    method: Any = names
    if part:
        row = ROWS.get(names, ROWS["jacobi"])
        method = row.make() if not row.needs and not any(o.required for o in row.options.values()) else Everything()
    ask_for = Request(method=method, max_new_tokens=4)
    attempt(method_for, lm, ask_for, dict(options))


def test_both_answers_are_frequent():
    """Of what the tests above tried: a fuzz that is always refused at the first door looks behind none."""
    tried = SEEN["made"] + SEEN["refused"]
    assert tried >= CASES * DOORS * 0.9 and min(SEEN.values()) > tried / 8, SEEN
