"""Configurations: presets, changes from the command line, differences."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import lm, medusa
from paradec import config

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("presets", [lm.PRESETS, medusa.PRESETS], ids=["lm", "medusa"])
def test_every_preset_is_frozen_and_json(presets):
    for name, (words, preset) in presets.items():
        assert words.endswith(".") or words.strip().endswith("."), name
        assert hash(preset) == hash(preset)
        assert json.loads(json.dumps(config.as_json(preset))) == config.as_json(preset)


def test_presets_and_changes_from_the_command_line():
    found = config.from_command_line(lm.PRESETS, ["tiny", "--plan.steps", "70", "--shape.width", "64"])
    assert (found.plan.steps, found.shape.width, found.batch) == (70, 64, lm.tiny().batch)
    assert found.plan.learning_rate == lm.tiny().plan.learning_rate
    paths = config.from_command_line(medusa.PRESETS, ["quick", "--text.prompts", "a.jsonl", "b.jsonl"]).text.prompts
    assert paths == (Path("a.jsonl"), Path("b.jsonl"))


def test_differences_name_fields():
    a, b = config.as_json(lm.tiny()), config.as_json(lm.tiny())
    assert config.differences(a, b) == []
    b["plan"]["clip"], b["seed"] = 0.5, 3
    del b["shape"]["mlp"]
    assert config.differences(a, b) == ["plan.clip: 1.0 → 0.5", "seed: 0 → 3", "shape.mlp: 344 → (not there)"]


def test_what_files_hold_belongs_to_a_configuration(tmp_path):
    """And its place does not: `run` is where a run lies."""
    text = tmp_path / "a.txt"
    text.write_text("abc")
    made = dataclasses.replace(lm.tiny(), data=lm.Data(kind="text", files=(text,)))
    before = config.kept(made)
    assert before["contents"] == {str(text): "3 bytes, sha256 ba7816bf8f01cfea"}
    assert "contents" not in config.kept(made, "plan") and "contents" not in config.kept(lm.tiny())
    text.write_text("abd")
    (said,) = config.differences(before, config.kept(made))
    assert said.startswith(f"contents.{text}: 3 bytes, sha256 ba7816bf8f01cfea → 3 bytes, sha256 ")
    asked = dataclasses.replace(medusa.PRESETS["smollm2"][1], text=medusa.Text(prompts=(tmp_path / "none.jsonl",)))
    assert config.kept(asked)["contents"] == {str(tmp_path / "none.jsonl"): "no regular file"}


@pytest.mark.parametrize(
    ("presets", "words", "said"),
    [
        (lm, ["tiny", "--plan.stepz", "7"], "--plan.steps"),
        (lm, ["tyni"], "tiny"),
        (lm, ["tiny", "--plan.steps", "many"], "--plan.steps"),
        (lm, ["tiny", "--plan.warmup", "9000"], "warmup must be between 0 and steps (300); 9000 was given."),
        (medusa, ["smollm2", "--heads.cout", "3"], "--heads.count"),
    ],
)
def test_a_wrong_command_ends_with_status_2_and_the_nearest_field(presets, words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        config.from_command_line(presets.PRESETS, words)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert said in " ".join((captured.out + captured.err).replace("│", " ").split())


def test_a_program_ends_with_status_2_and_a_sentence():
    done = subprocess.run(
        [sys.executable, ROOT / "train" / "lm.py", "shakespeare"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Name the text to learn from: --data.files FILE." in " ".join(done.stderr.split())
