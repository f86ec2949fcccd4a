"""`paradec bench`: the exact sweep against theory, and the written tasks answered by a model."""

import json

import pytest

from paradec.cli import main
from paradec.errors import UnknownName
from paradec.evals.parallelbench.exact import sweep
from tests.fixtures import write_tiny_model


def test_the_sweep_is_theory_where_there_is_one(tmp_path, capsys):
    out, png = tmp_path / "points.json", tmp_path / "points.png"
    args = ["--items", "4", "--operations", "replace", "--rules", "random,threshold", "--decodes", "1000"]
    assert main(["bench", "parallelbench", *args, "--json", str(out), "--png", str(png)]) == 0
    points = json.loads(out.read_text())
    known = [p for p in points if p["theory"] is not None]
    assert [p["setting"] for p in known] == [f"per_call={k}" for k in (1, 2, 3, 4)]
    for p in known:
        assert abs(p["accuracy"] - p["theory"]) <= 4 * max(p["error"], 1e-3)
    bars = [p for p in points if p["rule"] == "threshold"]
    assert bars[0]["accuracy"] == 1.0 and bars[-1]["tokens_per_call"] == 4.0 and bars[-1]["accuracy"] < 0.6
    assert png.stat().st_size > 10_000 and "replace" in capsys.readouterr().out


def test_a_model_answers_the_written_tasks(tmp_path, capsys):
    model, out = str(write_tiny_model(tmp_path / "tiny", max_length=2048)), tmp_path / "answers.json"
    args = ["--tasks", "copy,sort", "--limit", "2", "--batch-size", "2", "--json", str(out)]
    assert main(["bench", "parallelbench", "--model", model, *args]) == 0
    answers = json.loads(out.read_text())
    assert [a["operation"] for a in answers] == ["copy", "sort"]
    assert all(a["accuracy"] == 0.0 and a["samples"] == 2 for a in answers), "a random model answered"
    assert "left out: " in capsys.readouterr().out


def test_recurrences_are_timed_in_their_forms(tmp_path, capsys):
    out, png = tmp_path / "ops.json", tmp_path / "ops.png"
    args = ["--recurrences", "diagonal,para_gru", "--lengths", "16,32", "--width", "4", "--rounds", "1"]
    assert main(["bench", "ops", *args, "--json", str(out), "--png", str(png)]) == 0
    timings = json.loads(out.read_text())["timings"]
    forms = {(t["recurrence"], t["form"], t["length"]) for t in timings}
    assert {("diagonal", "lanes", 16), ("para_gru", "sequential", 32)} <= forms and len(forms) == len(timings) == 16
    assert all(t["forward"] > 0 and t["gradient"] > 0 for t in timings)
    floor = {(t["recurrence"], t["length"]): t["floor"] for t in timings}
    assert floor["diagonal", 32] == 3 * 32 * 4 * 4 == 2 * floor["diagonal", 16]  # decay, input, states
    assert png.stat().st_size > 10_000 and "interleaved rounds" in " ".join(capsys.readouterr().err.split())


def test_bad_input(capsys):
    assert main(["bench", "ops", "--lengths", "12,x"]) == 2
    assert "'x' was given" in capsys.readouterr().err
    assert main(["bench", "ops", "--recurrences", "para_gr"]) == 2
    assert "Did you mean 'para_gru'" in capsys.readouterr().err
    assert main(["bench", "paralelbench"]) == 2
    assert "Did you mean 'parallelbench'" in capsys.readouterr().err
    assert main(["bench", "--decodes", "0"]) == 2
    with pytest.raises(UnknownName, match="rule to sweep"):
        sweep(["replace"], ["wyno"])
