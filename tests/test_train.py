"""The programs of train/, as a person starts them, on data that takes seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import paradec
from configs import learned_filter as filter_configs
from configs import lm as lm_configs
from configs import masked as masked_configs
from configs import medusa as medusa_configs
from paradec.errors import InputError
from paradec.learn.loop import Run
from paradec.models import lora
from tests.fixtures import TEMPLATE, write_tiny_model

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step
ROOT = Path(__file__).resolve().parents[1]


def program(name, room="train"):
    spec = importlib.util.spec_from_file_location(f"{room}_{name}", ROOT / room / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("train") / "tiny"))


def small(config, out, steps=6, **changes):
    plan = dataclasses.replace(config.plan, steps=steps, warmup=1)
    devices = {} if isinstance(config, medusa_configs.Medusa) else {"devices": lm_configs.Devices(data=4, model=2)}
    return dataclasses.replace(config, plan=plan, batch=4, run=Run(out=out, save_every=3), **devices, **changes)


def test_a_new_model_from_text_can_be_loaded(tmp_path):
    """On eight devices, weights split over both axes."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    data = lm_configs.Data(kind="text", files=(text,), length=33)
    shape = lm_configs.Shape(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
    state = program("lm").main(small(lm_configs.tiny(), tmp_path / "out", data=data, shape=shape))
    facts = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert facts["alphabet"] == "".join(sorted(set(text.read_text())))
    assert facts["metrics"]["bits_per_character"] == pytest.approx(facts["metrics"]["loss"] / np.log(2))
    from paradec.io.hf import load_hf

    model, weights = load_hf(tmp_path / "out" / "model")
    np.testing.assert_array_equal(weights.blocks.qkv, jax.device_get(state.trainable.blocks.qkv))
    assert model.num_layers == 2 and model.vocab_size == len(facts["alphabet"])


@pytest.mark.slow
def test_adapters_are_trained_and_merged(tmp_path, tiny):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text((json.dumps({"messages": talk}) + "\n") * 30)
    data = lm_configs.Data(kind="chats", files=(chats,), tokens=tiny, length=64)
    config = small(lm_configs.tiny(), tmp_path / "out", steps=8, base=tiny, data=data, lora=2)
    state = program("lm").main(config)
    assert len(jax.tree.leaves(state.trainable)) == 8
    before, after = (paradec.load(str(path)).params for path in (tiny, write_beside(tmp_path / "out" / "model", tiny)))
    np.testing.assert_array_equal(before.embed, after.embed)
    assert np.abs(before.blocks.qkv - after.blocks.qkv).max() > 1e-4
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert TEMPLATE and lora.trained("blocks/qkv/a")


def write_beside(folder: Path, base: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((Path(base) / name).read_text())
    return folder


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lm_configs.Data(kind="text"), "Name the text to learn from"),
        (lm_configs.Data(kind="text", files=(Path("nowhere"),)), "There is no file nowhere"),
    ],
)
def test_data_that_is_not_there(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        program("lm").main(small(lm_configs.tiny(), tmp_path, data=data))


def test_a_tokenizer_larger_than_the_model(tmp_path, tiny):
    """The base has 259 tokens, the text 400."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(i) for i in range(0x4E00, 0x4E00 + 400)) * 9)
    data = lm_configs.Data(kind="text", files=(text,), length=33)
    with pytest.raises(InputError, match=r"has 400 tokens and .* only 259"):
        program("lm").main(small(lm_configs.tiny(), tmp_path / "out", base=tiny, data=data))


@pytest.mark.slow
def test_heads_from_a_command_to_a_comparison(tmp_path, tiny, capsys):
    text = medusa_configs.Text(instructions=12, new_tokens=12, batch=4, length=96, held_out=4)
    heads = medusa_configs.Heads(count=2, short_list=64, nodes=7, ranks=4)
    config = small(medusa_configs.smollm2(), tmp_path / "out", model=tiny, text=text, heads=heads)
    config = dataclasses.replace(config, batch=8)
    path = program("medusa").main(config)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["base"] == tiny and len(facts["accuracy"]) == 2 and len(facts["tree"]) <= 7
    lm = paradec.load(tiny)
    plain, drafted = (
        lm.generate(["abc", "Hello"], max_new_tokens=12, method=method, method_args=args)
        for method, args in (("ar", None), ("medusa", {"heads": str(path)}))
    )
    assert [r.token_ids for r in plain] == [r.token_ids for r in drafted]
    written = path.read_bytes()
    assert program("medusa").main(config).read_bytes() == written  # all stages are done already


def test_a_base_of_the_other_kind(tmp_path, tiny):
    with pytest.raises(InputError, match="continues no text"):
        program("lm").main(small(lm_configs.tiny(), tmp_path, base="lists"))
    config = dataclasses.replace(filter_configs.PRESETS["sums"][1], model=tiny, run=Run(out=tmp_path))
    with pytest.raises(InputError, match="quota fills a canvas, and a Transformer continues a text"):
        program("learned_filter").main(config)


@pytest.mark.slow
def test_a_diffusion_model_of_lists_is_trained_loaded_and_asked(tmp_path):
    """On eight devices; then the program that holds such models against theory."""
    data = masked_configs.Data(items=3)
    shape = lm_configs.Shape(layers=1, width=32, heads=4, kv_heads=4, head_dim=8, mlp=48)
    state = program("masked").main(small(masked_configs.lists(), tmp_path / "out", data=data, shape=shape))
    model = tmp_path / "out" / "model"
    assert json.loads((model / "training.json").read_text())["config"]["data"]["items"] == 3
    lm = paradec.load(str(model))
    np.testing.assert_array_equal(lm.params.blocks.qkv, jax.device_get(state.average.blocks.qkv))
    asked = lm.generate("sort - - C A B", method="threshold", max_new_tokens=3)[0]
    assert len(asked.token_ids) == 3 and asked.text.strip().split() == [
        lm.tokenizer.decode([i]).strip() for i in asked.token_ids
    ]
    lists = program("lists", "infer")
    assert lists.main(lists.Run(model, tmp_path / "l.json", items=3, rows=5, operations=("shuffle",))) == 0
    static, *trials = json.loads((tmp_path / "l.json").read_text())
    assert static["rule"] == "static" and static["calls"] == 3 and static["agreement"] == 1
    assert [round(t["theory"], 4) for t in trials] == [1.0, round(2 / 3, 4), round(2 / 9, 4)]
    assert [t["calls"] for t in trials] == [3, 2, 1]


def test_block_diffusion_and_ragged_lists_do_not_go_together(tmp_path):
    config = small(masked_configs.lists(), tmp_path / "out", block=4)
    with pytest.raises(InputError, match="Lists are ragged"):
        program("masked").main(config)
