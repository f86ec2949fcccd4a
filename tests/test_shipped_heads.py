"""The heads that paradec ships: small, and for one model alone. What they are good for is in test_smollm2."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paradec import components
from paradec.errors import InputError
from paradec.models.ranked_tree import best_first, expected
from tests.fixtures import write_tiny_model

HEADS = components.SHIPPED / "smollm2-135m"


def test_they_are_small_and_say_where_they_come_from():
    assert HEADS.with_suffix(".safetensors").stat().st_size <= 8_000_000
    facts = json.loads(HEADS.with_suffix(".json").read_text())
    assert facts["base"] == "smollm2-135m" and facts["command"].startswith("python train/medusa.py smollm2")
    accuracy = np.asarray(facts["accuracy"])
    assert accuracy.shape == (4, 10) and (np.diff(accuracy[:, 0]) < 0).all()
    tree = tuple(tuple(path) for path in facts["tree"])
    assert tree[:7] == best_first(accuracy, 7) and expected(accuracy, tree[:15]) > 1.7


def test_another_model_does_not_get_them(tmp_path):
    import paradec

    lm = paradec.load(str(write_tiny_model(tmp_path / "tiny")))
    assert components.shipped(lm) is None
    with pytest.raises(InputError, match="needs heads trained for the model"):
        lm.generate("x", method="medusa", max_new_tokens=2)
    with pytest.raises(InputError, match=r"These heads were trained for smollm2-135m"):
        lm.generate("x", method="medusa", method_args={"heads": str(HEADS.with_suffix(".safetensors"))})
