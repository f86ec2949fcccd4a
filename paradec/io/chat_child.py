"""The process in which chat templates are rendered: one request a line on stdin, one answer a line on stdout, as JSON.

`chat.py` runs this file as a program that knows nothing of paradec or jax, with the most bytes, seconds and characters
it may take as arguments. The system bounds its memory and time: a template that asks for more ends this process alone.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def main(memory: int, seconds: float, characters: int) -> None:
    """Answer requests until stdin ends."""
    _restrict(memory)
    print("ready", flush=True)
    for line in sys.stdin:
        _alarm(seconds)
        answer = json.dumps(_answer(json.loads(line), characters))
        _alarm(0)
        print(answer, flush=True)


def _restrict(memory: int) -> None:
    """Bound what this process may take, as far as the system can."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard is for the one that asks
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # a stricter limit holds already, or the system has none of this kind
            continue


def _alarm(seconds: float) -> None:
    """Let the system end this process after so many seconds of work (0: never), whatever it is in the middle of."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(request: dict[str, Any], characters: int) -> dict[str, str]:
    """The "text", or why there is none: the template's "refusal", its "fault", or the limit that it met ("beyond")."""
    pieces, length = [], 0
    try:
        for piece in _compile(request["template"]).generate(request["values"]):
            pieces.append(piece)
            length += len(piece)
            if length > characters:
                return {"beyond": "characters"}
    except MemoryError:
        return {"beyond": "memory"}
    except (jinja2.TemplateError, TypeError) as error:
        return {"refusal": str(error)}
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"}
    return {"text": "".join(pieces)}


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


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
