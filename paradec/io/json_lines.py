"""Files with one JSON value a line, as people and other programs leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from paradec.errors import InputError

Value = TypeVar("Value")
LONGEST = 1 << 25
"""Bytes of a line, at most: a parsed line takes up to thirty times as many."""


def read(
    path: str | Path, what: str, parse: Callable[[Any], Value], complain: Callable[[str], None] | None = None
) -> Iterator[tuple[int, Value]]:
    """`parse` of the JSON value of every line that is not blank, with the line's number from 1.

    A line is bad that is no JSON in UTF-8, or that `parse` refuses: with a `ValueError` that says why, as a sentence's
    second half. `complain` gets a sentence that names the line, and the others follow; without it the first bad line
    is an `InputError`. Lines end at a line feed and nowhere else: JSON strings may hold every other separator. Raises
    `InputError` for a file that cannot be read, named as `what`, or with a line of more than `LONGEST` bytes.
    """
    for number, line in enumerate(_lines(path, what), 1):
        try:
            if not (text := _text(line, first=number == 1)).strip():
                continue
            value = parse(_parsed(text))
        except ValueError as error:
            if complain is None:
                raise InputError(f"Line {number} of {path}: {error}") from None
            complain(f"{path}, line {number} is skipped: {error}")
        else:
            yield number, value


def string(value: Any, name: str) -> str:
    """`value`, a text that has a UTF-8 form. Raises `ValueError` for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string; got {kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character (a lone surrogate); correct or remove it.") from None
    return value


def kind(value: Any) -> str:
    """What JSON calls a value, to be named where its whole text could be endless."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _lines(path: str | Path, what: str) -> Iterator[bytes]:
    """The lines of a file, read one at a time."""
    try:
        with Path(path).open("rb") as file:
            while line := file.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    break
                yield line
            else:
                return
    except FileNotFoundError:
        raise InputError(f"Cannot read {what}: There is no file {path}.") from None
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
        raise InputError(f"Cannot read {what} in {path}: {getattr(error, 'strerror', None) or error}.") from error
    raise InputError(f"{path} has a line of more than {LONGEST >> 20} MiB; split or remove it.")


def _text(line: bytes, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}); convert the file first.") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}); correct or remove it.") from None
    except RecursionError:
        raise ValueError("it is nested too deeply to be read; correct or remove it.") from None
    except ValueError:  # Python's limit of digits
        raise ValueError("it holds a number with too many digits to be read; correct or remove it.") from None
