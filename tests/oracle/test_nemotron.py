"""The causal pass of Nemotron-Labs-Diffusion is that of transformers' Ministral 3, also behind denoised blocks.

The denoising pass has no public implementation in transformers; it is compared with a dense mask in tests/models.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paradec.composition import compose
from paradec.io.hf import load_hf
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.types import Prompt, Rows
from tests.decode.canvases import decode

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

golden = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_goldens.py"))
MASK, LENGTH = 60, 48  # beyond the golden text: queries grow in six steps


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, NemotronDiffusion, Any]:
    """A random Ministral 3 of transformers, and its folder as one of Nemotron-Labs-Diffusion, loaded by us."""
    folder, reference = tmp_path_factory.mktemp("nemotron"), golden["reference"]("ministral3")
    reference.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "nemotron_labs_diffusion", "mask_token_id": MASK, "block_size": 4}
    (folder / "config.json").write_text(json.dumps(config | own))
    name = lambda n: n.replace("model.", "encoder.").replace("lm_head.", "diffusion_head.")
    save_file({name(n): x for n, x in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    model, weights = load_hf(folder)
    assert isinstance(model, NemotronDiffusion)
    return reference, model, jax.device_put(weights)


def words(logits: Any) -> np.ndarray:
    return np.asarray(logits)[..., :MASK]


def test_the_causal_pass(pair: tuple[Any, NemotronDiffusion, Any]) -> None:
    reference, model, weights = pair
    token = np.random.default_rng(3).integers(MASK, size=(2, LENGTH), dtype=np.int32)
    wanted = words(golden["logits"](reference, token))
    np.testing.assert_allclose(
        words(jax.jit(model.forward)(weights, jnp.asarray(token)).logits), wanted, atol=1e-4, rtol=1e-4
    )


def test_a_text_that_was_denoised_is_continued_as_they_continue_it(pair: tuple[Any, NemotronDiffusion, Any]) -> None:
    """The keys that blocks left in the cache are those that transformers computes of the finished text."""
    reference, model, weights = pair
    token = jnp.asarray(np.random.default_rng(4).integers(MASK, size=(2, LENGTH)), jnp.int32)
    prompt = Prompt(token=token, length=jnp.asarray([7, 10]))
    state = decode(
        compose(model, "threshold", {"tau": 0.2}), {"target": weights}, prompt, prompt.length + 24, slots=LENGTH
    )
    n = np.asarray(state.cache.length)
    assert (n == np.asarray(prompt.length) + 20).all()
    rows = jnp.take_along_axis(state.tokens, state.cache.length[:, None] + jnp.arange(3)[None], axis=1)
    out, _ = jax.jit(model.extend)(weights, state.cache, Rows.chain(rows))
    wanted = golden["logits"](reference, np.asarray(state.tokens))
    for b in range(2):
        np.testing.assert_allclose(words(out.logits[b]), words(wanted[b, n[b] : n[b] + 3]), atol=1e-4, rtol=1e-4)
