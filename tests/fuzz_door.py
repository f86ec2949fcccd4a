"""Hands odd values to a language model's Python door, thousands of times: each is decoded, or refused in a sentence.

    python tests/fuzz_door.py FOLDER CASES

A program of its own: how much memory it takes and how long a case lasts is what it is about, and the signatures are
not checked by the tests' import hook, as they are for nobody else. Prints the worst case of each as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paradec
from paradec.errors import ParadecError
from paradec.request import Request

NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 10**30, -(2**40)]), st.integers(),
    st.floats(allow_nan=True, allow_infinity=True), st.booleans(), st.fractions(), st.decimals(), st.complex_numbers(),
    st.sampled_from([np.int64(3), np.float32(0.5), np.uint8(2), np.bool_(True), jnp.int32(2), jnp.float32(0.7)]),
)  # fmt: skip
ODD = st.one_of(
    NUMBERS, st.none(), st.text(max_size=5), st.binary(max_size=3), st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.sets(st.integers(0, 9), max_size=2),
    st.sampled_from([object(), len, int, np.zeros(2), np.zeros(()), jnp.ones((2, 2)), Ellipsis, range(3)]),
)  # fmt: skip
IDS = st.lists(st.integers(0, 258), min_size=1, max_size=9)
VARIABLES = st.text(max_size=3) | st.sampled_from(["messages", "self", "add_generation_prompt", "tools", "eos_token"])
MESSAGE = st.fixed_dictionaries({}, optional={
    "role": st.sampled_from(["user", "system", "assistant", "x"]) | ODD, "content": st.text(max_size=5) | ODD,
    "tool_calls": ODD, "name": ODD,
})  # fmt: skip
PROMPT = st.one_of(
    st.text(min_size=1, max_size=12), IDS, IDS.map(np.asarray), IDS.map(lambda x: np.asarray(x, np.uint16)),
    IDS.map(tuple), IDS.map(lambda x: [np.int64(i) for i in x]), st.lists(st.integers(-5, 10**12), max_size=4), ODD,
    st.lists(MESSAGE, max_size=3),
)  # fmt: skip
PROMPTS = st.one_of(PROMPT, st.lists(PROMPT, max_size=2), st.lists(PROMPT, max_size=2).map(iter))
STOP = st.one_of(st.text(max_size=3), st.lists(st.text(min_size=1, max_size=3), max_size=2), ODD)
NAMES = ["ar", "jacobi", "prompt_lookup", "lookahead", "draft_model", "medusa", "quota", "threshold", "jakobi", ""]
METHOD = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES[:1]), ODD)
FIELDS = st.fixed_dictionaries({}, optional={
    "temperature": NUMBERS | ODD, "top_k": NUMBERS | ODD, "top_p": NUMBERS | ODD, "min_p": NUMBERS | ODD,
    "repetition": NUMBERS | ODD, "seed": NUMBERS | ODD, "batch_size": NUMBERS | ODD, "raw": ODD, "stop": STOP,
    "max_tokens": ODD, "system": st.text(max_size=3) | ODD,
    "template_args": ODD | st.dictionaries(VARIABLES, ODD, max_size=2), "logprobs": st.integers(0, 2) | NUMBERS | ODD,
})  # fmt: skip
READING = st.fixed_dictionaries({}, optional={"raw": st.booleans(), "top": st.integers(0, 2) | ODD, "batch_size": ODD})
OPTIONS = st.none() | ODD | st.dictionaries(
    st.sampled_from(["window", "num_draft", "ngram", "pool", "guesses", "accept", "draft", "heads", "latest", "x"]),
    ODD, max_size=2,
)  # fmt: skip
LENGTH = {"max_new_tokens": st.integers(1, 4) | NUMBERS | ODD}


def cases(lm: paradec.LanguageModel) -> dict[str, Any]:
    """Calls by name, and what each is given."""
    few = lambda fields, tokens: fields | {"max_new_tokens": tokens}
    return {
        "Request": (lambda fields, tokens, method: Request.of(few(fields, tokens) | {"method": method}),
                    (FIELDS, LENGTH["max_new_tokens"], METHOD)),
        "encode": (lambda prompt, raw: lm.encode(prompt, raw=raw), (PROMPT, st.booleans() | ODD)),
        "score": (lambda prompts, after, more: lm.score(prompts, after, **more), (PROMPTS, PROMPTS, READING)),
        "converse": (lambda talks, fields, tokens: paradec.converse(lm, talks, **few(fields, tokens)),
                     (PROMPTS | st.lists(st.lists(st.text(max_size=5), max_size=2), max_size=2), FIELDS,
                      st.integers(1, 3))),
        "generate": (lambda prompts, fields, tokens: lm.generate(prompts, **few(fields, tokens)),
                     (PROMPTS, FIELDS, st.integers(1, 3) | ODD)),
        "methods": (lambda prompt, method, options: lm.generate(prompt, method=method, method_args=options,
                                                                max_new_tokens=2), (PROMPT, METHOD, OPTIONS)),
        "stream": (lambda prompt, fields, every: list(islice(lm.stream(prompt, every=every, **few(fields, 2)), 4)),
                   (PROMPT, FIELDS, st.integers(0, 3) | ODD)),
        "compare": (lambda prompts, methods, repeats, args: paradec.compare(lm, prompts, methods, repeats=repeats,
                                                                           method_args=args, max_new_tokens=2),
                    (PROMPTS, METHOD | st.lists(METHOD, max_size=2), st.integers(-1, 1) | ODD,
                     st.none() | ODD | st.dictionaries(st.sampled_from(NAMES), OPTIONS, max_size=1))),
    }  # fmt: skip


def main(folder: str, count: int) -> dict[str, Any]:
    """What the worst case took. An error that is no `ParadecError` goes through."""
    lm = paradec.load(folder, progress=False)
    for method in NAMES[:4]:
        lm.generate("warm", method=method, max_new_tokens=2)
    compiling = [0.0]  # seconds of compilation, which no case is to blame for
    jax.monitoring.register_event_duration_secs_listener(lambda event, spent, **_: compiling.append(spent))
    told: dict[str, Any] = {"decoded": 0, "refused": 0, "slowest": 0.0, "case": ""}
    memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    before = memory()
    sized = settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )

    def one(name: str, call: Any, values: tuple) -> None:
        compiling.clear()
        begin = time.perf_counter()
        try:
            call(*values)
            told["decoded"] += 1
        except ParadecError as error:
            assert str(error).strip()
            told["refused"] += 1
        spent = time.perf_counter() - begin - sum(compiling)
        if spent > told["slowest"]:
            told.update(slowest=spent, case=f"{name}{values!r}"[:300])

    def fuzz(name: str, call: Any, strategies: tuple) -> None:
        @sized
        @given(st.tuples(*strategies))
        def each(values: tuple) -> None:
            one(name, call, values)

        each()

    for name, (call, strategies) in cases(lm).items():
        fuzz(name, call, strategies)
    return told | {"gibibytes": memory() - before}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
