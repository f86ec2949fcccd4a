"""Every option of every program says in --help what it is, in 80 columns."""

from __future__ import annotations

import argparse
import importlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tyro

from paradec import cli

CONFIGURED = ("lm", "masked", "medusa", "learned_filter")
MEASURING = {
    "canvas": "Run", "exactness": "Exactness", "heads": "Heads", "hidden_markov": "Run", "layout": "Layout",
    "lists": "Run", "race": "Race", "rules": "Run", "batch": "Batch",
}  # fmt: skip


def parser(what: Any, *more: Any) -> argparse.ArgumentParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of tyro's only way to a parser
        return tyro.extras.get_parser(what, config=(tyro.conf.FlagCreatePairsOff, *more))


def options(of: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        else:
            said = re.sub(
                r"\s*\((default|required|optional|repeatable|fixed to)\b.*\)$", "", action.help or "", flags=re.S
            )
            yield " ".join(action.option_strings) or action.dest, said


def silent(what: Any, *more: Any) -> list[str]:
    return [name for name, said in options(parser(what, *more)) if not said.strip()]


@pytest.mark.parametrize("name", list(cli.commands()))
def test_commands(name):
    assert not silent(cli.commands()[name], tyro.conf.OmitArgPrefixes)


@pytest.mark.parametrize("name", ["", *cli.commands()])
def test_the_help_of_commands_fits(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*filter(None, [name]), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: paradec") and "--help" in "".join(lines)
    assert not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize("name", CONFIGURED)
def test_training_programs(name):
    kinds = {type(config) for _, config in importlib.import_module(f"configs.{name}").PRESETS.values()}
    assert not [option for kind in kinds for option in silent(kind)]


@pytest.mark.parametrize("name", list(MEASURING))
def test_measuring_programs(name):
    assert not silent(getattr(importlib.import_module(f"infer.{name}"), MEASURING[name]))
