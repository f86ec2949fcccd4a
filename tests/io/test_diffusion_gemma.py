"""Folders of DiffusionGemma: every tensor in its place, both spellings of the config, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from odd_values import check_odd_config, check_odd_values

from paradec.errors import InputError, WeightsError
from paradec.io import hf
from paradec.io.diffusion_gemma import ENTRIES, read_denoising, read_diffusion_gemma
from paradec.io.hf import load_hf
from paradec.io.names import store
from paradec.models.diffusion_gemma import DiffusionGemma
from tests.diffusion_gemma import CONFIG, TEXT, filled, fixture, folder, shapes, tensors

HEADS = {"head_dim": 16, "num_key_value_heads": 1}
SAVED = {"global_head_dim": ..., "num_global_key_value_heads": ..., "per_layer_config": {"2": HEADS}}


def test_the_fill_of_the_fixture():
    embed, norm = tensors()["model.decoder.embed_tokens.weight"], "model.decoder.layers.0.input_layernorm.weight"
    np.testing.assert_allclose(embed[0, :3], [0.02395441, -0.03696553, -0.12438568], atol=1e-7)
    np.testing.assert_allclose(filled(norm, (32,))[:2], [1.37113857, 0.66592139], atol=1e-7)


@pytest.mark.parametrize("changes", [{}, SAVED, {"file_canvas_length": 6, "use_bidirectional_attention": "vision"}])
def test_a_folder_is_the_fixture(changes: dict[str, Any], tmp_path):
    model, weights = load_hf(folder(tmp_path, **changes))
    wanted, theirs = fixture()
    assert model == wanted and isinstance(model, DiffusionGemma)
    jax.tree.map(np.testing.assert_array_equal, weights, theirs)
    first, second = (f"model.decoder.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up"))
    np.testing.assert_array_equal(weights.local.gate_up[0, 0], tensors()[first].T)
    np.testing.assert_array_equal(weights.local.gate_up[0, 1], tensors()[second].T)
    assert weights.full.v is None and float(weights.full.causal_scalar[0, 0]) == np.float32(0.9)


def test_the_vision_tower_is_left_out_and_nothing_else_is(tmp_path):
    extra = lambda name: tensors() | {name: np.zeros(3, np.float32)}
    for i, name in enumerate(("model.encoder.vision_tower.a.weight", "model.encoder.embed_vision.b.weight")):
        load_hf(folder(tmp_path / f"ok{i}", extra(name)))
    for i, name in enumerate(("lm_head.weight", "model.encoder.language_model.norm.weight", "model.other.weight")):
        with pytest.raises(WeightsError, match=f"{name}.*no place"):
            load_hf(folder(tmp_path / f"odd{i}", extra(name)))
    lacking = {name: x for name, x in tensors().items() if name != "model.encoder.language_model.layers.1.layer_scalar"}
    with pytest.raises(WeightsError, match="lacks tensor 'model.encoder.language_model.layers.1.layer_scalar'"):
        load_hf(folder(tmp_path / "lacking", lacking))
    v = "model.decoder.layers.2.self_attn.v_proj.weight"
    with pytest.raises(WeightsError, match="v_proj.*no place"):
        load_hf(folder(tmp_path / "values", tensors() | {v: np.zeros((16, 32), np.float32)}))


def test_a_written_model_is_read_back(tmp_path):
    model, weights = fixture()
    hf.save_hf(tmp_path, model, weights)
    found, again = load_hf(tmp_path)
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, again, weights)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["canvas_length"] == 6 and written["text_config"]["layer_types"] == TEXT["layer_types"]


def test_what_transformers_assumes():
    """The class' defaults, with the experts that it leaves open: five of six layers slide, the last never does."""
    experts = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    model = read_diffusion_gemma({"model_type": "diffusion_gemma", "text_config": experts}, "config.json")
    assert (model.block, model.vocab_size, model.width, model.num_layers, model.window) == (256, 262144, 2304, 30, 512)
    assert (model.head_dim, model.global_head_dim, model.num_global_kv_heads) == (256, 512, 4)
    assert model.sliding == ((True,) * 5 + (False,)) * 5 and model.period() == 6
    forced = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    assert read_diffusion_gemma(CONFIG | {"text_config": TEXT | forced}, "").sliding == (True, False)
    assert model.rope.frequencies(512)[0][[0, 63, 64, 255]].tolist() == pytest.approx([1, 1e6 ** (-126 / 512), 0, 0])


def test_the_published_size():
    """Experts of the published sizes: about the 26 billion weights that the model is named after."""
    text = TEXT | {
        "vocab_size": 262144, "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "global_head_dim": 512,
        "num_global_key_value_heads": 2, "layer_types": None, "sliding_window": 1024, "num_experts": 128,
        "top_k_experts": 8, "moe_intermediate_size": 704,
    }  # fmt: skip
    specs = jax.tree.leaves(read_diffusion_gemma(CONFIG | {"text_config": text}, "").specs(), is_leaf=is_spec)
    assert 24e9 < sum(np.prod(s.shape, dtype=float) for s in specs) < 27e9


def is_spec(x):
    return hasattr(x, "init")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file_tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"use_bidirectional_attention": "all"}, "paradec's text is causal"),
        ({"attention_bias": True}, "no biases"),
        ({"hidden_activation": "silu"}, "gelu_pytorch_tanh"),
        ({"num_experts": ...}, "num_experts = None"),
        ({"top_k_experts": 5}, "experts that cannot be"),
        ({"per_layer_config": {"1": HEADS}}, "for the layers 2"),
        ({"per_layer_config": {"2": HEADS | {"window": 3}}}, "per_layer_config"),
        ({"num_global_key_value_heads": 3}, "a divisor of num_attention_heads"),
        ({"global_head_dim": 7}, "even"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4}}}, "rope_type = 'yarn'"),
        ({"layer_types": ["full_attention"]}, "a list of 3 times"),
        ({"file_text_config": 3}, "text_config"),
        ({"file_quantization_config": {"bits": 4}}, "unquantized"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str, tmp_path):
    with pytest.raises(WeightsError, match=words):
        load_hf(folder(tmp_path, **changes))


def test_any_value_in_config(tmp_path):
    check_odd_config(folder(tmp_path), "quantization_config")
    more = ("per_layer_config", "rope_parameters", "use_bidirectional_attention", "final_logit_softcapping", "dtype")
    read = lambda text: read_diffusion_gemma(CONFIG | {"text_config": text}, "config.json")
    check_odd_values(TEXT, read, (*TEXT, *more))


def test_options_of_masked_models_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="no mask and one canvas length"):
        load_hf(folder(tmp_path), block=4)


def test_how_the_checkpoint_asks_to_be_denoised(tmp_path):
    asked = {"steps": 9, "t_min": 0.3, "t_max": 0.7, "stability": 2, "confidence": 0.25, "gamma": 0.5}
    assert read_denoising(folder(tmp_path)) == asked
    file = tmp_path / "generation_config.json"
    for odd in ({"max_denoising_steps": 2.5}, {"t_min": "hot"}, {"sampler_config": {"_cls_name": "Other"}}):
        file.write_text(json.dumps(odd))
        with pytest.raises(WeightsError, match=next(iter(odd))):
            read_denoising(tmp_path)
    file.unlink()
    assert read_denoising(tmp_path) == {}


def test_every_tensor_of_the_text_model_has_a_line():
    model, weights = fixture()
    written = dict(store(model, ENTRIES, jax.device_get(weights)))
    assert {name: x.shape for name, x in written.items()} == shapes()
