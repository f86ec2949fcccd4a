"""Hub folders: both ways of writing a configuration, shards, other prefixes, and a sentence for every fault."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import FAMILIES, SIZES, D, L, random_weights, shapes, write_hf

from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.hf import load_hf, save_hf
from paradec.io.hf_config import read_config, write_config
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope


def config(family: str = "llama", **changes: Any) -> Transformer:
    return read_config(SIZES | {"model_type": family} | changes).model


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Configurations.


def test_defaults_of_a_bare_llama() -> None:
    model = read_config({"model_type": "llama"}).model
    assert (model.width, model.num_layers, model.num_kv_heads, model.head_dim) == (4096, 32, 32, 128)
    assert (model.vocab_size, model.max_length, model.norm_eps, model.tied) == (32000, 2048, 1e-6, False)
    assert model.rope == Rope()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(5e5)),
        ({"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4}}, Rope(2e4, "linear", 4.0)),
        ({"rope_parameters": {"rope_theta": 2e4, "rope_type": "linear", "factor": 4}}, Rope(2e4, "linear", 4.0)),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            Rope(5e5, "llama3", 32.0, 8192),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            Rope(1e4, "yarn", 4.0, 32768),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}},
            Rope(1e4, "yarn", 4.0, 128, beta_fast=16.0),
        ),
        ({"rope_scaling": None}, Rope()),
        # Stated twice: what transformers obeys (tests/oracle has them all).
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, Rope(1e4, "yarn", 4.0, 64)),
        ({"rope_parameters": PLAIN, "rope_scaling": YARN | {"rope_theta": 9.0}}, Rope(9.0, "yarn", 4.0, 64)),
        ({"rope_parameters": PLAIN, "rope_scaling": YARN, "rope_theta": 5e5}, Rope(5e5, "yarn", 4.0, 64)),
        ({"rope_parameters": PLAIN, "rope_scaling": {}, "rope_theta": 9.0}, Rope(5e5)),
        ({"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 4}}, Rope()),
    ],
    ids=[
        "old", "new", "old-linear", "new-linear", "llama3", "yarn", "yarn-defaults", "null",
        *(f"twice-{i}" for i in range(5)),
    ],
)  # fmt: skip
def test_rotary_settings(settings: dict[str, Any], rope: Rope) -> None:
    assert config(**settings).rope == rope


def test_gemma_old_and_new_style_agree() -> None:
    old = config(
        "gemma3_text", num_hidden_layers=6, rope_theta=1e6, rope_local_base_freq=1e4, sliding_window_pattern=3,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window=512,
    )  # fmt: skip
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new = config(
        "gemma3_text", num_hidden_layers=6, rope_parameters=nested, layer_types=kinds, sliding_window=512
    )  # fmt: skip
    assert old == new
    assert old.sliding == (True, True, False) * 2
    assert (old.rope, old.local_rope) == (Rope(1e6, "linear", 8.0), Rope(1e4))
    assert old.unit_norm and old.post_norms and old.qk_norm and old.tied
    assert old.scale == 256**-0.5 and old.embed_scale == 32**0.5


def test_lost_theta() -> None:
    """transformers drops the theta of settings that others replace; so does paradec, and says so."""
    with pytest.warns(UserWarning, match=r"rope_theta = 500000.0 in rope_parameters.*10000 is used"):
        assert config(rope_parameters=PLAIN, rope_scaling=YARN).rope == Rope(1e4, "yarn", 4.0, 64)
    with pytest.warns(UserWarning, match="Write rope_type"):
        assert config("gemma3_text", rope_scaling={"type": "linear", "factor": 8.0}).rope == Rope(1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is lost in these
        assert config(rope_parameters=PLAIN, rope_scaling=YARN | {"rope_theta": 9.0}).rope.theta == 9.0
        nested = {"full_attention": {"type": "linear", "factor": 8.0}}
        assert config("gemma3_text", rope_parameters=nested).rope == Rope(1e6, "linear", 8.0)


def test_yarn_reads_further() -> None:
    """YaRN of factor 4 over 64 positions reads 256, whatever was left as the length; and survives being written."""
    for length, rope, reads in ((64, YARN, 256), (256, YARN, 256), (512, YARN, 512), (64, PLAIN, 64)):
        model = config(max_position_embeddings=length, rope_scaling=rope)
        assert model.max_length == reads
        assert read_config(write_config(model)).model == model
    assert config(max_position_embeddings=64, rope_scaling={"type": "yarn", "factor": 4.0}).max_length == 256
    assert config(max_position_embeddings=2**30, rope_scaling={"type": "yarn", "factor": 4.0}).max_length == 2**31 - 1
    gemma = config("gemma3_text", max_position_embeddings=64, rope_parameters={"full_attention": YARN})
    assert gemma.max_length == 256


def test_language_model_inside() -> None:
    """Whether heads are tied, and how weights are stored, is said outside of the language model; the rest inside."""
    inside = {"tie_word_embeddings": False, "hidden_size": 512, "dtype": "float16"}
    found = read_config({"model_type": "gemma3", "text_config": inside, "hidden_size": 8}).model
    assert (found.width, found.tied, found.dtype) == (512, True, "float16")
    outside = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    found = read_config({"model_type": "gemma3", "text_config": inside | {"tie_word_embeddings": True}} | outside).model
    assert (found.tied, found.dtype) == (False, "bfloat16")
    assert read_config({"model_type": "gemma3"}).model == read_config({"model_type": "gemma3_text"}).model
    with pytest.raises(WeightsError, match="text_config that is no object"):
        read_config({"model_type": "gemma3", "text_config": [1]})
    with pytest.raises(WeightsError, match="quantization_config"):
        read_config({"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 4}})


def test_what_a_family_does_not_read() -> None:
    """A key that transformers passes over in a family means nothing there."""
    assert config("llama", hidden_activation="gelu_pytorch_tanh").activation == "silu"
    assert config("gemma3_text", hidden_act="silu").activation == "gelu_tanh"
    assert not config("mistral", attention_bias=True).qkv_bias
    assert config("qwen3", mlp_bias=True, final_logit_softcapping=1.0) == config("qwen3")
    assert config("gemma3_text", _sliding_window_pattern=1) == config("gemma3_text")
    nested = {"full_attention": YARN, "sliding_attention": None}
    assert config("gemma3_text", rope_parameters=nested, original_max_position_embeddings=32).rope.original_length == 64


def test_windows() -> None:
    assert config("mistral").window == 4096, "the default of the class"
    assert config("mistral", sliding_window=None).window == 0
    assert config("mistral", sliding_window=16).slides().all()
    assert config("llama", sliding_window=16).window == 0
    assert config("qwen2", sliding_window=16).window == 0, "use_sliding_window is off"
    qwen = config("qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1)
    assert (qwen.window, qwen.sliding) == (16, (False, True))
    assert config("qwen3", sliding_window=16, use_sliding_window=True, max_window_layers=2).window == 0


def test_biases() -> None:
    assert config("qwen2").qkv_bias and not config("qwen3").qkv_bias
    assert config("llama", attention_bias=True).qkv_bias
    assert read_config(SIZES | {"model_type": "llama", "attention_bias": True}).out_bias


def test_dtype_is_the_files_own_unless_asked() -> None:
    assert config().dtype == "float32"
    assert config(torch_dtype="bfloat16").dtype == config(dtype="bfloat16").dtype == "bfloat16"
    assert read_config(SIZES | {"model_type": "llama", "dtype": "bfloat16"}, dtype="float32").model.dtype == "float32"
    with pytest.raises(InputError, match="int8"):
        read_config({"model_type": "llama"}, dtype="int8")


def test_unknown_model_type_lists_known_ones() -> None:
    with pytest.raises(UnknownName, match="'gpt2'.*gemma3, gemma3_text, llama, ministral3, mistral, qwen2, qwen3"):
        config("gpt2")
    with pytest.raises(UnknownName, match="Did you mean 'llama'"):
        config("lama")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": [1]}, "object"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"hidden_size": "32"}, "hidden_size"),
        ("llama", {"hidden_size": True}, "hidden_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("llama", {"head_dim": 7}, "even"),
        ("llama", {"hidden_size": 10**400}, "hidden_size"),
        ("llama", {"rope_theta": 10**400}, "rope_theta"),
        ("mistral", {"sliding_window": 2**31}, "sliding_window"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 1e300}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 2}, "rms_norm_eps"),
        ("llama", {"rope_theta": 1e300}, "rope_theta"),
        ("llama", {"rope_theta": 1e-300}, "rope_theta"),
        ("llama", {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "finite"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 1e30}}, "factor"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "factor"),
        ("llama", {"rope_scaling": {"type": ["x" * 1000]}}, "xxx"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters"),
        ("llama", {"layer_types": ["full_attention"] * 9}, "layer_types"),
        ("llama", {"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config"),
        ("llama", {"dtype": 0}, "dtype"),
        ("llama", {"dtype": ["float32"]}, "dtype"),
        ("qwen2", {"max_window_layers": True}, "max_window_layers"),
        ("qwen3", {"head_dim": None}, "head_dim"),
        ("gemma3_text", {"hidden_activation": None}, "hidden_activation"),
        ("gemma3_text", {"rope_scaling": {"full_attention": {}}}, "rope_scaling"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {}}, "rope_scaling": YARN}, "full_attention"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ("llama", {"torch_dtype": "float8_e4m3fn"}, "dtype"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
        ("qwen2", {"max_window_layers": None, "use_sliding_window": True}, "max_window_layers"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "full_attention"),
        ("gemma3_text", {"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_settings_that_do_not_fit(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((WeightsError, UnknownName), match=words):
        config(family, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_configurations_read_back(family: str) -> None:
    model = config(family, **FAMILIES[family])
    again = read_config(json.loads(json.dumps(write_config(model)))).model
    assert dataclasses.replace(again, query_scale=model.query_scale) == model
    assert np.isclose(again.scale, model.scale)


def test_what_the_hub_cannot_express_is_not_written() -> None:
    with pytest.raises(InputError, match="gemma3_text"):
        write_config(dataclasses.replace(config("gemma3_text"), unit_norm=False))
    with pytest.raises(InputError, match="mistral"):
        write_config(dataclasses.replace(config("mistral"), sliding=(True, False)))


# Folders.


@pytest.mark.parametrize("family", FAMILIES)
def test_load_save_load(family: str, tmp_path: Path) -> None:
    tensors = write_hf(tmp_path / "a", family)
    model, weights = load_hf(tmp_path / "a")
    np.testing.assert_array_equal(weights.embed, tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(weights.blocks.down[1], tensors["model.layers.1.mlp.down_proj.weight"].T)
    save_hf(tmp_path / "b", model, jax.device_put(weights))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.json", "model.safetensors"]
    again, same = load_hf(tmp_path / "b")
    assert np.isclose(again.scale, model.scale)
    assert_same(same, weights)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_dtypes(dtype: str, tmp_path: Path) -> None:
    write_hf(tmp_path, "qwen3", torch_dtype=dtype)
    half = {n: x.astype(np.dtype(dtype)) for n, x in random_weights(shapes("qwen3")).items()}
    save_file(half, tmp_path / "model.safetensors")
    model, weights = load_hf(tmp_path)
    assert model.dtype == dtype and weights.embed.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(weights.embed, half["model.embed_tokens.weight"])
    _, wide = load_hf(tmp_path, "float32")
    np.testing.assert_array_equal(wide.embed, half["model.embed_tokens.weight"].astype(np.float32))
    save_hf(tmp_path / "again", model, weights)
    assert_same(load_hf(tmp_path / "again")[1], weights)
    assert ml_dtypes.bfloat16  # registers the dtype that np.dtype("bfloat16") names


def shard(folder: Path, family: str = "llama") -> dict[str, str]:
    """A folder in two shards; its weight map."""
    tensors = write_hf(folder, family)
    (folder / "model.safetensors").unlink()
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(place.values()):
        save_file({n: x for n, x in tensors.items() if place[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return place


def test_shards(tmp_path: Path) -> None:
    shard(tmp_path / "many")
    write_hf(tmp_path / "one", "llama")
    assert_same(load_hf(tmp_path / "many")[1], load_hf(tmp_path / "one")[1])


def reindex(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    change(value["weight_map"])
    index.write_text(json.dumps(value))
    with pytest.raises(WeightsError) as error:
        load_hf(folder)
    return str(error.value)


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for number, (change, words) in enumerate(
        [
            (lambda m: m.update({"model.norm.weight": "nowhere.safetensors"}), "nowhere.safetensors is missing"),
            (lambda m: m.update({"extra": first}), "'extra'"),
            (lambda m: m.pop("model.norm.weight"), "does not list tensor 'model.norm.weight'"),
            (lambda m: m.update({"lm_head.weight": second if m["lm_head.weight"] == first else first}), "lm_head"),
            (lambda m: m.update({"lm_head.weight": "../a.safetensors"}), "weight_map"),
        ]
    ):
        shard(tmp_path / str(number))
        assert words in reindex(tmp_path / str(number), change)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], **config: Any) -> Path:
    tensors = write_hf(folder, "qwen2", **config)
    save_file(change(tensors), folder / "model.safetensors")
    return folder


def test_other_prefixes(tmp_path: Path) -> None:
    """A bare model without "model.", and a language model inside a multimodal one, under its old and new names."""
    tensors = write_hf(tmp_path / "plain", "gemma3_text")
    _, wanted = load_hf(tmp_path / "plain")
    text = SIZES | FAMILIES["gemma3_text"]
    vision = {"vision_tower.x": np.zeros(2, np.float32), "multi_modal_projector.y": np.zeros(2, np.float32)}
    for number, (prefix, whole) in enumerate(
        [("", False), ("language_model.model.", True), ("model.language_model.", True)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = {"model_type": "gemma3", "text_config": text, "vision_config": {}} if whole else text
        (folder / "config.json").write_text(json.dumps({"model_type": "gemma3_text"} | own))
        renamed = {prefix + name.removeprefix("model."): x for name, x in tensors.items()}
        save_file(renamed | (vision if whole else {}), folder / "model.safetensors")
        assert_same(load_hf(folder)[1], wanted)


def test_old_rotary_tables_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load_hf(rewrite(tmp_path, lambda t: t | {name: np.zeros(8, np.float32)}))


def test_a_tied_head(tmp_path: Path) -> None:
    """A stored copy of the embedding is fine; another head means the configuration is wrong."""
    embed = "model.embed_tokens.weight"
    model, weights = load_hf(rewrite(tmp_path / "a", lambda t: t | {"lm_head.weight": t[embed].copy()}))
    assert model.tied and weights.head is None
    with pytest.raises(WeightsError, match="tie_word_embeddings"):
        load_hf(rewrite(tmp_path / "b", lambda t: t | {"lm_head.weight": t[embed] + 1}))
    untied, weights = load_hf(
        rewrite(tmp_path / "c", lambda t: t | {"lm_head.weight": t[embed] + 1}, tie_word_embeddings=False)
    )
    assert not untied.tied and weights.head is not None


def test_out_bias_must_be_zero(tmp_path: Path) -> None:
    write_hf(tmp_path, "llama", attention_bias=True)
    extra = {
        f"model.layers.{i}.self_attn.{p}_proj.bias": np.zeros(64 if p == "q" else 32, np.float32)
        for i in range(L)
        for p in "qkvo"
    }
    save_file(random_weights(shapes("llama")) | extra, tmp_path / "model.safetensors")
    assert load_hf(tmp_path)[0].qkv_bias
    extra["model.layers.1.self_attn.o_proj.bias"] = np.ones(D, np.float32)
    save_file(random_weights(shapes("llama")) | extra, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.1\.self_attn\.o_proj\.bias"):
        load_hf(tmp_path)


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight'.*I32"):
        load_hf(rewrite(tmp_path, lambda t: t | {"model.norm.weight": np.zeros(D, np.int32)}))


def test_configuration_of_another_model(tmp_path: Path) -> None:
    write_hf(tmp_path, "llama", intermediate_size=65)
    with pytest.raises(WeightsError, match=r"gate_proj\.weight.*\(64, 32\).*\(65, 32\)"):
        load_hf(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_hf(tmp_path)
    write_hf(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="save_pretrained"):
        load_hf(tmp_path)
    for content in ("", "[1, 2]", "{", "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(WeightsError, match=r"config\.json"):
            load_hf(tmp_path)
