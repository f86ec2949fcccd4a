"""Chat templates from strangers: a conversation or a sentence, soon, in little memory, and this process lives on."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradec.errors import InputError, ParadecError, ResourceError
from paradec.io import chat
from paradec.io.chat import Renderer, render_chat
from tests.io.small_vocab import CHATML

HI = [{"role": "user", "content": "Hi"}]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not enforce the limits")


@pytest.fixture(scope="module")
def impatient() -> Iterator[Renderer]:
    """A tenth of a second is enough for all that is ordinary here."""
    renderer = Renderer(memory=2**29, seconds=0.1)
    yield renderer
    renderer.end()


@pytest.fixture
def soon(impatient: Renderer, monkeypatch: pytest.MonkeyPatch) -> Renderer:
    monkeypatch.setattr(chat, "_renderer", lambda: impatient)
    return impatient


def refused(template: str, says: str = "chat template") -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match=says) as error:
        render_chat(template, HI, {})
    assert time.monotonic() - begin < 5
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and len(str(error.value)) < 600
    assert render_chat(CHATML, HI, {}) == "<|im_start|>user\nHi<|im_end|>\n", "and the next conversation is rendered"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ 1 / 0 }}", "fails .ZeroDivisionError: division by zero"),
        ("{{ range(10**9) | list }}", "fails .OverflowError"),
        ("{{ [1][5] + 1 }}{{ 'a' | int(base=99) }}", "chat template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "chat template"),
        ("{{ " + "not " * 5000 + "x }}", "chat template"),
        ("{% for i in [1] %}" * 50 + "{% endfor %}" * 50, "chat template"),
        ("{{ raise_exception('no\nmore.' * 10**5) }}", "refuses these messages: no more.no more.*…"),
        ("{{ strftime_now('%Q\ud800') }}", "chat template"),
    ],
)
def test_faults_are_sentences(template: str, says: str, soon: Renderer) -> None:
    refused(template, says)


@linux
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ lipsum(n=10**7) }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ messages | tojson(indent=10**10) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ ('a' * 10**7) | wordwrap(1) | urlize }}",
    ],
)
def test_what_asks_for_too_much_is_stopped(template: str, soon: Renderer) -> None:
    refused(template, "was stopped: it needs more than")


@linux
def test_the_child_is_small_and_so_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 MB fit and 1.1 GB do not; the text of a conversation has its own bound.

    Time is not what stops it: a busy machine may take seconds to hand out 512 MB.
    """
    patient = Renderer(seconds=60.0)
    monkeypatch.setattr(chat, "_renderer", lambda: patient)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert render_chat("{% set x = 'a' * n %}{{ x | length }}", HI, {"n": 512 * 10**6}) == "512000000"
    refused("{% for n in [1100 * 10**6] %}{% set x = 'a' * n %}{% endfor %}{{ x | length }}")
    refused("{% for i in range(50) %}{{ 'a' * 10**6 }}{% endfor %}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "kB, of this process"
    patient.end()


def test_a_long_conversation_passes() -> None:
    talk = [{"role": "user", "content": "é😀" * 10_000}] * 100
    assert len(render_chat(CHATML, talk, {})) > 2_000_000


def test_values_arrive_as_json_has_them() -> None:
    values = {"a": (1, 2), "b": OrderedDict(x=1), "c": np.int32(3), "d": {4}, "e": float("inf"), "f": None}
    shown = render_chat("{{ a }}{{ b }}{{ c }}{{ d }}{{ e }}{{ f }}{{ messages }}", [MappingProxyType(HI[0])], values)
    assert shown == "[1, 2]{'x': 1}3[4]infNone" + str(HI)
    assert (
        render_chat("{{ messages[0].content }}", [{"role": "user", "content": "\u2028\n\ud800"}], {})
        == "\u2028\n\ud800"
    )
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), loop, {(1, 2): 3}, 10**5000):
        with pytest.raises(InputError, match="reach a chat template as JSON"):
            render_chat("x", HI, {"value": value})


def test_threads_take_turns() -> None:
    found: dict[int, str] = {}
    talk = lambda i: found.update({i: "".join(render_chat("{{ n }}", HI, {"n": i}) for _ in range(20))})
    threads = [threading.Thread(target=talk, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {i: str(i) * 20 for i in range(8)}


def test_a_child_that_was_killed_is_replaced(soon: Renderer) -> None:
    assert render_chat("x", HI, {}) == "x"
    os.kill(soon._child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, soon._child.pid, os.WEXITED | os.WNOWAIT)
    assert render_chat("y", HI, {}) == "y"


def test_a_child_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/nowhere/python", "/bin/true"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(ResourceError, match=r"renders chats .*\.$"):
            Renderer().ask('{"template": "", "values": {}}')


# Random programs, with a taste for what is large.
def _words(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


names = _words("messages messages[0] messages[0].content m ns.x loop loop.index nothing")
numbers = _words("0 1 -1 2.5 10**9 10**19 99999 1e308 true none")
strings = _words("'a' '' '%99999999d' '{0:9999999999}' '<b>' '__class__' '%s'*50 [1,m] {'a':1}")
filters = _words(
    "abs attr('__class__') batch(3) capitalize center(10**9) count default(1) dictsort escape filesizeformat first"
    " float format(1,2) forceescape groupby('role') indent(10**8) int items join('ab') last length list lower"
    " map('upper') map(attribute='content') max min pprint random reject replace('','aaaa') replace('a','aa'*999)"
    " reverse round(9) safe select selectattr('role') slice(3) slice(10**9) sort string striptags sum title tojson"
    " tojson(indent=10**9) trim truncate(9) unique upper urlencode urlize wordcount wordwrap(1) xmlattr nofilter"
)
methods = _words(
    "format(1) format_map(m) ljust(10**10) zfill(10**9) join(messages) replace('a','b'*9) split() splitlines() upper()"
    " encode() items() pop() append(1) count('a') expandtabs(10**9) translate({}) startswith('a') mro() __class__"
    " __init__.__globals__ get('a') x 0 isoformat()"
)
tests = _words("defined none string mapping iterable even divisibleby(0) sameas(1) nice")
binary = _words("+ - * ** / // % ~ == < in and or")


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, binary, inner),
        st.builds("({})|{}".format, inner, filters),
        st.builds("({}).{}".format, inner, methods),
        st.builds("({} is {})".format, inner, tests),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({})[{}:{}]".format, inner, inner, inner),
        st.builds("range({})".format, inner),
        st.builds("f({})".format, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("lipsum(n={})".format, inner),
        st.builds("strftime_now({})".format, inner),
        st.builds("cycler({})".format, inner),
    )


expressions = st.recursive(names | numbers | strings, _grow, max_leaves=6)


def _nest(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% for m in {} %}}{}{{% endfor %}}".format, expressions, inner),
        st.builds("{{% for m in {} recursive %}}{{{{ loop({}) }}}}{{% endfor %}}".format, expressions, expressions),
        st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, expressions, inner, inner),
        st.builds("{{% macro f(m) %}}{}{{% endmacro %}}".format, inner),
        st.builds("{{% call f({}) %}}{}{{% endcall %}}".format, expressions, inner),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, filters, inner),
        st.builds("{{% set ns.x = {} %}}".format, expressions),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.builds("{{% include {} %}}".format, expressions),
    )


programs = st.recursive(
    st.builds("{{{{ {} }}}}".format, expressions)
    | st.text(st.sampled_from("{}%#|'ab \n"), max_size=12)
    | st.sampled_from(["{% break %}", "{% continue %}", "{% block b %}{% endblock %}", "{% raw %}"]),
    _nest,
    max_leaves=8,
)


def survives(template: str) -> None:
    begin = time.monotonic()
    try:
        assert isinstance(render_chat("{% set ns = namespace(x='a') %}" + template, HI, {}), str)
    except ParadecError as error:
        assert str(error).endswith("."), f"not a sentence: {error}"
    assert time.monotonic() - begin < 5


@linux
@pytest.mark.parametrize("cases", [50, 1000])
def test_any_program(cases: int, soon: Renderer) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings(max_examples=cases, deadline=None, database=None, suppress_health_check=quiet)(given(programs)(survives))()
    render_chat("{{ 1 }}", HI, {})
    status = dict(line.split(":", 1) for line in Path(f"/proc/{soon._child.pid}/status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) <= 2**20, "kB, of the one that renders"
