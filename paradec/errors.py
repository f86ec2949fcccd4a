"""What can go wrong for a user. Every message is a sentence that says what to do next.

All of them are `ParadecError`, so a program can catch one class; the command line prints the sentence and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class ParadecError(Exception):
    """The base of every error paradec raises on purpose."""


class InputError(ParadecError, ValueError):
    """A prompt, an option or a number that cannot be decoded as asked."""


class UnknownName(ParadecError, KeyError):
    """A method, model, option or architecture that does not exist; the message names the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = ""):
        import difflib  # here: a program is guarded before anything that takes time is imported

        known = sorted(known)
        shown = repr(name) if len(name) <= 100 else f"{name[:60]!r}…"
        near = difflib.get_close_matches(name, known, n=1)
        suggestion = f" Did you mean {near[0]!r}?" if near else ""
        choices = f" Known: {', '.join(known)}." if known else ""
        super().__init__(f"There is no {kind} named {shown}.{suggestion}{choices}{' ' + hint if hint else ''}")

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class WeightsError(ParadecError):
    """A weight file or folder that is damaged, incomplete, or does not fit the architecture it names."""


class ResourceError(ParadecError):
    """Something outside paradec is missing: the network, disk space, an optional package."""


class ExactnessError(ParadecError):
    """A method declared exact returned other tokens than plain decoding. This is a bug: please report it."""


class Diverged(ParadecError):
    """A training run whose loss or gradient is no number any more. What was learned before is saved."""


class Stopped(ParadecError):
    """A training run was asked to go (SIGTERM, preemption) before its last step. Nothing is lost; start it again."""


def check_fields(config: Any, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Raise `InputError` for the first field whose value is not as wanted: name → (whether it is, what is wanted)."""
    for name, (holds, what) in wanted.items():
        if not holds:
            raise InputError(f"{name} must be {what}; {getattr(config, name)} was given.")


def check_least(config: Any, least: Mapping[str, int]) -> None:
    """Raise `InputError` for the first field below its least value."""
    check_fields(config, {name: (getattr(config, name) >= n, f"at least {n}") for name, n in least.items()})
