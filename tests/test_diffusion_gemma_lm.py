"""A DiffusionGemma from a folder to a text: its own rule with the numbers of its own files."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

import paradec
from paradec.errors import InputError
from paradec.io.diffusion_gemma import ENTRIES
from paradec.io.names import store
from paradec.models.diffusion_gemma import DiffusionGemma
from tests.diffusion_gemma import GENERATION, calm, folder

PROMPTS = [[2, 11, 23, 37, 5, 48, 19], [7, 40]]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    model, weights = calm()
    path = folder(tmp_path_factory.mktemp("gemma"), dict(store(model, ENTRIES, jax.device_get(weights))))
    core = Tokenizer(models.WordLevel({f"word{i}": i for i in range(64)}, unk_token="word0"))
    core.save(str(path / "tokenizer.json"))
    return paradec.load(str(path), progress=False)


def test_a_folder_writes_whole_canvases(lm):
    assert isinstance(lm.model, DiffusionGemma) and lm.tokenizer.eos_ids == {1}
    jax.tree.map(np.testing.assert_array_equal, lm.params, calm()[1])
    made = lm.generate(PROMPTS, max_new_tokens=10, batch_size=2, ignore_eos=True, seed=3)
    for each in made:
        assert each.method == "renoise" and each.new_tokens == 10 and len(set(each.settled)) == 2
        assert each.calls <= 2 * GENERATION["max_denoising_steps"]
    again = lm.generate(PROMPTS, max_new_tokens=10, batch_size=2, ignore_eos=True, seed=3, method="renoise")
    assert [a.token_ids for a in again] == [m.token_ids for m in made]
    assert lm.generate(PROMPTS[:1], max_new_tokens=10, ignore_eos=True, seed=3)[0].token_ids == made[0].token_ids


def test_options_win_over_the_files(lm):
    once = lm.generate(PROMPTS[:1], max_new_tokens=12, ignore_eos=True, method_args={"steps": 1})[0]
    assert once.calls == 2 and once.settled == (1,) * 6 + (2,) * 6
    named = lm.generate(PROMPTS[:1], max_new_tokens=12, ignore_eos=True, method_args={"renoise.steps": 1})[0]
    assert named.token_ids == once.token_ids and named.calls == 2


def test_a_rule_for_masks_is_refused(lm):
    with pytest.raises(InputError, match="take renoise"):
        lm.generate(PROMPTS, method="threshold")
