"""Stored logits of transformers, for every family and rotary scaling: `make test` checks them without torch."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from paradec.io.hf import load_hf

golden = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_goldens.py"))


@pytest.fixture(scope="module")
def stored() -> Any:
    with np.load(golden["GOLDENS"]) as file:
        return dict(file)


@pytest.mark.parametrize("case", golden["CASES"])
def test_golden(case: str, stored: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A folder with the stored configuration and the seeded weights gives the stored logits."""
    facts = json.loads(str(stored[f"{case}.config"]))
    (tmp_path / "config.json").write_text(json.dumps(facts["config"]))
    save_file(golden["random_weights"](facts["shapes"]), tmp_path / "model.safetensors")
    model, weights = load_hf(tmp_path)
    wanted = stored[f"{case}.logits"]
    assert wanted.std() > 0.3, "flat logits would hide mistakes"
    found = jax.jit(model.forward)(jax.device_put(weights), jnp.asarray(golden["tokens"]())).logits
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
