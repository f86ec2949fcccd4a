"""Folders of flash-linear-attention's GLA: what is written is read back to the bit, and anything else is a sentence."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.gla import read_gla, write_gla
from paradec.io.hf import load_hf, save_gla
from paradec.io.tensor_file import table, write
from paradec.models.attention_mixer import Attention
from paradec.models.gla import GLA
from paradec.models.recurrent import RecurrentLM
from paradec.testing.tiny import drawn

MIXERS = {
    "plain": GLA(4),
    "all options": GLA(4, num_kv_heads=2, expand_k=1.0, expand_v=2.0, clamp_min=-0.1, conv_size=3, norm_eps=1e-5),
    "bare": GLA(2, output_gate=False, norm_weight=False),
    "no gate": GLA(2, output_gate=False),
}


def made(name, **changes):
    mixer = MIXERS[name]
    model = RecurrentLM(29, 16, (mixer,), repeats=2, mlp_width=24, norm_eps=mixer.norm_eps, tied=False)
    model = dataclasses.replace(model, **changes)
    return model, drawn(model.specs(), 3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_what_is_written_is_read(name, tied, tmp_path):
    model, weights = made(name, tied=tied)
    save_gla(tmp_path, model, weights)
    again, read = load_hf(tmp_path)
    assert again == model
    for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(read), strict=True):
        assert np.array_equal(a, b) and a.dtype == b.dtype
    assert load_hf(tmp_path, dtype="bfloat16")[1].embed.dtype == jax.numpy.bfloat16


def test_tensors_have_their_names_and_shapes(tmp_path):
    """Torch keeps matrices as (out, in), and depthwise convolutions as (channels, 1, positions)."""
    save_gla(tmp_path, *made("all options"))
    held = {name: tensor.shape for name, tensor in table(tmp_path / "model.safetensors").items()}
    attn = "model.layers.1.attn."
    assert held["model.embeddings.weight"] == held["lm_head.weight"] == (29, 16)
    assert {name.removeprefix(attn): shape for name, shape in held.items() if name.startswith(attn)} == {
        "q_proj.weight": (16, 16), "k_proj.weight": (8, 16), "v_proj.weight": (16, 16), "g_proj.weight": (32, 16),
        "gk_proj.0.weight": (16, 16), "gk_proj.1.weight": (8, 16), "gk_proj.1.bias": (8,), "o_proj.weight": (16, 32),
        "q_conv1d.weight": (16, 1, 3), "k_conv1d.weight": (8, 1, 3), "v_conv1d.weight": (16, 1, 3),
        "g_norm_swish_gate.weight": (8,),
    }  # fmt: skip
    save_gla(tmp_path, *made("no gate"))
    assert attn + "g_norm.weight" in table(tmp_path / "model.safetensors")


def test_a_published_config():
    """The 340M of the authors, as they train it: with what it leaves out."""
    config = {
        "attn_mode": "chunk", "bos_token_id": 1, "clamp_min": None, "eos_token_id": 2, "expand_k": 0.5, "expand_v": 1,
        "fuse_cross_entropy": True, "fuse_norm": True, "hidden_act": "swish", "hidden_ratio": 4, "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": None, "model_type": "gla", "num_heads": 4,
        "num_hidden_layers": 24, "norm_eps": 1e-06, "tie_word_embeddings": True, "use_cache": True, "use_gk": True,
        "use_gv": False, "vocab_size": 32000,
    }  # fmt: skip
    model = read_gla(config, "config.json")
    assert model == RecurrentLM(32_000, 1024, (GLA(4),), repeats=24, mlp_width=2816)
    assert model.pattern[0].head_sizes(1024) == (128, 256)
    assert read_gla({"model_type": "gla"}, "config.json") == RecurrentLM(32_000, 2048, (GLA(4),), 24, 5632, tied=False)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("attn", {"layers": [1], "num_heads": 2}, "some of its layers are softmax attention"),
        ("feature_map", "relu", "no feature map"),
        ("attnres_block_size", 2, "read the residual stream"),
        ("rotary_dim", 8, "sets rotary_dim = 8: paradec does not know this option of GLA"),
        ("quantization_config", {"bits": 4}, "unquantized"),
        ("hidden_act", "powlu", "should be 'swish'"),
        ("attn_mode", "parallel", "one of chunk, fused_recurrent, fused_chunk"),
        ("clamp_min", 0.5, "at most 0"),
        ("clamp_min", "low", "at most 0"),
        ("num_heads", 3, "describes layers that cannot be. expand_k = 0.5 makes 8 of a width of 16"),
        ("num_kv_heads", 3, "describes layers that cannot be. num_heads must be a multiple of num_kv_heads"),
        ("num_hidden_layers", 10**6, "at most 10000"),
        ("num_hidden_layers", 3, "lacks tensor 'model.layers.2"),
        ("expand_k", "half", "should be a number"),
        ("use_short_conv", True, "lacks tensor 'model.layers.0.attn.k_conv1d.weight'"),
        ("use_output_gate", False, "lacks tensor 'model.layers.0.attn.g_norm.weight'"),
        ("num_kv_heads", 2, "k_proj.weight' in .* has shape .8, 16.; the configuration asks for .4, 16."),
        ("tie_word_embeddings", True, "a vocabulary head of its own"),
    ],
)
def test_what_does_not_fit(key, value, sentence, tmp_path):
    save_gla(tmp_path, *made("plain"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(WeightsError, match=sentence):
        load_hf(tmp_path)


def test_tensors_that_have_no_place(tmp_path):
    save_gla(tmp_path, *made("plain"))
    held = {name: tensor.read() for name, tensor in table(tmp_path / "model.safetensors").items()}
    write(tmp_path / "model.safetensors", held | {"model.layers.0.attn.beta_proj.weight": np.ones(3, np.float32)})
    with pytest.raises(WeightsError, match="beta_proj.weight' .* has no place in this architecture"):
        load_hf(tmp_path)


def test_models_that_no_config_describes(tmp_path):
    model, _ = made("plain")
    for changes, words in (
        (dict(pattern=(Attention(2, 2, 8),)), "GLA layers alone"),
        (dict(pattern=(MIXERS["plain"], MIXERS["bare"])), "GLA layers alone"),
        (dict(pattern=(GLA(4, gate_rank=8),)), "the rank and the normaliser of gates are 16"),
        (dict(pattern=(GLA(4, gate_normaliser=1.0),)), "the rank and the normaliser of gates are 16"),
        (dict(norm_eps=1e-3), "all norms have one epsilon"),
        (dict(mlp_width=0), "every layer has an MLP"),
    ):
        with pytest.raises(InputError, match=words):
            write_gla(dataclasses.replace(model, **changes))
    assert write_gla(dataclasses.replace(model, pattern=(GLA(4, implementation="chunk", chunk=32),))) == write_gla(
        model
    )


def test_options_of_other_models(tmp_path):
    save_gla(tmp_path, *made("plain"))
    with pytest.raises(InputError, match="fills no canvas"):
        load_hf(tmp_path, mask_id=3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gla2"}))
    with pytest.raises(UnknownName, match="Did you mean 'gla'"):
        load_hf(tmp_path)
