"""The options of the programs in train/: what cannot be is said in a sentence, before anything is read or compiled."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import learned_filter, lm, masked, medusa, tracking
from paradec import config as configs
from paradec.learn import step as learn

pytestmark = pytest.mark.usefixtures("no_vast_allocation")

RECIPES = {"lm": lm, "masked": masked, "medusa": medusa, "learned_filter": learned_filter, "tracking": tracking}
CASES = int(os.environ.get("PARADEC_CASES", "40"))

WRONG = {
    "lm": [
        ("--batch 0", "batch must be at least 1; 0 was given."),
        ("--batch 6 --plan.micro 4", "6 rows do not split into 4 micro-batches; change --batch or --plan.micro."),
        ("--shape.layers 0", "layers must be at least 1; 0 was given."),
        ("--shape.width -8", "width must be at least 1; -8 was given."),
        ("--shape.heads 3", "heads must be a multiple of kv_heads (4); 3 was given."),
        ("--shape.kv-heads 0", "kv_heads must be at least 1; 0 was given."),
        ("--shape.head-dim 7", "head_dim must be even, since rotary positions turn pairs; 7 was given."),
        ("--shape.pattern glaa", "There is no kind of layer named 'glaa'. Did you mean 'gla'?"),
        ("--shape.pattern gla attention --shape.layers 3", "3 layers are no whole number of patterns of 2."),
        ("--shape.theta nan", "theta must be above 0 and finite; nan was given."),
        ("--plan.steps 0 --plan.warmup 0", "plan.steps must be at least 1; 0 was given."),
        ("--plan.steps -3", "steps must be 0 or more, and below 2**31; -3 was given."),
        ("--plan.steps 99999999999", "steps must be 0 or more, and below 2**31; 99999999999 was given."),
        ("--plan.warmup 301", "warmup must be between 0 and steps (300); 301 was given."),
        ("--plan.warmup -1", "warmup must be between 0 and steps (300); -1 was given."),
        ("--plan.learning-rate -1", "learning_rate must be above 0 and finite; -1.0 was given."),
        ("--plan.learning-rate nan", "learning_rate must be above 0 and finite; nan was given."),
        ("--plan.learning-rate inf", "learning_rate must be above 0 and finite; inf was given."),
        ("--plan.weight-decay nan", "weight_decay must be 0 or more, and finite; nan was given."),
        ("--plan.weight-decay -0.1", "weight_decay must be 0 or more, and finite; -0.1 was given."),
        ("--plan.beta1 1", "beta1 must be at least 0 and below 1; 1.0 was given."),
        ("--plan.beta2 -0.5", "beta2 must be at least 0 and below 1; -0.5 was given."),
        ("--plan.clip nan", "clip must be 0 (off) or more, and finite; nan was given."),
        ("--plan.floor 2", "floor must be between 0 and 1; 2.0 was given."),
        ("--plan.average nan", "average must be at least 0 (off) and below 1; nan was given."),
        ("--plan.micro 0", "micro must be at least 1; 0 was given."),
        ("--plan.compute float3", "compute must be one of float32, bfloat16; float3 was given."),
        ("--plan.faster blocks -1", "faster must be names with factors above 0 and finite"),
        ("--seed -1", "seed must be 0 or more, and below 2**31; -1 was given."),
        ("--seed 4294967296", "seed must be 0 or more, and below 2**31; 4294967296 was given."),
        ("--lora -1", "lora must be at least 0; -1 was given."),
        ("--devices.data 0", "data must be at least 1, or -1 for all devices that are left; 0 was given."),
        ("--devices.model 0", "model must be at least 1; 0 was given."),
        ("--data.length 1", "length must be at least 2; 1 was given."),
    ],
    "tracking": [
        ("--words.task s6", "There is no task of state tracking named 's6'."),
        ("--words.length 0", "length must be at least 1; 0 was given."),
        ("--words.modulus 1", "modulus must be at least 2; 1 was given."),
        ("--rows 0", "rows must be at least 1; 0 was given."),
    ],
    "masked": [
        ("--batch -1", "batch must be at least 1; -1 was given."),
        (
            "--shape.pattern gla",
            "Layers of a pattern read what stands before a token alone: leave out --shape.pattern.",
        ),
        ("--block -1", "block must be at least 0; -1 was given."),
        ("--noise.low nan", "low must be above 0 and at most high (1.0); nan was given."),
        ("--noise.high nan", "low must be above 0 and at most high (nan); 0.001 was given."),
        ("--plan.steps 0 --plan.warmup 0", "plan.steps must be at least 1; 0 was given."),
        ("--shape.mlp 0", "mlp must be at least 1; 0 was given."),
        ("--seed -1", "seed must be 0 or more, and below 2**31; -1 was given."),
    ],
    "medusa": [
        ("--heads.count 0", "count must be at least 1; 0 was given."),
        ("--heads.decay nan", "decay must be above 0 and finite; nan was given."),
        ("--joint.steps -1", "steps must be 0 (off) or more, and below 2**31; -1 was given."),
        ("--joint.alpha 0", "alpha must be above 0 and finite; 0.0 was given."),
        (
            "--joint.steps 9 --joint.rows 3 --plan.micro 2",
            "3 rows do not split into 2 micro-batches; change --joint.rows",
        ),
        ("--plan.steps 0 --plan.warmup 0", "Neither stage has a step to learn in"),
        ("--text.new-tokens 0", "new_tokens must be at least 1; 0 was given."),
        ("--dtype half", "Weights cannot be loaded as 'half'."),
    ],
    "learned_filter": [
        ("--batch 0", "batch must be at least 1; 0 was given."),
        ("--filter.width 0", "width must be at least 1; 0 was given."),
        ("--filter.wrong inf", "wrong must be above 0 and finite; inf was given."),
        ("--calls.block 0", "block must be at least 1; 0 was given."),
        ("--calls.held-out 1", "held_out must be at least 2; 1 was given."),
        ("--plan.steps 0", "plan.steps must be at least 1; 0 was given."),
    ],
}


@pytest.mark.parametrize(("name", "words", "said"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_a_number_that_cannot_be_is_a_sentence(name, words, said, capsys):
    presets = RECIPES[name].PRESETS
    with pytest.raises(SystemExit) as stop:
        configs.from_command_line(presets, [next(iter(presets)), *words.split()])
    captured = capsys.readouterr()
    told = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert stop.value.code == 2 and said in told and "Traceback" not in told


def fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every option of a recipe but where its run lies, by its name on the command line."""
    found = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        found |= fields(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return {name: value for name, value in found.items() if not name.startswith("run.")}


OPTIONS = {name: fields(next(iter(recipe.PRESETS.values()))[1]) for name, recipe in RECIPES.items()}
NUMBERS = ["0", "1", "2", "3", "4", "7", "8", "-1", "0.5", "1.0", "1e-3", "1e300", "nan", "inf", "-inf", "2147483648"]
WORDS = [
    "",
    "true",
    "False",
    "None",
    "bfloat16",
    "linear",
    "wsd",
    "text",
    "sine",
    "oracle",
    "a b",
    "--",
    "é",
    "\0",
    "[1]",
]


@st.composite
def commands(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A program, and a preset with some options, most of which have a value of their type."""
    name = draw(st.sampled_from(sorted(RECIPES)))
    words = [draw(st.sampled_from(sorted(RECIPES[name].PRESETS)))]
    for option in draw(st.lists(st.sampled_from(sorted(OPTIONS[name])), max_size=4, unique=True)):
        value = OPTIONS[name][option]
        like = st.sampled_from(["True", "False"] if isinstance(value, bool) else NUMBERS)
        like = like if isinstance(value, bool | int | float) else st.sampled_from(WORDS)
        other = st.one_of(st.sampled_from(NUMBERS + WORDS), st.text(max_size=6))
        several = 2 if isinstance(value, tuple) else 1
        given = draw(st.lists(st.one_of(like, like, like, other), min_size=several - 1, max_size=several))
        words += [f"--{option.replace('_', '-')}", *given]
    return name, words


def check(command: tuple[str, list[str]]) -> None:
    """Parse, and ask what can be asked without compiling. Whatever is no exit with a sentence fails."""
    name, words = command
    try:
        config = configs.from_command_line(RECIPES[name].PRESETS, words)
    except SystemExit as stop:
        assert stop.code in (0, 2), words  # 0: a value asked for help
        return
    assert config.plan.steps + (config.joint.steps if name == "medusa" else 0) > 0
    assert config.batch % config.plan.micro == 0 < config.batch
    rate = learn.schedule(config.plan)
    assert all(0 <= float(rate(step)) < float("inf") for step in (0, max(config.plan.steps - 1, 0)))
    configs.as_json(config)


SETTINGS = dict(deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@given(commands())
@settings(max_examples=CASES, **SETTINGS)
def test_whatever_is_asked_ends_in_a_recipe_or_a_sentence(command):
    check(command)


@given(commands())
@settings(max_examples=max(800, CASES), **SETTINGS)
def test_hundreds_of_commands_end_in_a_recipe_or_a_sentence(command):
    check(command)
