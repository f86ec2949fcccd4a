"""Folders of published diffusion language models: every weight in its place, and what the config leaves unsaid."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_values import check_odd_config
from tiny_checkpoints import D, V, random_weights
from tiny_diffusion import (
    CONFIGS,
    LLADA,
    MASK,
    TOP,
    Tensors,
    W,
    add_tokenizer,
    published,
    write,
    write_config,
    write_plain,
)

import paradec
from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io import hf
from paradec.io.checkpoint_laws import alignment_of, check_reach, check_shift, reach_of
from paradec.io.diffusion_config import FAMILIES, is_diffusion, read_diffusion
from paradec.io.hf import load_hf
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.transformer import Transformer
from paradec.ops.mask import Block, Causal, Full
from paradec.testing import tiny_transformer


def load(folder: Path, **options: Any) -> tuple[BlockDiffusion, Any]:
    model, weights = load_hf(folder, **options)
    assert isinstance(model, BlockDiffusion)
    return model, jax.tree.map(jnp.asarray, weights)


def logits(model: Any, weights: Any, **facts: Any) -> np.ndarray:
    token = np.random.default_rng(1).integers(V, size=(2, 40))
    return np.asarray(model.forward(weights, jnp.asarray(token, jnp.int32), **facts).logits)


def without(tensors: Tensors, *names: str) -> Tensors:
    return {n: x for n, x in tensors.items() if n not in names}


# Weights.


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_are_those_of_the_plain_model(family: str, tmp_path: Path) -> None:
    """An independent forward: the same numbers as a Llama, Qwen2 or Qwen3, seen with the declared mask."""
    model, weights = load(write(tmp_path / "diffusion", family))
    base, plain = load_hf(write_plain(tmp_path / "plain", family))
    plain = jax.tree.map(jnp.asarray, plain)
    assert isinstance(base, Transformer) and model.base == base
    mask = Block(model.block) if model.block else Full()
    np.testing.assert_allclose(logits(model, weights), logits(base, plain, mask=mask), atol=1e-5)
    np.testing.assert_allclose(logits(model, weights, mask=Full()), logits(base, plain, mask=Full()), atol=1e-5)
    assert np.abs(logits(model, weights) - logits(base, plain)).max() > 0.1, "the causal model would pass too"


def test_llada_8b_has_its_published_size() -> None:
    """The index file of LLaDA-8B-Instruct says 16031162368 bytes, in bfloat16, and lists 32 * 9 + 3 tensors."""
    sizes = {"d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288}
    vocabulary = {"vocab_size": 126464, "embedding_size": 126464, "mask_token_id": 126336}
    _, model = read_diffusion(LLADA | sizes | vocabulary | {"model_type": "llada"})
    specs = jax.tree.leaves(model.specs(), is_leaf=lambda s: hasattr(s, "init"))
    assert 2 * sum(math.prod(s.shape) for s in specs) == 16031162368
    assert sum(32 if entry.stacked else 1 for entry in hf.LLADA) == 291


def test_lladas_two_kinds_of_ff_out(tmp_path: Path) -> None:
    """The head and the down projections bear one name; here they have one shape too, so that only names can help."""
    square = ("ff_out.weight", "ff_proj.weight", "up_proj.weight", "wte.weight")
    kept = published("llada")
    kept |= random_weights({n: (W, W) for n in kept if n.endswith(square)})
    sizes = {"mlp_hidden_size": W, "vocab_size": W, "embedding_size": W}
    model, weights = load(write(tmp_path / "a", "llada", lambda _: kept, **sizes))
    head, block = TOP + "ff_out.weight", TOP + "blocks.1."
    down = block + "ff_out.weight"
    np.testing.assert_array_equal(weights.head, kept[head])
    np.testing.assert_array_equal(weights.blocks.down[1], kept[down].T)
    np.testing.assert_array_equal(weights.blocks.gate_up[1, 0], kept[block + "ff_proj.weight"].T)
    np.testing.assert_array_equal(weights.blocks.gate_up[1, 1], kept[block + "up_proj.weight"].T)
    swapped = kept | {head: kept[down], down: kept[head]}
    _, wrong = load(write(tmp_path / "b", "llada", lambda _: swapped, **sizes))
    assert np.abs(logits(model, wrong) - logits(model, weights)).max() > 0.1
    with pytest.raises(WeightsError, match=r"lacks tensor 'model\.transformer\.ff_out\.weight'"):
        load(write(tmp_path / "c", "llada", lambda _: without(kept, head), **sizes))


def test_a_swapped_head_of_its_own_shape_is_refused(tmp_path: Path) -> None:
    head, down = "model.transformer.ff_out.weight", "model.transformer.blocks.0.ff_out.weight"
    with pytest.raises(WeightsError, match="ff_out.*has shape"):
        load(write(tmp_path, "llada", lambda t: t | {head: t[down], down: t[head]}))


def test_names_of_another_family_are_refused(tmp_path: Path) -> None:
    extra = "model.transformer.blocks.0.q_proj.bias"
    with pytest.raises(WeightsError, match=extra):
        load(write(tmp_path / "a", "llada", lambda t: t | {extra: np.zeros(W, np.float32)}))
    with pytest.raises(WeightsError, match="k_proj.bias"):
        load(write(tmp_path / "b", "Dream", lambda t: {n: x for n, x in t.items() if "bias" not in n}))


# The head.


@pytest.mark.parametrize("family", ["Dream", "sdar", "a2d-qwen3"])
def test_tied_heads(family: str, tmp_path: Path) -> None:
    """Tied where the config says so, untied where it says so; where it is silent, the files decide."""
    head = "lm_head.weight"
    bare, full = (lambda t: without(t, head)), (lambda t: t | {head: t["model.embed_tokens.weight"] + 1})
    tied, weights = load(write(tmp_path / "tied", family, bare, tie_word_embeddings=True))
    assert tied.base.tied and weights.head is None
    untied, weights = load(write(tmp_path / "untied", family, full, tie_word_embeddings=False))
    assert not untied.base.tied
    np.testing.assert_array_equal(weights.head, weights.embed + 1)
    with pytest.raises(WeightsError, match="lacks tensor 'lm_head.weight'"):
        load(write(tmp_path / "missing", family, bare, tie_word_embeddings=False))
    with pytest.raises(WeightsError, match="tie_word_embeddings"):
        load(write(tmp_path / "other", family, full, tie_word_embeddings=True))
    assert load(write(tmp_path / "silent", family, bare, tie_word_embeddings=...))[0].base.tied
    assert not load(write(tmp_path / "stored", family, full, tie_word_embeddings=...))[0].base.tied


def test_a_tied_llada(tmp_path: Path) -> None:
    head, embed = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    model, weights = load(write(tmp_path / "a", "llada", lambda t: without(t, head), weight_tying=True))
    assert model.base.tied and weights.head is None
    load(write(tmp_path / "b", "llada", lambda t: t | {head: t[embed].copy()}, weight_tying=True))
    with pytest.raises(WeightsError, match="weight_tying"):
        load(write(tmp_path / "c", "llada", weight_tying=True))
    assert load(write(tmp_path / "d", "llada", lambda t: without(t, head), weight_tying=...))[0].base.tied


@pytest.mark.parametrize(
    "foreign",
    [
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
        {"head_dim": 4, "num_key_value_heads": 1, "max_position_embeddings": 16},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 90.0}},
        {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 8},
        {"hidden_act": "gelu_pytorch_tanh", "attention_bias": True, "mlp_bias": True},
        {"layer_types": ["sliding_attention"], "sliding_window": 4},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_llada_reads_its_own_keys_alone(foreign: dict[str, Any]) -> None:
    """Also beside those of a Llama, which its published code does not read."""
    config = LLADA | {"model_type": "llada"}
    assert read_diffusion(config | foreign) == read_diffusion(config)


def test_a_table_longer_than_the_vocabulary(tmp_path: Path) -> None:
    model, weights = load(write(tmp_path / "a", "llada", vocab_size=V - 2))
    assert model.vocab_size == V and weights.embed.shape[0] == weights.head.shape[0] == V
    assert load(write(tmp_path / "b", "llada", embedding_size=None))[0].vocab_size == V
    with pytest.raises(WeightsError, match="embedding_size = 47"):
        load(write(tmp_path / "c", "llada", embedding_size=V - 1))


# What the config says, and what it leaves unsaid.


@pytest.mark.parametrize(
    ("family", "block", "grid", "shift"),
    [
        ("llada", 0, "text", False), ("Dream", 0, "text", True), ("Fast_dLLM_Qwen", 32, "text", True),
        ("sdar", 4, "text", False), ("a2d-qwen2", 8, "prompt", False), ("a2d-qwen3", 32, "prompt", False),
    ],
)  # fmt: skip
def test_attention_and_alignment(family: str, block: int, grid: str, shift: bool, tmp_path: Path) -> None:
    model, _ = load(write(tmp_path, family))
    assert (model.block, model.grid, model.shift, model.mask_id) == (block, grid, shift, MASK)
    assert model.base.window == 0 and model.max_length == 128


def test_every_family_is_tried() -> None:
    """The others have files of their own: diffusion transformers, mixtures of experts, and text read causally."""
    others = {name for name, family in FAMILIES.items() if family.base == "dit" or family.experts or family.causal}
    plain = {*FAMILIES} - others
    assert {*CONFIGS} == plain


@pytest.mark.parametrize(
    ("family", "mask_id"), [("llada", 126336), ("Dream", 151666), ("Fast_dLLM_Qwen", 151665), ("sdar", 151669)]
)
def test_mask_tokens_that_the_config_leaves_out(family: str, mask_id: int) -> None:
    sizes = {"embedding_size": 126464, "vocab_size": 126464} if family == "llada" else {"vocab_size": 151936}
    for missing in (..., None):
        config = CONFIGS[family] | {"model_type": family} | sizes | {"mask_token_id": missing}
        _, model = read_diffusion({k: v for k, v in config.items() if v is not ...})
        assert model.mask_id == mask_id


def test_the_tokenizers_mask_token(tmp_path: Path) -> None:
    folder = write(tmp_path, "a2d-qwen3", mask_token_id=...)
    sentence = r"The mask id is missing from .*config\.json.*pass mask_id=\."
    with pytest.raises(WeightsError, match=sentence):
        load(folder)
    add_tokenizer(folder)
    with pytest.raises(WeightsError, match=sentence):
        load(folder)
    assert load(folder, mask_id=0)[0].mask_id == 0
    for text in ("<|mask|>", "|<MASK>|"):
        add_tokenizer(folder, text)
        assert load(folder)[0].mask_id == V - 5


def test_a_mask_token_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mask token 48 lies outside the vocabulary of 48"):
        load(write(tmp_path / "a", "sdar", mask_token_id=V))
    with pytest.raises(WeightsError, match="mask_token_id = '<mask>'"):
        load(write(tmp_path / "b", "sdar", mask_token_id="<mask>"))


def test_blocks_that_the_config_leaves_out(tmp_path: Path) -> None:
    """mdlm and bd3lm have one config: the caller must know."""
    folder = write(tmp_path / "a2d", "a2d-qwen3", block_size=...)
    with pytest.raises(WeightsError, match=r"no block_size.*pass block= \(0 .*mdlm.*32 .*bd3lm"):
        load(folder)
    assert load(folder, block=0)[0].block == 0
    assert load(folder, block=32)[0].block == 32
    with pytest.raises(WeightsError, match="no block_size.*pass block="):
        load(write(tmp_path / "sdar", "sdar", block_size=...))
    assert load(write(tmp_path / "fast", "Fast_dLLM_Qwen", bd_size=...))[0].block == 32, "the default of the class"
    assert load(write(tmp_path / "fast16", "Fast_dLLM_Qwen", bd_size=16))[0].block == 16


def test_both_spellings_of_dream(tmp_path: Path) -> None:
    assert load(write(tmp_path, "Dream", model_type="dream"))[0].shift


# What is refused.


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("sdar", {"use_sliding_window": True, "max_window_layers": 0}, "sliding windows"),
        ("Dream", {"use_mrope": True}, "use_mrope"),
        ("Dream", {"block_size": 32}, "full attention only"),
        ("Fast_dLLM_Qwen", {"bd_size": 0}, "bd_size"),
        ("llada", {"block_type": "sequential"}, "block_type = 'sequential'.*'llama'"),
        ("llada", {"activation_type": "swiglu"}, "activation_type"),
        ("llada", {"layer_norm_type": "default"}, "layer_norm_type"),
        ("llada", {"rope": False}, "rope = False"),
        ("llada", {"include_qkv_bias": True}, "include_qkv_bias"),
        ("llada", {"alibi": True}, "alibi"),
        ("llada", {"d_model": ...}, "d_model = None"),
        ("llada", {"rope_theta": ...}, "rope_theta = None"),
        ("llada", {"n_kv_heads": 3}, "num_key_value_heads"),
        ("llada", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_settings_that_do_not_fit(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((WeightsError, InputError), match=words):
        load(write(tmp_path, family, **changes))


@pytest.mark.parametrize("sign", [{"num_experts": 64}, {"architectures": ["SDARMoeForCausalLM"]}])
def test_a_mixture_of_experts_under_a_dense_type(sign: dict[str, Any], tmp_path: Path) -> None:
    """LLaDA-MoE is published so and known; a dense model read out of another's experts would lack tensors."""
    with pytest.raises(WeightsError, match="a sdar model, a mixture of experts, which is not supported yet.*sdar_moe"):
        load(write(tmp_path, "sdar", **sign))


def test_an_unknown_family(tmp_path: Path) -> None:
    write_config(tmp_path, {"model_type": "sdra"})
    with pytest.raises(UnknownName, match="no model type named 'sdra'. Did you mean 'sdar'.*a2d-qwen3.*llada, .*llama"):
        load_hf(tmp_path)
    assert not is_diffusion({"model_type": "qwen3"}) and not is_diffusion([]) and not is_diffusion({"model_type": [1]})


def test_options_of_diffusion_models_do_not_fit_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="belong to diffusion checkpoints.*llama"):
        load_hf(write_plain(tmp_path, "llada"), mask_id=1)


@pytest.mark.parametrize("family", ["llada", "sdar", "a2d-qwen3"])
def test_any_value_in_config(family: str, tmp_path: Path) -> None:
    check_odd_config(write(tmp_path, family), "num_experts", "quantization_config")


def test_paradec_load(tmp_path: Path) -> None:
    add_tokenizer(write(tmp_path, "a2d-qwen3", mask_token_id=..., block_size=...), "<|mask|>")
    lm = paradec.load(str(tmp_path), progress=False, block=8)
    assert isinstance(lm.model, BlockDiffusion)
    assert (lm.model.mask_id, lm.model.block, lm.model.grid) == (V - 5, 8, "prompt")
    with pytest.raises(WeightsError, match="pass block="):
        paradec.load(str(tmp_path), progress=False)


# Attention and alignment of what was loaded.


@dataclasses.dataclass(frozen=True)
class Masked(BlockDiffusion):
    """A model that runs with another mask than it declares."""

    used: Any = Causal()

    def forward(self, params: Any, token: Any, **facts: Any) -> Any:
        return self.base.forward(params, token, mask=self.used)


def masked(model: BlockDiffusion, used: Any, **changes: Any) -> Masked:
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(BlockDiffusion)}
    return Masked(**(fields | changes), used=used)


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_reaches_as_declared(family: str, tmp_path: Path) -> None:
    model, weights = load(
        write(tmp_path, family), **({"block": 8} if family in ("Fast_dLLM_Qwen", "a2d-qwen3") else {})
    )
    check_reach(model, weights)
    reach = reach_of(model, weights, 11)
    place = np.arange(11) // (model.block or 11)
    np.testing.assert_array_equal(reach, place[None] <= place[:, None])


def test_attention_of_another_kind_is_reported(tmp_path: Path) -> None:
    model, weights = load(write(tmp_path, "sdar"))
    full = dataclasses.replace(model, block=0)
    with pytest.raises(WeightsError, match="The model is causal, and its config declares full attention"):
        check_reach(masked(full, Causal()), weights)
    with pytest.raises(WeightsError, match="The model is causal, and its config declares attention in blocks of 4"):
        check_reach(masked(model, Causal()), weights)
    with pytest.raises(WeightsError, match="at position 0 change with the token at position 4"):
        check_reach(masked(model, Full()), weights)
    with pytest.raises(WeightsError, match="full attention, .* at position 0 do not change .* position 4"):
        check_reach(masked(full, Block(4)), weights)
    with pytest.raises(WeightsError, match="at position 0 do not change with the token at position 2"):
        check_reach(masked(model, Block(2)), weights)
    check_reach(masked(model, Causal(), block=1), weights)


def counting(tensors: Tensors, step: int) -> Tensors:
    """Layers that add nothing under a head that answers each token with the one `step` further: it knows counting."""
    silent = {n: np.zeros_like(x) for n, x in tensors.items() if n.endswith(("o_proj.weight", "down_proj.weight"))}
    embed = 4 * tensors["model.embed_tokens.weight"]
    return tensors | silent | {
        "model.norm.weight": np.ones(D, np.float32), "model.embed_tokens.weight": embed,
        "lm_head.weight": np.roll(embed, step, axis=0).copy(),
    }  # fmt: skip


@pytest.mark.parametrize(("family", "step", "shift"), [("sdar", 0, False), ("Dream", 1, True)])
def test_alignment(family: str, step: int, shift: bool, tmp_path: Path) -> None:
    """On a text that counts, the rows of one model fit their own token and those of the other the next."""
    model, weights = load(write(tmp_path, family, lambda t: counting(t, step)))
    text = jnp.asarray((np.arange(20)[None] + np.array([[3], [17]])) % V, jnp.int32)
    found = alignment_of(model, weights, text)
    assert found.shift == model.shift == shift
    assert max(found) > -0.1 and min(found) < -1
    check_shift(model, weights, text)
    forgotten = dataclasses.replace(model, shift=not shift)
    with pytest.raises(WeightsError, match="is declared not shifted.*later" if shift else "is declared shifted.*own"):
        check_shift(forgotten, weights, text)
    with pytest.raises(InputError, match="at least two"):
        alignment_of(model, weights, text[:, :1])


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ({"qk_norm": True}, {}), ({"qk_norm": True}, {"block": 4}), ({"qkv_bias": True}, {"shift": True}),
        ({"qk_norm": True}, {"block": 32, "grid": "prompt"}), ({"qkv_bias": True}, {"shift": True, "block": 32}),
        ({"qkv_bias": True}, {"block": 8, "grid": "prompt"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_written_model_is_read_back(tmp_path, base, options):
    model, weights = tiny_transformer(query_scale=None, **base)
    wanted = BlockDiffusion(model, mask_id=5, **options)
    hf.save_hf(tmp_path, wanted, weights)
    found, again = hf.load_hf(tmp_path)
    assert dataclasses.replace(found, grid=wanted.grid if not wanted.block else found.grid) == wanted
    jax.tree.map(np.testing.assert_array_equal, again, weights)


def test_what_no_family_is_cannot_be_written(tmp_path):
    model, weights = tiny_transformer(query_scale=None)
    with pytest.raises(InputError, match="No diffusion family"):
        hf.save_hf(tmp_path, BlockDiffusion(model, mask_id=5, block=4), weights)
    assert not (tmp_path / "config.json").exists()
