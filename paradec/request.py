"""What is asked of a language model, and what comes back: prompts, requests and results."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeGuard

from paradec.decode.loop import bucket
from paradec.decode.seams import Method, Part
from paradec.errors import InputError, UnknownName, check_fields, check_kinds
from paradec.trace import Trace

# A string, token ids (a list, an array of numpy or jax, …), or messages: [{"role": "user", "content": "Hi"}, …].
Text = str | Iterable[SupportsIndex] | Iterable[Mapping[str, Any]]
Prompts = str | Iterable[Any]  # one of them, or several
EACH = ("temperature", "top_k", "top_p", "min_p", "repetition", "seed")
"""Fields of a `Request` that may differ from prompt to prompt."""
Given = str | list[int] | list[dict[str, Any]]  # a prompt that has been looked at


class Logprob(NamedTuple):
    """Of a token: the natural logarithm of its probability, and, of the likeliest in its place, id and logarithm.

    They are the model's own, before penalty, temperature and filters; see `types.Logprobs`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model makes of a continuation, token by token."""

    tokens: tuple[Logprob, ...]

    @property
    def logprob(self) -> float:
        """Of the whole continuation."""
        return math.fsum(each.logprob for each in self.tokens)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return -self.logprob / len(self.tokens)

    @property
    def greedy(self) -> bool:
        """Whether plain decoding at temperature 0 would have written it."""
        return all(each.logprob >= each.top[0][1] for each in self.tokens)


@dataclasses.dataclass(frozen=True)
class Generation:
    """What became of one prompt. `settled[i]` is the model call that fixed new token i; `finish` says why it ended.

    The pieces joined are the text. A text that met a stop string ends before it; its tokens end with the one that
    completed the string.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    new_tokens: int
    calls: int
    tokens_per_call: float
    seconds: float
    method: str
    finish: str  # "eos", "length" or "stop"
    settled: tuple[int, ...]
    pieces: tuple[str, ...]
    logprobs: tuple[Logprob, ...] | None = None  # of the tokens, where they were asked for

    def public(self) -> dict[str, Any]:
        """The fields of the command line's JSON; log-probabilities only where they were asked for."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"logprobs": self.logprobs and [each._asdict() for each in self.logprobs]}
        hidden = ("settled", "pieces") if self.logprobs is not None else ("settled", "pieces", "logprobs")
        return {k: v for k, v in fields.items() if k not in hidden}

    def trace(self) -> Trace:
        """The decode, to be drawn."""
        return Trace(
            method=self.method,
            prompt=self.prompt,
            pieces=self.pieces,
            settled=self.settled,
            calls=self.calls,
            seconds=self.seconds,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything about a decode that is not the prompt.

    `method` is a name of the catalogue, several joined by "+", a method that was built by hand (`paradec.compose`) for
    the same model, or one part of a method, such as a drafter or an unmasking rule (`decode.seams`). `stop` may be one
    string. `system` opens every conversation that has no system message of its own, and `template_args` reach the chat
    template (`enable_thinking`, …); with `raw`, prompts are continued as they stand, without a template. With
    `logprobs` the log-probability of every new token is told, and of so many of the likeliest in its place.

    How tokens are drawn may be said prompt by prompt: a field of `EACH` is one value, or one for each prompt. A prompt
    with a seed of its own gets the text that it gets alone with this seed.
    """

    method: str | Method | Part = "ar"
    max_new_tokens: int = 128
    temperature: float | tuple[float, ...] = 0.0
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 1.0
    min_p: float | tuple[float, ...] = 0.0
    repetition: float | tuple[float, ...] = 1.0
    seed: int | tuple[int, ...] = 0
    batch_size: int = 1
    raw: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    system: str = ""
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for a value of another kind, or out of its range."""
        check_kinds(self)
        if not isinstance(self.method, (str, Method, Part)):
            raise InputError(f"method must be a name or a method built for this model; {self.method!r} was given.")
        moderate = lambda x: 1e-20 <= x <= 1e20  # what float32 divides and multiplies by
        holds = lambda name, test: all(map(test, self.every(name)))
        check_fields(self, {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (holds("temperature", lambda x: x == 0 or moderate(x)), "0 (greedy), or from 1e-20 to 1e20"),
            "top_k": (holds("top_k", lambda x: 0 <= x < 2**31), "0 (off) or more, and below 2147483648"),
            "top_p": (holds("top_p", lambda x: 0 < x <= 1), "above 0 and at most 1 (off)"),
            "min_p": (holds("min_p", lambda x: 0 <= x <= 1), "between 0 (off) and 1"),
            "repetition": (holds("repetition", moderate), "from 1e-20 to 1e20 (1 is off)"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "seed": (holds("seed", lambda x: 0 <= x < 2**32), "between 0 and 4294967295"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "a number of tokens, 0 or more"),
        })  # fmt: skip
        if any(not s for s in self.stop):
            raise InputError("A stop string is empty: it would stop every text at once. Leave it out.")
        object.__setattr__(self, "template_args", options_of(self.template_args, "template_args"))
        if self.raw and (self.system or self.template_args):
            raise InputError("A raw prompt meets no chat template: leave out raw, or system and template_args.")

    @property
    def reading(self) -> dict[str, Any]:
        """What `LanguageModel.encode` wants to know besides the prompt."""
        return {"raw": self.raw, "system": self.system, "template_args": self.template_args}

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Request:
        """The request with these fields. Raises `UnknownName` for one that it does not have."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownName("option", name, known)
        return cls(**options)

    def every(self, name: str) -> tuple[Any, ...]:
        """The values of a field of `EACH`: one, or one for each prompt."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)

    def drawn(self, rows: Sequence[int], size: int) -> dict[str, Any]:
        """What `decode.sampling` wants to know of a batch of `size` rows, of which the first are these prompts."""
        fill = [0] * (size - len(rows))
        pick = lambda value: [value[r] for r in (*rows, *fill)] if isinstance(value, tuple) else value
        return {name: pick(getattr(self, name)) for name in EACH}

    def within(self, prompts: int) -> Request:
        """The same request with hardly more rows in a batch than there are prompts.

        Raises `InputError` where a field of `EACH` has values for another number of them.
        """
        for name in EACH:
            if isinstance(value := getattr(self, name), tuple) and len(value) != prompts:
                raise InputError(f"{name} has {len(value)} values for {prompts} prompts; give one, or one for each.")
        return dataclasses.replace(self, batch_size=min(self.batch_size, bucket(prompts, smallest=1)))


def texts(prompts: Any) -> list[Given]:
    """The prompts, each a string, a list of token ids or a list of messages. One of them is one prompt.

    Rows of a 2-D array are prompts. Raises `InputError` for anything else, and where there is none.
    """
    if isinstance(prompts, str):
        return [prompts]
    items = listed(prompts, "Prompts are strings, rows of token ids, or lists of messages")
    if not items:
        raise InputError("There are no prompts; give at least one.")
    if all(_is_id(item) for item in items) or all(isinstance(item, Mapping) for item in items):
        return [one_text(items)]
    return [one_text(item) for item in items]


def one_text(prompt: Any) -> Given:
    """One prompt: a string as it is, token ids as a list of int, messages as a list of dict.

    Raises `InputError` for anything else, and for messages without a role or a text.
    """
    if isinstance(prompt, str):
        return prompt
    items = listed(prompt, "A prompt is a string, a row of token ids, or a list of messages")
    if items and all(isinstance(item, Mapping) for item in items):
        return [_message(item) for item in items]
    wrong = next((item for item in items if not _is_id(item)), None)
    if wrong is not None:
        raise InputError(
            "A prompt is a string, a row of token ids, or a list of messages; "
            f"{_brief(wrong)} is neither text nor an id."
        )
    return [operator.index(item) for item in items]


def is_chat(prompt: Given) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a prompt that has been looked at is messages."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], dict)


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """A message with a role and a text. Without a text it calls tools; what else it says is the template's affair."""
    message = dict(given)
    if not isinstance(message.get("role"), str):
        raise InputError(f"A message reads {{'role': 'user', 'content': 'Hi'}}; {_brief(message)} has no role.")
    if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
        raise InputError(f"The content of a message is a string; that of {_brief(message)} is none.")
    return message


def names(given: Any, what: str = "method") -> list[str | Method | Part]:
    """Several names where one may stand alone. Raises `InputError` where there is none, or for what is no name."""
    if isinstance(given, (str, Method, Part)):
        return [given]
    items = listed(given, f"{what.capitalize()}s are a name, or several")
    for item in items:
        if not isinstance(item, (str, Method, Part)):
            raise InputError(f"A {what} has a name; {_brief(item)} is none.")
    return items


def options_of(given: Any, what: str = "method_args") -> dict[str, Any]:
    """Options by name; None: none. Raises `InputError` for what is no mapping of names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{what} must map names to values, as in {{'window': 8}}; {_brief(given)} was given.")
    return dict(given)


def listed(given: Any, what: str) -> list[Any]:
    """The items of whatever has some, an array of any kind too. Raises `InputError`, which begins with `what`, for one
    thing, for bytes, and for what has no order or keys."""
    if isinstance(given, (bytes, bytearray, memoryview, Mapping, set, frozenset)):
        raise InputError(f"{what}; a {type(given).__name__} was given.")
    try:
        return list(given.tolist() if hasattr(given, "tolist") else given)  # an array leaves its device in one copy
    except TypeError:
        raise InputError(f"{what}; {_brief(given)} was given.") from None


def _is_id(item: Any) -> bool:
    try:
        return not isinstance(item, bool) and operator.index(item) is not None
    except TypeError:
        return False


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
