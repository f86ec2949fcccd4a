"""What is said where lm-evaluation-harness is missing; tests/oracle/test_harness.py tests the class."""

from __future__ import annotations

import sys

from paradec import cli


def test_a_missing_harness_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "paradec.evals.harness", raising=False)
    assert cli.main(["lm-eval", "--model", "paradec"]) == 2
    assert "lm_eval is missing): pip install 'paradec[harness]'" in " ".join(capsys.readouterr().err.split())
