"""Folders of published diffusion models with experts: names, arithmetic, what the config says, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_values import check_odd_values
from safetensors.numpy import load_file
from tiny_moe import CONFIGS, D, R, Slow, Tensors, V, X, written

from paradec.errors import InputError, WeightsError
from paradec.io import hf
from paradec.io.checkpoint_laws import check_shift
from paradec.io.diffusion_config import FAMILIES, read_diffusion, write_diffusion
from paradec.io.hf_config import write_config
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.experts import Experts
from paradec.models.transformer import Transformer
from paradec.ops.mask import Block, Full
from paradec.ops.rope import Rope
from paradec.testing import model_laws

TOKEN = np.random.default_rng(1).integers(V, size=12)
AT, ZERO = "model.layers.{}.weight", np.zeros((64, D), np.float32)
BLOCKS = {"llada_moe": 0, "llada2_moe": 4, "sdar_moe": 4}


def load(folder: Path, **options: Any) -> tuple[BlockDiffusion, Any]:
    model, weights = hf.load_hf(folder, **options)
    assert isinstance(model, BlockDiffusion)
    return model, jax.tree.map(jnp.asarray, weights)


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Any]:
    """A family's folder, with blocks of 4 where it has any, and what was loaded from it."""
    folder = written(tmp_path_factory.mktemp("moe"), request.param)
    block = BLOCKS[request.param]
    return request.param, folder, *load(folder, **({"block": block} if block else {}))


def logits(model: Any, weights: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.forward)(weights, jnp.asarray(TOKEN[None], jnp.int32)).logits)[0]


def test_every_family_is_tried() -> None:
    assert {*CONFIGS} == {name for name, family in FAMILIES.items() if family.experts}


def test_the_numbers_are_those_of_a_slow_model(loaded: tuple[str, Path, Any, Any]) -> None:
    """Every name, the fused projection, the half that rotates, the router and the blocks at once."""
    family, folder, model, weights = loaded
    slow = Slow(family, load_file(folder / "model.safetensors"))
    np.testing.assert_allclose(logits(model, weights), slow.logits(TOKEN, BLOCKS[family]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llada_moe", {"moe_layer_freq": [0, 0, 1], "model_type": "llada"}),
        ("sdar_moe", {"mlp_only_layers": [0], "norm_topk_prob": False, "num_experts": ..., "num_local_experts": X}),
        ("llada2_moe", {"first_k_dense_replace": 0, "partial_rotary_factor": 1.0}),
    ],
)
def test_layers_before_the_experts(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """As many as the config says, other than usual; LLaDA-MoE bears the dense LLaDA's model type on the hub."""
    model, weights = load(written(tmp_path, family, **changes), **({"block": 4} if BLOCKS[family] else {}))
    slow = Slow(family, load_file(tmp_path / "model.safetensors"), **changes)
    np.testing.assert_allclose(logits(model, weights), slow.logits(TOKEN, BLOCKS[family]), rtol=1e-5, atol=1e-5)


def test_attention_reaches_as_declared(loaded: tuple[str, Path, Any, Any]) -> None:
    """Gradients fill the blocks and stay inside: rows that go to the same experts tell each other nothing."""
    family, _, model, weights = loaded
    place = np.arange(10) // (BLOCKS[family] or 10)
    declared = (place[None] <= place[:, None])[None]
    mask = Block(model.block) if model.block else Full()
    slope = model_laws.slopes(model.base, weights, {"mask": mask}, jnp.asarray(declared))
    np.testing.assert_array_equal(slope > 0, declared)


def test_rows_are_not_shifted(tmp_path: Path) -> None:
    """Layers that add nothing, under a head that answers each token with itself."""

    def silent(tensors: Tensors) -> Tensors:
        table = 4 * tensors["model.word_embeddings.weight"]
        ends = ("dense.weight", "down_proj.weight")
        quiet = {name: np.zeros_like(x) for name, x in tensors.items() if name.endswith(ends)}
        return tensors | quiet | {
            "model.norm.weight": np.ones(D, np.float32), "lm_head.weight": table.copy(),
            "model.word_embeddings.weight": table,
        }  # fmt: skip

    model, weights = load(written(tmp_path, "llada2_moe", silent))
    text = jnp.asarray((np.arange(20)[None] + np.array([[3], [17]])) % V, jnp.int32)
    check_shift(model, weights, text)
    with pytest.raises(WeightsError, match="is declared shifted.*own"):
        check_shift(dataclasses.replace(model, shift=True), weights, text)


@pytest.mark.parametrize(
    ("family", "block", "mask_id"), [("llada_moe", 0, 156895), ("llada2_moe", 32, 156895), ("sdar_moe", 4, 151669)]
)
def test_what_the_config_leaves_out(family: str, block: int, mask_id: int) -> None:
    for name in {family, family.replace("llada_moe", "lladamoe")}:
        config = CONFIGS[family] | {"model_type": name, "vocab_size": 157184}
        del config["mask_token_id"]
        model = read_diffusion(config)[1]
        assert (model.block, model.grid, model.shift, model.mask_id) == (block, "text", False, mask_id)


def test_llada2_mini_has_its_published_size() -> None:
    """LLaDA2.0-mini has 16 billion weights (its card's number) with the sizes of its config.json."""
    sizes = {
        "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 128, "intermediate_size": 5120, "moe_intermediate_size": 512, "num_experts": 256,
        "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8, "topk_group": 4, "vocab_size": 157184,
        "rope_theta": 600000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "mask_token_id": 156895,
    }  # fmt: skip
    model = read_diffusion(CONFIGS["llada2_moe"] | sizes | {"model_type": "llada2_moe"})[1]
    specs = jax.tree.leaves(model.specs(), is_leaf=lambda s: hasattr(s, "init"))
    assert round(sum(math.prod(s.shape) for s in specs) / 1e9, 1) == 16.3
    experts = Experts(256, 512, 8, "sigmoid", True, 2.5, True, 8, 4, shared=512, leading=1)
    assert model.base.experts == experts and model.base.rope.fraction == 0.5


def test_routers_stay_float32_in_a_bfloat16_model(tmp_path: Path) -> None:
    """A bias that bfloat16 cannot tell from its neighbour decides."""
    bias = np.float32([1, 1 + 2**-10, 1 + 2**-11, 0, 0, 0, 0, 0])

    def level(tensors: Tensors) -> Tensors:
        """All experts alike but for their bias."""
        routers = {name: 0 * x for name, x in tensors.items() if name.endswith("mlp.gate.weight")}
        return tensors | routers | {name: bias for name in tensors if name.endswith("expert_bias")}

    folder = written(tmp_path, "llada2_moe", level, num_experts_per_tok=1, n_group=1, topk_group=1)
    model, weights = load(folder, dtype="bfloat16")
    w = jax.tree.map(lambda x: x[0], weights.blocks.experts)
    assert (w.router.dtype, w.bias.dtype, w.down.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    chosen, weight = model.base.experts.route(w, jnp.ones((1, D), jnp.bfloat16))
    assert chosen.tolist() == [[1]] and weight.dtype == jnp.float32


# Written and read back.


@pytest.mark.parametrize(
    "change", [{}, {"leading": 0}, {"bias": False}, {"shared": 0}, {"groups": 1, "top_groups": 1}], ids=str
)
def test_llada2_is_read_back(change: dict[str, Any], tmp_path: Path) -> None:
    given = dict(count=8, width=12, top_k=2, score="sigmoid", normalise=True, scale=2.5, bias=True)
    experts = Experts(**given | dict(groups=4, top_groups=2, shared=24, leading=1) | change)
    again(tmp_path, experts, block=32, fraction=0.5)


@pytest.mark.parametrize(
    ("experts", "block"),
    [
        (Experts(6, 12, 2), 0), (Experts(6, 12, 2, leading=1), 0), (Experts(6, 12, 2), 4),
        (Experts(6, 12, 2, normalise=True, leading=1), 4),
    ],
    ids=["llada_moe", "llada_moe, leading", "sdar_moe", "sdar_moe, leading"],
)  # fmt: skip
def test_softmax_models_are_read_back(experts: Experts, block: int, tmp_path: Path) -> None:
    again(tmp_path, experts, block=block)


def again(folder: Path, experts: Experts, block: int, fraction: float = 1.0) -> None:
    wanted = BlockDiffusion(small(experts, Rope(theta=6e5, fraction=fraction)), mask_id=5, block=block)
    rng = np.random.default_rng(0)
    draw = lambda spec: rng.standard_normal(spec.shape, np.float32)
    weights = jax.tree.map(draw, wanted.specs(), is_leaf=lambda s: hasattr(s, "init"))
    hf.save_hf(folder, wanted, weights)
    found, read = hf.load_hf(folder)
    assert found == wanted
    jax.tree.map(np.testing.assert_array_equal, read, weights)


def small(experts: Experts, rope: Rope = Rope()) -> Transformer:
    return Transformer(
        vocab_size=19, width=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=40, tied=False,
        qk_norm=True, experts=experts, rope=rope,
    )  # fmt: skip


def test_what_is_read_is_written_under_the_published_names(loaded: tuple[str, Path, Any, Any], tmp_path: Path) -> None:
    family, folder, model, weights = loaded
    hf.save_hf(tmp_path, model, weights)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    old, new = (load_file(where / "model.safetensors") for where in (folder, tmp_path))
    assert old.keys() == new.keys()
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_experts_of_no_family_cannot_be_written() -> None:
    odd = small(Experts(6, 12, 2, score="sigmoid", groups=3, top_groups=2))  # whose weights LLaDA2 would normalise
    with pytest.raises(InputError, match="No diffusion family.*LLaDA2's or SDAR-MoE's"):
        write_diffusion(BlockDiffusion(odd, mask_id=5, block=4))
    with pytest.raises(InputError, match="cannot be written as a qwen3 checkpoint"):
        write_config(odd)


# What is refused.


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llada_moe", {"num_experts_per_tok": 9}, r"a/config\.json describes experts .* 1 to 8 .*, not 9"),
        ("llada_moe", {"num_experts": 0}, "num_experts = 0"),
        ("llada_moe", {"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq.*first zeros"),
        ("llada_moe", {"moe_layer_freq": [0, 0, 0]}, "moe_layer_freq.*a list of 3"),
        ("llada_moe", {"moe_layer_freq": [0, 1, 1], "dense_intermediate_size": ...}, "dense_intermediate_size = None"),
        ("llada_moe", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias"),
        ("llada_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
        ("llada_moe", {"moe_router_score_function": "sigmoid"}, "moe_router_score_function.*'softmax'"),
        ("llada_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("llada_moe", {"qk_layernorm": ...}, "qk_layernorm = None.*True"),
        ("llada_moe", {"block_size": 32}, "full attention only"),
        ("llada_moe", {"mask_token_id": 9, "eos_token_id": 9}, "mask_token_id = 9.*no end of text.*mask_id="),
        ("llada_moe", {"expert_intermediate_size": ...}, "expert_intermediate_size = None"),
        ("llada2_moe", {"n_group": 3}, "8 experts do not divide into 3 groups"),
        ("llada2_moe", {"n_group": 8, "topk_group": 8}, "8 groups of 1"),
        ("llada2_moe", {"topk_group": 5}, "1 to 4 groups, not 5"),
        ("llada2_moe", {"topk_group": 1}, "1 to 2 of the 8 experts here, not 3"),
        ("llada2_moe", {"score_function": "softmax"}, "score_function = 'softmax'.*'sigmoid'"),
        ("llada2_moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("llada2_moe", {"first_k_dense_replace": 3}, "first_k_dense_replace = 3.*below num_hidden_layers = 3"),
        ("llada2_moe", {"partial_rotary_factor": 0.2}, "partial_rotary_factor = 0.2.*head_dim = 16"),
        ("llada2_moe", {"routed_scaling_factor": ...}, "routed_scaling_factor = None"),
        ("llada2_moe", {"use_qkv_bias": True}, "use_qkv_bias"),
        ("sdar_moe", {"norm_topk_prob": ...}, "norm_topk_prob = None.*true or false"),
        ("sdar_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("sdar_moe", {"mlp_only_layers": [1]}, "mlp_only_layers.*first layers"),
        ("sdar_moe", {"block_size": ...}, "no block_size.*pass block="),
        ("sdar_moe", {"rope_theta": ...}, "rope_theta = None"),
    ],
    ids=lambda x: str(x)[:30],
)  # fmt: skip
def test_settings_that_do_not_fit(family: str, changes: dict[str, Any], words: str) -> None:
    config = CONFIGS[family] | {"model_type": family} | changes
    with pytest.raises(WeightsError, match=words):
        read_diffusion({key: value for key, value in config.items() if value is not ...}, "a/config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without(t, "2.mlp.experts.5.up_proj"), "lacks tensor 'model.layers.2.mlp.experts.5.up_proj"),
        (lambda t: without(t, ".experts.7."), "lacks tensor 'model.layers.1.mlp.experts.7.* and 5 more"),
        (lambda t: without(t, "expert_bias"), "lacks tensor 'model.layers.1.mlp.gate.expert_bias' and 1 more"),
        (lambda t: t | {AT.format("0.mlp.gate"): ZERO[:X]}, "layers.0.mlp.gate.weight.*no place"),
        (lambda t: t | {AT.format("1.mlp.experts.8.up_proj"): ZERO[:R]}, "experts.8.*no place"),
        (lambda t: t | {AT.format("1.attention.query_key_value"): ZERO}, r"\(64, 32\).*\(128, 32\)"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words):
        load(written(tmp_path, "llada2_moe", change))


def without(tensors: Tensors, part: str) -> Tensors:
    return {name: x for name, x in tensors.items() if part not in name}


def test_an_absurd_count_of_experts_fails_at_once(tmp_path: Path) -> None:
    written(tmp_path, "sdar_moe")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": 2_000_000_000}))
    with pytest.raises(WeightsError, match="names 2000000000 experts and holds only"):
        load(tmp_path)


@pytest.mark.parametrize("family", CONFIGS)
def test_any_value_in_config(family: str) -> None:
    whole = CONFIGS[family] | {"model_type": family, "rope_parameters": None}
    check_odd_values(whole, read_diffusion, whole.keys() - {"model_type"})
