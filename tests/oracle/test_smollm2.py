"""SmolLM2-135M against transformers on the same weights: logits and greedy text."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.make_greedy import GOLDEN, NEW_TOKENS, prompts

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def peers(smollm2, tmp_path_factory):
    """The same weights in transformers, in float32 and in float64."""
    from paradec.io.hf import save_hf

    folder = tmp_path_factory.mktemp("peer")
    save_hf(folder, smollm2.model, jax.device_get(smollm2.params))
    return [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        for kind in (torch.float32, torch.float64)
    ]


def test_logits(smollm2, peers):
    """Both are float32 roundings of one truth, which float64 knows better; how far each is from it depends on the
    machine (0.6 to 1.4e-4 were seen). Logits reach about 38."""
    forward = jax.jit(lambda w, t: smollm2.model.forward(w, t).logits)
    for text in prompts()[:4]:
        ids = smollm2.encode(text)[:48]
        ours = np.asarray(forward(smollm2.params, jnp.asarray([ids], jnp.int32)))
        with torch.no_grad():
            single, double = (peer(torch.tensor([ids])).logits.numpy() for peer in peers)
        assert np.abs(ours - single).max() < 3e-4 and np.abs(ours - double).max() < 2e-4
        assert (ours.argmax(-1) == double.argmax(-1)).all()


def test_greedy_text(smollm2, peers):
    """The stored texts, with which tests/test_smollm2.py compares ours, are what transformers says today: behind every
    prefix of a text, its next token is the likeliest. A call for each text asks that of all its prefixes."""
    stored = json.loads(GOLDEN.read_text())
    assert len(stored) == 20 and [row["prompt"] for row in stored] == prompts()
    for row in stored:
        prompt, text = smollm2.encode(row["prompt"]), row["token_ids"]
        with torch.no_grad():
            likeliest = peers[0](torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert likeliest.tolist() == text, row["prompt"]
        assert (len(text) == NEW_TOKENS) != (text[-1] in smollm2.tokenizer.eos_ids), "ends where it must"
