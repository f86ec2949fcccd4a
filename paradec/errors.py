"""What can go wrong for a user. Every message is a sentence that says what to do next.

All of them are `ParadecError`, so a program can catch one class; the command line prints the sentence and exits with 2.
"""

from __future__ import annotations

import numbers
import operator
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


MOST_REPEATS = 10_000
"""Rounds that a comparison may be asked for."""

KINDS: Mapping[type, str] = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "texts"
}  # fmt: skip


def as_kind(name: str, value: Any, kind: type) -> Any:
    """`value` as a plain bool, int, float, str or tuple of str. Raises `InputError` where it is of another kind.

    Numbers of numpy and jax are numbers; True is none, and 2.5 is no whole one. One string is a tuple of one.
    """
    plain = _plain(value, kind)
    if plain is None:
        raise InputError(f"{name} must be {KINDS[kind]}; {shown(value)} was given.")
    return plain


def _plain(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None."""
    if kind is tuple:
        value = () if value is None else (value,) if isinstance(value, str) else value
        whole = isinstance(value, (tuple, list)) and all(isinstance(x, str) for x in value)
        return tuple(value) if whole else None
    if kind is str:
        return str(value) if isinstance(value, str) else None
    if getattr(value, "ndim", 0) != 0:
        return None
    value = value.item() if hasattr(value, "item") else value  # of numpy or jax
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    try:
        return operator.index(value) if kind is int else float(value) if isinstance(value, numbers.Real) else None
    except (TypeError, OverflowError):
        return None


def as_ids(name: str, values: Any) -> list[int]:
    """Token ids that a caller gave, sorted: of a list, a set, an array with one axis. Raises `InputError` for anything
    else, and for an id below 0 or beyond what an int32 holds."""
    what = f"{name} must be token ids, such as (198, 271)"
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{what}; {shown(values)} was given.")
    try:
        ids = sorted(at_least(f"Each of {name}", x, 0, 2**31 - 1) for x in values)
    except TypeError:  # an array without an axis calls itself iterable
        raise InputError(f"{what}; {shown(values)} was given.") from None
    return ids


def shown(value: Any, most: int = 60) -> str:
    """A value as a sentence shows it: its `repr` on one line, cut to `most` characters. No value makes it fail."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python writes out, or an object whose repr is broken
        text = f"a value of the kind {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}…"


def check_kinds(config: Any) -> None:
    """Bring the fields of a frozen dataclass to the plain kinds that they declare; see `as_kind`.

    Fields of other kinds than bool, int, float, str and tuple[str, ...], of one of them or None, and of one number or a
    tuple of such, are left alone.
    """
    import dataclasses  # here, as above

    known = {"bool": bool, "int": int, "float": float, "str": str, "tuple[str, ...]": tuple}
    for field in dataclasses.fields(config):
        declared = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        given, (one, _, other) = getattr(config, field.name), declared.partition(" | ")
        if one not in known or other not in ("", "None", f"tuple[{one}, ...]") or (other == "None" and given is None):
            continue
        if other.startswith("tuple") and (several := _several(given)) is not None:
            plain = tuple(as_kind(f"{field.name}[{i}]", x, known[one]) for i, x in enumerate(several))
        else:
            plain = as_kind(field.name, given, known[one])
        object.__setattr__(config, field.name, plain)


def _several(value: Any) -> list[Any] | None:
    """The items of a list, a tuple or a row of numbers; None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(value.tolist()) if getattr(value, "ndim", 0) == 1 else None


def check_fields(config: Any, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Raise `InputError` for the first field whose value is not as wanted: name → (whether it is, what is wanted)."""
    for name, (holds, what) in wanted.items():
        if not holds:
            raise InputError(f"{name} must be {what}; {getattr(config, name)} was given.")


def check_least(config: Any, least: Mapping[str, int]) -> None:
    """Raise `InputError` for the first field of another kind than it declares, or below its least value."""
    check_kinds(config)
    check_fields(config, {name: (getattr(config, name) >= n, f"at least {n}") for name, n in least.items()})


def at_least(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number given by a caller. Raises `InputError` where it is none, too small, or above `most`."""
    number = as_kind(name, value, int)
    if number < least or (most is not None and number > most):
        upper = "" if most is None else f" and at most {most}"
        raise InputError(f"{name} must be at least {least}{upper}; {shown(number)} was given.")
    return number
