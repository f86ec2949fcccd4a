"""The programs of infer/ that turn every unmasking rule through its settings."""

import json

import jax
import pytest

from paradec.catalog import SYSTEMS
from paradec.data.padded import Padded
from paradec.evals.sweeps import SWEEPS
from paradec.io.hf import save_hf
from paradec.models.block_diffusion import BlockDiffusion
from paradec.testing import tiny_transformer
from tests.test_train import program


@pytest.fixture(scope="module")
def rules():
    return program("rules", "infer")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = Padded()
    base, weights = tiny_transformer(vocab_size=source.vocab_size, query_scale=None, qk_norm=True, num_layers=1)
    folder = tmp_path_factory.mktemp("rules") / "model"
    weights = weights.replace(norm=weights.norm * 4)
    save_hf(folder, BlockDiffusion(base, mask_id=source.mask_id), jax.device_get(weights))
    return folder


def test_every_rule_has_its_row(rules, model, tmp_path, capsys):
    """A random model is never right: all settings are as good as static decoding, and the fewest calls win."""
    run = rules.Run("padded", model, tmp_path / "rules.json", rows=3, block=8, rules=("quota", "threshold"))
    assert rules.main(run) == 0
    trials = {(t["rule"], t["setting"]): t for t in json.loads(run.out.read_text())}
    static = trials["static", ""]
    assert static["agreement"] == 1 and static["accuracy"] == 0 and static["queries"] == static["calls"] * 48
    assert trials["quota", "per_call=1"] == static | {"rule": "quota", "setting": "per_call=1"}
    assert trials["threshold", "tau=0"]["calls"] == trials["quota", "per_call=8"]["calls"] == 4 == static["calls"] / 8
    assert trials["oracle", ""]["agreement"] == 1
    assert {"ada_block, stops", "threshold, stops", "threshold, end of text"} <= {rule for rule, _ in trials}
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {line[0].strip("| "): line[1:] for line in table}
    assert {rule for rule, _ in trials} == rows.keys() - {"rule", "---"}
    fewest = min(t["calls"] for t in trials.values() if t["rule"] == "threshold")
    assert float(rows["threshold"][1]) == pytest.approx(fewest, abs=0.005)


def test_every_part_that_selects_is_swept():
    """Or stands among those that need to know more."""
    swept = {name for names, _ in SWEEPS.values() for name in names.split("+")}
    fitted = {"oracle", "learned_filter", "ada_block", "end_of_text", "renoise"}  # the last: of models without a mask
    rules = {row.name for row in SYSTEMS.values() if row.slot not in ("draft", "accept")}
    assert rules - swept - fitted == {"time_grid"}, "Dream's grid commits as many as it says: quota in another guise"


def test_hidden_markov_counts_calls():
    """FreeDave keeps static decoding's text in fewer calls; a bold threshold keeps neither."""
    markov = program("hidden_markov", "infer")
    markov.RULES["bold"] = ("threshold", {"tau": 0.1})
    run = markov.Run(length=12, block=6, vocab=5, instances=4, rules=("FreeDave 4", "bold"))
    static, exact, bold = markov.measured(run, 0.7)
    assert (static.rule, static.mean, static.spread, static.agreement) == ("static", 12, 0, 1)
    assert exact.agreement == 1 and exact.mean < 12
    assert bold.mean < exact.mean and bold.agreement < 1
