"""SmolLM2-135M against transformers on the same weights: logits and greedy text."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.make_greedy import GOLDEN, prompts, transformers_greedy

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_logits(smollm2, tmp_path):
    """Both are float32 roundings of one truth, which float64 knows better; how far each is from it depends on the
    machine (0.6 to 1.4e-4 were seen). Logits reach about 38."""
    from paradec.io.hf import save_hf

    save_hf(tmp_path, smollm2.model, jax.device_get(smollm2.params))
    forward = jax.jit(lambda w, t: smollm2.model.forward(w, t).logits)
    peers = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=kind).eval()
        for kind in (torch.float32, torch.float64)
    ]
    for text in prompts()[:4]:
        ids = smollm2.encode(text)[:48]
        ours = np.asarray(forward(smollm2.params, jnp.asarray([ids], jnp.int32)))
        with torch.no_grad():
            single, double = (peer(torch.tensor([ids])).logits.numpy() for peer in peers)
        assert np.abs(ours - single).max() < 3e-4 and np.abs(ours - double).max() < 2e-4
        assert (ours.argmax(-1) == double.argmax(-1)).all()


def test_greedy_text(smollm2):
    """The stored texts, with which tests/test_smollm2.py compares ours, are what transformers says today."""
    stored = json.loads(GOLDEN.read_text())
    assert len(stored) == 20 and [row["prompt"] for row in stored] == prompts()
    assert [row["token_ids"] for row in stored] == transformers_greedy(smollm2, prompts())
