"""The programs of train/, as a person starts them, on data that takes seconds."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import paradec
from configs import learned_filter as filter_configs
from configs import lm as lm_configs
from configs import masked as masked_configs
from configs import medusa as medusa_configs
from configs import tracking as tracking_configs
from paradec import params
from paradec.errors import InputError
from paradec.io.medusa import load_medusa
from paradec.learn.loop import Run
from paradec.models import lora
from paradec.record import traces
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


def newest(checkpoints):
    """The arrays of a run's newest checkpoint, by name."""
    step = max(int(folder.name) for folder in checkpoints.iterdir())
    return ocp.load_checkpointables(checkpoints / str(step), {"state": None})["state"]


def test_a_new_model_from_text_can_be_loaded(tmp_path):
    """On eight devices, weights split over both axes."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    data = lm_configs.Data(kind="text", files=(text,), length=33)
    shape = lm_configs.Shape(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
    config = small(lm_configs.tiny(), tmp_path / "out", data=data, shape=shape)
    state = program("lm").main(config)
    facts = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
    assert facts["alphabet"] == "".join(sorted(set(text.read_text())))
    assert facts["metrics"]["bits_per_character"] == pytest.approx(facts["metrics"]["loss"] / np.log(2))
    from paradec.io.hf import load_hf

    model, weights = load_hf(tmp_path / "out" / "model")
    np.testing.assert_array_equal(weights.blocks.qkv, jax.device_get(state.trainable.blocks.qkv))
    assert model.num_layers == 2 and model.vocab_size == len(facts["alphabet"])
    said = paradec.load(str(tmp_path / "out" / "model")).generate("the fox", raw=True, max_new_tokens=3)[0]
    assert len(said.text) == 3 and set(said.text) <= set(facts["alphabet"])
    text.write_text(text.read_text() + "It was the same name, and another text!")
    with pytest.raises(InputError, match=r"contents\.\S+text.txt: 1,800 bytes, sha256 \w+ → 1,839 bytes, sha256"):
        program("lm").main(config)
    assert json.loads((tmp_path / "out" / "model" / "training.json").read_text()) == facts


def test_a_recurrent_model_from_text_decodes_exactly(tmp_path):
    """A mixed stack on eight devices: trained, written, loaded, and drafted for without another token."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    data = lm_configs.Data(kind="text", files=(text,), length=33)
    shape = lm_configs.Shape(
        layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=48, pattern=("para_gru", "attention")
    )  # fmt: skip
    program("lm").main(small(lm_configs.tiny(), tmp_path / "out", data=data, shape=shape))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["solver_residual"] < 1e-3 for line in lines if "solver_residual" in line)
    assert any("solver_residual" in line for line in lines)
    lm = paradec.load(str(tmp_path / "out" / "model"))
    assert [type(mixer).__name__ for mixer in lm.model.pattern] == ["ParaRNN", "Attention"]
    ask = dict(raw=True, max_new_tokens=12)
    plain, drafted = (lm.generate("the fox", method=name, **ask)[0] for name in ("ar", "prompt_lookup"))
    assert plain.token_ids == drafted.token_ids and len(plain.token_ids) == 12


def test_state_tracking_is_asked_about_longer_words(tmp_path):
    base = tracking_configs.parity()
    words = tracking_configs.Words("parity", length=8)
    shape = dataclasses.replace(base.shape, width=8, head_dim=8)
    plan = dataclasses.replace(base.plan, steps=3, warmup=1)
    config = dataclasses.replace(base, words=words, shape=shape, plan=plan, batch=32, run=Run(out=tmp_path))
    found = program("tracking").main(config)
    written = json.loads((tmp_path / "tracking.json").read_text())
    assert written["longer"] == found["longer"] and written["longer"]["length"] == 32
    assert 0.3 < written["longer"]["final"] < 0.7, "three steps teach no parity"
    assert written["trained"]["length"] == 8 and written["parameters"] > 500


def test_a_base_or_a_tokenizer_of_the_same_name_that_became_another(tmp_path):
    base = Path(write_tiny_model(tmp_path / "base"))
    chats = chat_file(tmp_path / "c.jsonl", *[talk()] * 20)
    data = lm_configs.Data(kind="chats", files=(chats,), tokens=str(base), length=64)
    config = small(lm_configs.tiny(), tmp_path / "out", steps=2, base=str(base), data=data, lora=1)
    program("lm").main(config)
    write_tiny_model(base, seed=1)
    template = json.loads((base / "tokenizer_config.json").read_text())
    template["chat_template"] = "{# Another. #}" + template["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(template))
    with pytest.raises(InputError, match=r"(?s)frozen_weights: \w+ → \w+.*tokenizer_digest: \w+ → \w+"):
        program("lm").main(config)


def test_adapters_are_trained_and_merged(tmp_path, tiny):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text((json.dumps({"messages": talk}) + "\n") * 30)
    data = lm_configs.Data(kind="chats", files=(chats,), tokens=tiny, length=64)
    config = small(lm_configs.tiny(), tmp_path / "out", steps=8, base=tiny, data=data, lora=2)
    state = program("lm").main(config)
    assert len(jax.tree.leaves(state.trainable)) == 8
    old, new = paradec.load(tiny), paradec.load(str(tmp_path / "out" / "model"))
    before, after = old.params, new.params
    assert new.tokenizer.eos_ids == old.tokenizer.eos_ids and new.tokenizer.chat(talk) == old.tokenizer.chat(talk)
    np.testing.assert_array_equal(before.embed, after.embed)
    assert np.abs(before.blocks.qkv - after.blocks.qkv).max() > 1e-4
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert TEMPLATE and lora.trained("blocks/qkv/a")


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


def chat_file(path, *talks):
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def talk(question="Hi", answer="Hello!"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("talks", "length", "words"),
    [
        ([talk()], 64, "give at least 2"),
        ([talk("a" * 90)] * 3, 64, "No conversation reaches the assistant within 64 tokens"),
        ([talk(), talk("a" * 90)], 64, "give at least 2"),
        ([talk(), talk()], 600, "reads at most 512 tokens, and rows of 600"),
    ],
)
def test_conversations_that_teach_nothing_fail_before_the_first_step(tmp_path, tiny, talks, length, words, capsys):
    """A single file is a file, however it is named."""
    data = lm_configs.Data(kind="chats", files=str(chat_file(tmp_path / "c.jsonl", *talks)), tokens=tiny, length=length)
    with pytest.raises(InputError, match=words):
        program("lm").main(small(lm_configs.tiny(), tmp_path / "out", base=tiny, data=data))
    assert not list(tmp_path.glob("out/checkpoints/*"))
    assert len(talks) != 2 or length != 64 or "Line 2 of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lm", "masked"])
def test_text_too_short_to_be_split(tmp_path, name):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 4)
    configs = {"lm": (lm_configs.Data, lm_configs.tiny), "masked": (masked_configs.Data, masked_configs.shakespeare)}
    data, config = configs[name]
    with pytest.raises(InputError, match="The held-out text has 8 tokens, less than one window of 33"):
        program(name).main(small(config(), tmp_path, data=data(kind="text", files=text, length=33)))
    with pytest.raises(InputError, match="has 2 rows, less than one batch of 4"):
        program(name).main(small(config(), tmp_path, data=data(kind="text", files=(text,), length=33, held_out=0.45)))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lm_configs.Data, {"length": 1}),
        (lm_configs.Data, {"length": -1}),
        (lm_configs.Data, {"held_out": 0.0}),
        (lm_configs.Data, {"held_out": float("nan")}),
        (masked_configs.Data, {"length": 0}),
        (masked_configs.Data, {"held_out": 1.0}),
        (medusa_configs.Text, {"held_out": 1}),
        (medusa_configs.Text, {"prompts_each": 0}),
        (medusa_configs.Text, {"length": 2}),
        (filter_configs.Calls, {"held_out": 0}),
        (filter_configs.Calls, {"prompts": 0}),
    ],
)
def test_data_options_out_of_range(make, wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be"):
        make(**wrong)


def test_one_string_is_one_string():
    assert lm_configs.Data(files="a.txt").files == masked_configs.Data(files="a.txt").files == ("a.txt",)
    assert medusa_configs.Text(prompts=Path("a")).prompts == (Path("a"),)
    assert filter_configs.Calls(along="oracle", files="a").along == ("oracle",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"batch": 99}, "57 texts are to be trained on, less than one batch of 99"),
        ({"text": {"instructions": 19}}, "Of 19 texts every 20th is to be held out"),
        ({"heads": {"short_list": 4}}, "cannot make 10 guesses out of 4"),
        ({"joint": {"steps": 1, "rows": 0}}, "rows must be at least 1"),
        ({"joint": {"steps": 1, "length": 1}}, "length must be at least 2"),
    ],
)
def test_heads_that_cannot_be_trained_fail_before_anything_is_recorded(tmp_path, tiny, changes, words):
    config = dataclasses.replace(medusa_configs.smollm2(), model=tiny, run=Run(out=tmp_path / "out"))
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, instructions=60))
    with pytest.raises(InputError, match=words):
        for name, change in changes.items():
            new = dataclasses.replace(getattr(config, name), **change) if isinstance(change, dict) else change
            config = dataclasses.replace(config, **{name: new})
        program("medusa").main(config)
    assert not (tmp_path / "out").exists()


def test_a_filter_that_cannot_be_measured_fails_before_anything_is_recorded(tmp_path):
    config = dataclasses.replace(filter_configs.PRESETS["sums"][1], model="lists", run=Run(out=tmp_path / "out"))
    few = dataclasses.replace(config, calls=dataclasses.replace(config.calls, prompts=9))
    with pytest.raises(InputError, match="Of 9 texts every 10th is to be held out"):
        program("learned_filter").main(few)
    with pytest.raises(InputError, match="batch must be at least 1"):
        program("learned_filter").main(dataclasses.replace(config, batch=0))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_model(tmp_path, tiny):
    """The base has 259 tokens, the text 400."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(i) for i in range(0x4E00, 0x4E00 + 400)) * 9)
    data = lm_configs.Data(kind="text", files=(text,), length=33)
    with pytest.raises(InputError, match=r"has 400 tokens and .* only 259"):
        program("lm").main(small(lm_configs.tiny(), tmp_path / "out", base=tiny, data=data))


def test_heads_from_a_command_to_a_comparison(tmp_path, tiny, capsys):
    said = tmp_path / "said.jsonl"
    said.write_text('{"turns": ["abc", "Hello"]}')
    text = medusa_configs.Text(prompts=(said,), instructions=12, new_tokens=12, batch=4, length=96, held_out=4)
    heads = medusa_configs.Heads(count=2, short_list=64, nodes=7, ranks=4)
    config = small(medusa_configs.smollm2(), tmp_path / "out", model=tiny, text=text, heads=heads)
    config = dataclasses.replace(config, batch=8, plan=dataclasses.replace(config.plan, average=0.5))
    path = program("medusa").main(config)
    *_, first, second = traces.read(tmp_path / "out" / "text")
    assert len(second["prompt"]) > len(first["prompt"] + first["new"]), "asked behind the first answer"
    exported, saved = load_medusa(path).weights, newest(tmp_path / "out" / "checkpoints")
    for place, leaf in jax.tree.leaves_with_path(exported):
        name = params.name(place)
        average, last = (saved[f"{kind}/{name}"].astype(jnp.bfloat16) for kind in ("average", "trainable"))
        np.testing.assert_array_equal(leaf.astype(jnp.bfloat16), average)
        assert not np.array_equal(leaf.astype(jnp.bfloat16), last), "the average is not what is trained"
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
