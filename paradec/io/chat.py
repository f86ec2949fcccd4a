"""Chat templates, rendered as `transformers` renders them, in a sandbox: templates come from strangers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paradec.errors import InputError


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a conversation by a Jinja chat template.

    Raises `InputError` when there is no message, when one is no mapping with a role, and with the template's own
    words when it refuses them.
    """
    if not messages:
        raise InputError("There is no message to render: give at least one, such as {'role': 'user', 'content': 'Hi'}.")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise InputError(f"A chat message looks like {{'role': 'user', 'content': 'Hi'}}, not like {message!r}.")
    try:
        return _compile(template).render(**{"tools": None, "documents": None, **variables}, messages=messages)
    except (jinja2.TemplateError, TypeError) as error:
        raise InputError(f"The model's chat template refuses these messages: {error}") from error


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    # The two whitespace switches, the filter and the functions are part of the format: templates count on them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training masks. Here it only lets them through."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> Scope:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML, which a model has never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
