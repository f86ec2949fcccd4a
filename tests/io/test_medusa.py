"""Medusa heads as files: ours, the published layouts, damaged ones, and heads of another base."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import paradec
from paradec.errors import InputError, ResourceError, WeightsError
from paradec.io.medusa import Trained, fingerprint, load_medusa, save_medusa
from paradec.models.experts import Experts
from paradec.models.heads import HeadWeights, MedusaHeads
from paradec.testing import tiny_recurrence, tiny_table, tiny_transformer
from tests.fixtures import write_tiny_model

D, V = 32, 259  # of the tiny model


def random_heads(layers=1, vocab=0, count=3, seed=0, **more):
    rng, heads = np.random.default_rng(seed), MedusaHeads(count, D, layers, vocab)
    draw = lambda *shape: rng.normal(scale=0.3, size=shape).astype(np.float32)
    unembed = draw(count, vocab, D) if vocab else None
    weights = HeadWeights(linear=draw(count, layers, D, D), bias=draw(count, layers, D), unembed=unembed)
    return Trained(heads, weights, **more)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("vocab", [0, V])
def test_a_file_read_back_is_the_same(tmp_path, layers, vocab):
    ids = np.random.default_rng(1).permutation(V)[:40].astype(np.int32)
    facts = {"base": "tiny", "metrics": {"loss": 1.5}}
    saved = random_heads(layers, vocab, short_list=ids, tree=((0,), (0, 0), (1,)), facts=facts)
    save_medusa(tmp_path / "heads.safetensors", saved)
    read = load_medusa(tmp_path / "heads.safetensors")
    assert (read.heads, read.tree) == (saved.heads, saved.tree)
    assert read.facts == facts | {"format": "paradec medusa 1"}
    for name in ("linear", "bias", "unembed"):
        np.testing.assert_array_equal(getattr(read.weights, name), getattr(saved.weights, name))
    np.testing.assert_array_equal(read.short_list, ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heads.json", "heads.safetensors"]


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize("vocab", [0, V])
def test_published_layouts(tmp_path, prefix, vocab):
    """torch stores a linear layer as (out, in); heads with their own vocabulary head keep it as layer 1."""
    rng = np.random.default_rng(3)
    tensors = {}
    for k in range(2):
        tensors[f"{prefix}{k}.0.linear.weight"] = rng.normal(size=(D, D)).astype(np.float32)
        tensors[f"{prefix}{k}.0.linear.bias"] = rng.normal(size=D).astype(np.float32)
        if vocab:
            tensors[f"{prefix}{k}.1.weight"] = rng.normal(size=(V, D)).astype(np.float32)
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    read = load_medusa(tmp_path / "medusa_lm_head.safetensors")
    assert read.heads == MedusaHeads(2, D, 1, vocab) and read.tree is None and not read.facts
    state, table = (jnp.asarray(rng.normal(size=(n, D)), jnp.float32) for n in (1, V))
    got = read.heads.logits(jax.tree.map(jnp.asarray, read.weights), state, None if vocab else table)
    for k in range(2):
        x = tensors[f"{prefix}{k}.0.linear.weight"] @ np.asarray(state[0]) + tensors[f"{prefix}{k}.0.linear.bias"]
        z = np.asarray(state[0]) + x / (1 + np.exp(-x))
        np.testing.assert_allclose(
            got[k, 0], (tensors[f"{prefix}{k}.1.weight"] if vocab else table) @ z, rtol=2e-5, atol=1e-4
        )


def test_what_we_write_has_the_published_names(tmp_path):
    save_medusa(tmp_path / "h.safetensors", random_heads(2, V, count=2))
    want = {f"{k}.{r}.linear.{x}" for k in (0, 1) for r in (0, 1) for x in ("weight", "bias")}
    assert set(load_file(tmp_path / "h.safetensors")) == want | {"0.2.weight", "1.2.weight"}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_heads_decode_exactly(lm, tmp_path, temperature):
    """Untrained heads still guess something: the text is that of ar, and a file serves like heads in memory."""
    ids = np.arange(0, V, 2)
    trained = random_heads(short_list=ids, facts={"base_digest": fingerprint(lm.model, lm.params)})
    save_medusa(tmp_path / "h.safetensors", trained)
    ask = dict(max_new_tokens=24, temperature=temperature, batch_size=2)
    prompts = ["abc abc abc", "Hello, world", "x"]
    plain = [r.token_ids for r in lm.generate(prompts, **ask)]
    for heads in (trained, str(tmp_path / "h.safetensors")):
        rows = lm.generate(prompts, method="medusa", method_args={"heads": heads, "num_draft": 12}, **ask)
        assert [r.token_ids for r in rows] == plain


def test_heads_of_another_base_are_refused(lm, tmp_path):
    other = random_heads(facts={"base": "somebody", "base_digest": "0" * 16})
    wide = Trained(MedusaHeads(1, 64), HeadWeights(np.zeros((1, 1, 64, 64)), np.zeros((1, 1, 64)), None))
    for heads, hint in (
        (other, "trained for somebody"),
        (wide, "width 64"),
        (random_heads(vocab=9), "9 tokens"),
        (random_heads(short_list=np.array([3, V])), "short list"),
        (None, "heads=FILE"),
    ):
        with pytest.raises(InputError, match=hint):
            lm.generate("x", method="medusa", method_args={"heads": heads})


@pytest.mark.parametrize("tree", [[[0, 0]], [[0], [0]], "chain", [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]], [], [[]]])
def test_a_tree_that_cannot_be(tmp_path, tree):
    save_medusa(tmp_path / "h.safetensors", random_heads())
    (tmp_path / "h.json").write_text(json.dumps({"tree": tree}))
    with pytest.raises(WeightsError, match="tree"):
        load_medusa(tmp_path / "h.safetensors")


def change(**tensors):
    return lambda held: {k: v for k, v in (held | tensors).items() if v is not None}


@pytest.mark.parametrize(
    ("edit", "hint"),
    [
        (change(**{"1.0.linear.bias": None}), "lacks tensor '1.0.linear.bias'"),
        (change(**{"0.0.linear.weight": None}), "0.0.linear.weight"),
        (change(**{"2.0.linear.weight": np.zeros((D, D + 1), np.float32)}), "shape"),
        (change(extra=np.zeros(3, np.float32)), "has no place"),
        (change(**{"0.0.linear.bias": np.full(D, np.nan, np.float32)}), "NaN"),
        (change(short_list=np.array([4, 4], np.int32)), "short list"),
        (change(short_list=np.array([[4]], np.int32)), "short list"),
        (lambda held: {"w": np.zeros(3, np.float32)}, "no Medusa heads"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, edit, hint):
    path = tmp_path / "h.safetensors"
    save_medusa(path, random_heads())
    save_file(edit(load_file(path)), path)
    with pytest.raises(WeightsError, match=hint):
        load_medusa(path)


def test_other_failures(tmp_path):
    path = tmp_path / "h.safetensors"
    for name, hint in (("absent.safetensors", "missing"), ("heads.pt", "pickle")):
        with pytest.raises(WeightsError, match=hint):
            load_medusa(tmp_path / name)
    save_medusa(path, random_heads())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_medusa(path)
    for text in ("{", "[1]"):
        save_medusa(path, random_heads())
        (tmp_path / "h.json").write_text(text)
        with pytest.raises(WeightsError, match="JSON"):
            load_medusa(path)
    with pytest.raises(ResourceError, match="Cannot write"):
        save_medusa(tmp_path / "nowhere" / "h.safetensors", random_heads())


def test_dtypes(tmp_path):
    save_medusa(tmp_path / "h.safetensors", random_heads())
    half = load_medusa(tmp_path / "h.safetensors", "bfloat16")
    assert half.heads.dtype == "bfloat16" and half.weights.linear.dtype.name == "bfloat16"
    save_medusa(tmp_path / "b.safetensors", half)
    again = load_medusa(tmp_path / "b.safetensors")
    assert again.heads == dataclasses.replace(half.heads, dtype="float32")
    np.testing.assert_array_equal(again.weights.linear, half.weights.linear.astype(np.float32))


def test_every_kind_of_weights_has_a_fingerprint():
    """Also those without a plain MLP: recurrences, tables, and mixtures in which experts are all there is."""
    mixture = tiny_transformer(experts=Experts(count=4, width=16, top_k=2))
    kinds = [tiny_transformer(), mixture, tiny_recurrence(), tiny_table()]
    found = [fingerprint(*kind) for kind in kinds]
    assert [fingerprint(*kind) for kind in kinds] == found
    assert len({*found}) == 4 and all(len(digest) == 16 for digest in found)
