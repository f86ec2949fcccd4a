"""Answers of a model to list operations: ragged rows, costs by row, and the choice at matched accuracy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.data.lists import Lists
from paradec.data.padded import Padded
from paradec.errors import UnknownName
from paradec.evals.answers import Trial, ask, matched
from paradec.evals.sweeps import SWEEPS, named, settings
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.transformer import Transformer
from paradec.params import init
from paradec.types import OPEN


def model(source, seed=0):
    base = Transformer(
        vocab_size=source.vocab_size, width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16,
        max_length=128,
    )  # fmt: skip
    target = BlockDiffusion(base, mask_id=source.mask_id)
    return target, init(target.specs(), jax.random.key(seed))


def test_rows_of_different_lengths_are_filled_and_counted():
    source = Lists(rows=30, seed=3)
    target, weights = model(source)
    answers = ask(compose(target, "quota", vocab_limit=source.symbols), weights, source)
    lengths = np.asarray([int(source[i]["learn"].sum()) for i in range(len(source))])
    assert len(set(lengths.tolist())) == 3, "no ragged batch"
    assert (answers.tokens == lengths).all() and (answers.calls == lengths).all()
    assert answers.tokens_per_call == 1.0 and answers.accuracy == 0.0, "a random model answered"
    for i, n in enumerate(lengths):
        row = source[i]["token"]
        assert (answers.canvas[i, : source.prompt] == row[: source.prompt]).all()
        inside = slice(source.prompt, source.prompt + n)
        assert (answers.canvas[i, inside] < source.symbols).all()
        assert sorted(answers.committed_at[i, inside].tolist()) == list(range(1, n + 1))
        assert (answers.committed_at[i, source.prompt + n :] == OPEN).all()


def test_the_oracle_of_the_right_answers_is_right_in_fewer_calls():
    source = Lists(rows=8, seed=3)
    target, weights = model(source)
    reference = np.zeros((8, 16), np.int32)
    for i in range(8):
        reference[i, : len(source[i]["token"])] = source[i]["token"]
    answers = ask(
        compose(target, "oracle", {"reference": jnp.asarray(reference)}, vocab_limit=source.symbols), weights, source
    )
    assert answers.accuracy == 1.0 and answers.tokens_per_call >= 1.0
    damaged = reference.copy()
    damaged[:, source.prompt] = (damaged[:, source.prompt] + 1) % source.symbols
    wrong = ask(
        compose(target, "oracle", {"reference": jnp.asarray(damaged)}, vocab_limit=source.symbols), weights, source
    )
    assert wrong.accuracy < 0.5 and wrong.agreement(answers) == 0.0 and answers.agreement(answers) == 1.0


def test_tokens_behind_the_end_are_not_counted():
    source = Padded(rows=6, seed=1, items=5, symbols=16, longest=9, answer=12)
    target, weights = model(source)
    reference = np.stack([source[i]["token"] for i in range(6)]).astype(np.int32)
    slots = -(-source.length // 16) * 16
    reference = np.pad(reference, ((0, 0), (0, slots - source.length)))
    method = compose(target, "oracle", {"reference": jnp.asarray(reference)}, vocab_limit=source.mask_id)
    answers = ask(method, weights, source, eos=(source.eos,))
    assert answers.accuracy == 1.0
    assert answers.tokens.tolist() == [len(source.solved(row)) + 1 for row in reference]


def test_matched_takes_the_fewest_calls_that_are_good_enough():
    base = Trial("copy", "threshold", "a", 0.99, 0.0, 1.0, 6.0, 60.0, 0.0, 1.0)
    trials = [
        base,
        dataclasses.replace(base, setting="b", calls=4.0, accuracy=0.98),
        dataclasses.replace(base, setting="c", calls=2.0, accuracy=0.9),
        dataclasses.replace(base, rule="eb", accuracy=0.5),
    ]
    best = matched(trials, 0.98)
    assert best["threshold"].setting == "b" and best["eb"] is None
    assert matched(trials, 0.995)["threshold"] is None


def test_settings():
    names, every = settings("random", 3)
    assert names == "quota" and [o["per_call"] for o in every] == [1, 2, 3]
    assert named(every[0]) == "per_call=1", "the score is the rule's name"
    assert all(options for _, options in SWEEPS.values())
    with pytest.raises(UnknownName, match="rule to sweep"):
        settings("treshold", 6)
