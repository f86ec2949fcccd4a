"""Random small models of transformers, saved by transformers and loaded by us: the same logits, every way we compute.

The cases are those of tests/golden, whose weights are large enough that attention is far from uniform: a wrong window,
mask, rotary table or norm moves logits by far more than the tolerance.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.io.hf import load_hf, save_hf
from paradec.types import Rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

golden = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_goldens.py"))
CASES, SMALL, LENGTH = golden["CASES"], golden["SMALL"], golden["LENGTH"]
build, theirs, tokens = golden["reference"], golden["logits"], golden["tokens"]


def load(folder: Path, dtype: str | None = None) -> tuple[Any, Any]:
    """The loaded model, with its weights on the device."""
    model, weights = load_hf(folder, dtype)
    return model, jax.device_put(weights)


@pytest.mark.parametrize("case", CASES)
def test_same_logits(case: str, tmp_path: Path) -> None:
    reference = build(case)
    reference.save_pretrained(tmp_path)
    model, weights = load(tmp_path)
    token, wanted = tokens(), theirs(reference, tokens())
    assert wanted.std() > 0.3, "a flat model would hide mistakes"

    found = jax.jit(model.forward)(weights, jnp.asarray(token)).logits
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["llama", "mistral", "ministral3", "gemma3"])
def test_same_logits_in_pieces(case: str, tmp_path: Path) -> None:
    """Extend and commit in three uneven pieces give what transformers gives for the whole."""
    reference = build(case)
    reference.save_pretrained(tmp_path)
    model, weights = load(tmp_path)
    token = tokens()
    cache, found = model.init_cache(2, LENGTH), []
    for piece in np.split(token, [9, 10], axis=1):
        rows = Rows.chain(jnp.asarray(piece))
        out, delta = jax.jit(model.extend)(weights, cache, rows)
        cache = model.commit(cache, delta, None, jnp.full(2, piece.shape[1], jnp.int32))
        found.append(out.logits)
    np.testing.assert_allclose(np.concatenate(found, 1), theirs(reference, token), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_they_read_what_we_write(case: str, tmp_path: Path) -> None:
    """`save_hf` writes a folder that transformers opens to the same logits, without a missing or unexpected tensor."""
    reference = build(case)
    reference.save_pretrained(tmp_path / "theirs")
    save_hf(tmp_path / "ours", *load_hf(tmp_path / "theirs"))
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    np.testing.assert_allclose(theirs(again.eval(), tokens()), theirs(reference, tokens()), atol=1e-5, rtol=1e-5)


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    """A sharded bfloat16 folder loads to the same bits, in its own dtype and widened to float32."""
    build("qwen2").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (tmp_path / "model.safetensors.index.json").exists()
    model, weights = load(tmp_path)
    assert model.dtype == "bfloat16"
    wide_model, wide = load(tmp_path, dtype="float32")
    assert wide_model.dtype == "float32"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(np.float32), b), weights, wide)
    found = wide_model.forward(wide, jnp.asarray(tokens())).logits
    np.testing.assert_allclose(found, theirs(reference, tokens()), atol=1e-4, rtol=1e-4)


def test_language_model_inside_a_multimodal_one(tmp_path: Path) -> None:
    """The text part of Gemma 3 with a vision tower equals the whole model on text."""
    _, changes = CASES["gemma3"]
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                  patch_size=8)  # fmt: skip
    text = SMALL | changes | {"vocab_size": 200, "initializer_range": 0.2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=199, boi_token_index=198,
        eoi_token_index=197,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = transformers.Gemma3ForConditionalGeneration(config).eval()
    reference.save_pretrained(tmp_path)
    model, weights = load(tmp_path)
    found = model.forward(weights, jnp.asarray(tokens())).logits
    np.testing.assert_allclose(found, theirs(reference, tokens()), atol=1e-4, rtol=1e-4)


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    """A config.json that says nothing but its type means to us what it means to transformers."""
    from paradec.io.hf_config import DEFAULTS, read_config

    for family in DEFAULTS:
        full = transformers.AutoConfig.for_model(family).to_dict()
        assert read_config({"model_type": family}).model == read_config(full).model, family
