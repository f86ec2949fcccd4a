"""Fifty questions with four answers each, as the harness reads a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets


def facts(**_: Any) -> dict[str, datasets.Dataset]:
    """The questions as a test split. No network is asked."""
    lines = Path(__file__).with_name("facts.jsonl")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines.read_text().splitlines()])}
