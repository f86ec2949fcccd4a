"""Folders of recurrent models: what is written is read back to the bit, and anything else is a sentence."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from paradec import load
from paradec.errors import InputError, WeightsError
from paradec.io.hf import load_hf, save_hf
from paradec.models.attention_mixer import Attention
from paradec.models.cells.slstm import SLSTM
from paradec.models.flash_rnn import FlashRNN
from paradec.models.mixer import Mixer
from paradec.models.mixers import KINDS, LayerSizes
from paradec.models.recurrent import RecurrentLM
from paradec.testing.tiny import drawn

SIZES = LayerSizes(width=32, heads=4, kv_heads=2, head_dim=8)
MODEL = RecurrentLM(29, 32, (FlashRNN(SLSTM(2, 8)), Attention(4, 2, 8)), repeats=2, mlp_width=24, tied=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_comes_back(kind, tmp_path):
    model = RecurrentLM(29, 32, (KINDS[kind](SIZES), Attention(4, 2, 8)), repeats=2, mlp_width=24)
    weights = drawn(model.specs(), 3)
    save_hf(tmp_path, model, weights)
    again, read = load_hf(tmp_path)
    assert again == model
    for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(read), strict=True):
        assert np.array_equal(a, b) and a.dtype == b.dtype


def test_it_is_loaded_as_another_dtype(tmp_path):
    save_hf(tmp_path, MODEL, drawn(MODEL.specs(), 3))
    model, weights = load_hf(tmp_path, dtype="bfloat16")
    assert model == dataclasses.replace(MODEL, dtype="bfloat16")
    assert weights.embed.dtype == model.specs().embed.dtype


def change(values, path, new):
    *path, last = path
    for step in path:
        values = values[step]
    if new is None:
        del values[last]
    else:
        values[last] = new


@pytest.mark.parametrize(
    ("path", "new", "sentence"),
    [
        (("structure", "pattern", 0, "class"), "Mamba9", "pattern.0. is of the class 'Mamba9'; paradec knows"),
        (("structure", "pattern", 1, "heads"), 3, "Attention has no 'heads'; its fields are"),
        (("structure", "pattern", 1, "num_heads"), 3, "num_heads must be a multiple of num_kv_heads"),
        (("structure", "width"), "wide", "width must be a whole number"),
        (("structure", "width"), None, "describes no model"),
        (("structure", "repeats"), 0, "repeats must be at least 1"),
        (("structure", "vocab_size"), 30, "has 'embed' in shape .29, 32., not .30, 32."),
        (("structure", "tied"), True, "holds tensor 'head', which has no place"),
        (("structure",), [1], "not a RecurrentLM"),
    ],
)
def test_what_does_not_fit(path, new, sentence, tmp_path):
    save_hf(tmp_path, MODEL, drawn(MODEL.specs(), 3))
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    change(values, path, new)
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=sentence):
        load_hf(tmp_path)


def test_a_mixer_of_ones_own_has_no_file(tmp_path):
    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Mine(Mixer):
        pass

    with pytest.raises(InputError, match="Mine has no place in a config.json"):
        save_hf(tmp_path, dataclasses.replace(MODEL, pattern=(Mine(),)), drawn(MODEL.specs(), 3))


def test_options_of_other_models_are_refused(tmp_path):
    save_hf(tmp_path, MODEL, drawn(MODEL.specs(), 3))
    with pytest.raises(InputError, match="fills no canvas"):
        load_hf(tmp_path, mask_id=3)
    with pytest.raises(WeightsError, match="no tokenizer.json"):
        load(str(tmp_path))
