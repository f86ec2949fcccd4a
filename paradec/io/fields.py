"""A JSON object, such as a config.json, whose values are checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from paradec.errors import WeightsError

# JSON has numbers of any size; what is read here becomes an int32 or a float32.
INT32_MAX, FLOAT_MIN, FLOAT_MAX = 2**31 - 1, 1.2e-38, 3.4e38


class Fields:
    """A JSON object whose values are checked as they are read. Messages name the key and the file."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        self.values, self.defaults, self.where = values, defaults, where

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value as it stands, the default where the key is absent. A null in the file stays null."""
        return self.values[key] if key in self.values else self.defaults.get(key, otherwise)

    def count(self, key: str, otherwise: Any = None) -> int:
        """A whole number above zero that fits int32; `otherwise` where it is absent or null."""
        value = self.get(key)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= INT32_MAX:
            self.fail(key, value, f"a whole number from 1 to {INT32_MAX}")
        return value

    def number(self, key: str, otherwise: float | None = None, most: float = FLOAT_MAX) -> float:
        """A number above zero, as a float32 has it, and at most `most`; `otherwise` where it is absent or null."""
        value = self.get(key)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not FLOAT_MIN <= value <= most:
            self.fail(key, value, f"a number from {FLOAT_MIN:g} to {most:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; absent and null are false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, value, "true or false")
        return bool(value)

    def refuse(self, key: str, why: str) -> None:
        """Raise where a setting that paradec lacks is switched on."""
        if self.get(key):
            raise WeightsError(f"{self.where} sets {key} = {_shown(self.get(key))}: {why}.")

    def fail(self, key: str, value: Any, wanted: str) -> NoReturn:
        """Raise the error for a value of the wrong kind."""
        raise WeightsError(f"{self.where} has {key} = {_shown(value)}, which should be {wanted}.")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}…"
