"""A config.json with every kind of JSON value under every key: a model or a sentence, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paradec.errors import ParadecError
from paradec.io.hf import load_hf

ODD = (None, True, -1, 0, 7, 10**400, 0.5, "", "x", [], [1], {}, {"a": 1})


def check_odd_values(whole: dict[str, Any], read: Callable[[dict[str, Any]], Any], keys: Iterable[str]) -> None:
    for key in keys:
        for value in ODD:
            try:
                read(whole | {key: value})
            except ParadecError as error:
                assert str(error).endswith((".", "?")), f"not a sentence: {error}"


def check_odd_config(folder: Path, *more: str) -> None:
    """Of a whole checkpoint. `more`: keys that its file may also have."""
    path = folder / "config.json"
    whole = json.loads(path.read_text())

    def load(values: dict[str, Any]) -> None:
        path.write_text(json.dumps(values))
        load_hf(folder)

    check_odd_values(whole, load, (*whole, *more))
