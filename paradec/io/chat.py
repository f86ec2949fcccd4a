"""Chat templates, rendered as `transformers` renders them, but in a process of their own: they come from strangers.

A template is a program. A sandbox keeps it from files and from Python's insides, but not from asking for a string of
10 GB or from counting for ever, and there is no list of all the ways to ask. So a child process renders, under limits
that the system enforces. It imports jinja2 and nothing else, which takes a tenth of a second once; later conversations
take it about as long as they would take here. It is started anew rather than forked, since jax runs threads, so
notebooks and training programs may use it too.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paradec.errors import InputError, ResourceError

MEMORY = 2**30  # bytes of the child's address space; macOS and Windows do not enforce it
SECONDS = 2.0  # of work for one conversation, which takes milliseconds; Windows does not enforce it
CHARACTERS = 10_000_000  # of a rendered conversation
_OTHER_WAY = "Write the prompt out and give it as plain text: raw=True in Python, --raw on the command line."


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a conversation by a Jinja chat template.

    Raises `InputError` when there is no message, when one is no mapping with a role, when a variable is nothing that
    JSON can hold, with the template's own words when it refuses the messages, and when it fails or asks for more
    memory, time or text than the limits above; `ResourceError` when the child cannot be started.
    """
    if not messages:
        raise InputError("There is no message to render: give at least one, such as {'role': 'user', 'content': 'Hi'}.")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise InputError(f"A chat message looks like {{'role': 'user', 'content': 'Hi'}}, not like {message!r}.")
    values = {"tools": None, "documents": None, **variables, "messages": messages}
    try:
        request = json.dumps({"template": template, "values": values}, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"Messages and variables reach a chat template as JSON, and these cannot: {error}.") from error
    answer = _renderer().ask(request)
    if "text" in answer:
        return answer["text"]
    if "refusal" in answer:
        raise InputError(f"The model's chat template refuses these messages: {_clause(answer['refusal'])}.")
    if "fault" in answer:
        raise InputError(f"The model's chat template fails ({_clause(answer['fault'])}). {_OTHER_WAY}")
    raise InputError(
        f"The model's chat template was stopped: it needs more than {SECONDS:g} seconds of work, {MEMORY / 2**30:g} GiB"
        f" or {CHARACTERS / 1e6:g} million characters for these messages. {_OTHER_WAY}"
    )


def _plain(value: Any) -> Any:
    """What JSON has instead of other mappings, of numbers of numpy, and of sets."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is among them")


def _clause(words: str) -> str:
    """Somebody else's message as a part of a sentence: one line, not too long."""
    words = " ".join(words[:400].split()).rstrip(".")
    return words if len(words) <= 300 else f"{words[:300]} …"


class Renderer:
    """A child process that renders templates; it is started for the first request, and again after it has ended."""

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS, characters: int = CHARACTERS):
        self.limits = memory, seconds, characters
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def ask(self, request: str) -> dict[str, str]:
        """The child's answer (see `chat_child`) to a request in one line of JSON; {"beyond": …} when it met its end."""
        with self._lock:
            if self._child is not None and self._child.poll() is not None:  # ended by something else
                self.end()
            try:
                child = self._child or self._start()
                child.stdin.write(request + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
                answer = json.loads(line) if line.endswith("\n") else {"beyond": "time"}
            except OSError:  # it ended while it read
                answer = {"beyond": "memory"}
            except BaseException:  # an interrupt: what the child says next would answer the wrong question
                self.end()
                raise
            if "beyond" in answer:
                self.end()
            return answer

    def _start(self) -> subprocess.Popen[str]:
        # jinja2's own folder is all the child may import besides the standard library: no site-packages hooks, which
        # can be slow, and nothing of the current folder.
        places = [str(Path(find_spec(name).origin).parents[1]) for name in ("jinja2", "markupsafe")]
        command = [sys.executable, "-S", "-s", "-P", str(Path(__file__).with_name("chat_child.py"))]
        try:
            self._child = child = subprocess.Popen(
                [*command, *map(str, self.limits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            )
        except OSError as error:
            raise ResourceError(f"The process that renders chats cannot start: {error}. {_OTHER_WAY}") from error
        if child.stdout.readline() != "ready\n":
            self.end()
            raise ResourceError(f"The process that renders chats ends at once. Is memory left? {_OTHER_WAY}")
        atexit.register(self.end)
        return child

    def end(self) -> None:
        """End the child, whatever it is doing; the next request starts another."""
        child, self._child = self._child, None
        if child is not None:
            atexit.unregister(self.end)
            child.kill()
            child.communicate()


_renderers: dict[int, Renderer] = {}


def _renderer() -> Renderer:
    """The one of this process. A process forked from it starts its own, or the two would read each other's answers."""
    return _renderers.setdefault(os.getpid(), Renderer())
