"""Log-probabilities: what every method notes of the tokens it commits, and what a model makes of a given text."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paradec
from paradec.errors import InputError
from paradec.models.block_diffusion import BlockDiffusion
from tests.fixtures import write_tiny_model

PROMPTS = ["abc abc abc", "Hello, world", "x", "The list: one two one two"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return paradec.load(str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")))


@partial(jax.jit, static_argnums=0)
def forward(model, params, token):
    return model.forward(params, token).logits


def law(lm, ids):
    """The truth: log-probabilities of every token but the first, from one pass over the whole text."""
    whole = np.zeros((1, lm.model.max_length), np.int32)
    whole[0, : len(ids)] = ids
    return np.asarray(jax.nn.log_softmax(forward(lm.model, lm.params, whole)[0, : len(ids) - 1]))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "repetition": 1.3, "seed": 5}])
@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("lookahead", {}),
        ("prompt_lookup", {}),
        ("ar", {}),
        ("jacobi", {}),
        ("draft_model", {"draft": "layers:1"}),
        ("draft_model", {"draft": "layers:1", "accept": "rejection"}),
    ],
)
def test_every_token_has_the_model_s_own(lm, method, args, sampling):
    """In batches, of chains and of trees, and whatever law the tokens are drawn from."""
    ask = dict(max_new_tokens=12, logprobs=3, batch_size=4, method_args=args, ignore_eos=True)
    for prompt, result in zip(PROMPTS, lm.generate(PROMPTS, method=method, **ask, **sampling), strict=True):
        ids = lm.encode(prompt)
        truth = law(lm, [*ids, *result.token_ids])[len(ids) - 1 :]
        assert [each.token_id for each in result.logprobs] == list(result.token_ids)
        own = truth[np.arange(len(truth)), list(result.token_ids)]
        np.testing.assert_allclose([each.logprob for each in result.logprobs], own, atol=1e-5)
        best = np.sort(truth)[:, ::-1][:, :3]
        np.testing.assert_allclose([[p for _, p in each.top] for each in result.logprobs], best, atol=1e-5)
        for each, row in zip(result.logprobs, truth, strict=True):
            np.testing.assert_allclose([row[i] for i, _ in each.top], [p for _, p in each.top], atol=1e-5)


def denoiser(lm):
    return dataclasses.replace(lm, model=BlockDiffusion(lm.model, mask_id=0), decoders={}, components={})


def canvas_law(lm, ids, result, call):
    """The truth: the law at every position of the canvas that this call read, without the mask token."""
    hidden = np.asarray(result.settled) >= call
    canvas = [*ids, *np.where(hidden, 0, result.token_ids)]
    logits = forward(lm.model, lm.params, jnp.asarray([canvas], jnp.int32))[0, len(ids) :]
    return np.asarray(jax.nn.log_softmax(logits.at[:, 0].set(-jnp.inf)))


@pytest.mark.parametrize(
    ("method", "args", "sampling"),
    [
        ("quota", {"per_call": 3, "block": 6}, {}),
        ("quota+credit", {"per_call": 2}, {"temperature": 0.7}),
    ],
)
def test_every_token_of_a_canvas_has_that_of_the_call_that_committed_it(lm, method, args, sampling):
    """Before temperature and rewrites; a method that looks at several states in one call tells the same."""
    filler = denoiser(lm)
    ask = dict(max_new_tokens=12, method=method, method_args=args, ignore_eos=True, batch_size=2)
    results = filler.generate(PROMPTS[:2], logprobs=2, **ask, **sampling)
    for prompt, result in zip(PROMPTS, results, strict=False):
        ids, seen = filler.encode(prompt), {}
        for at, (call, each) in enumerate(zip(result.settled, result.logprobs, strict=True)):
            truth = seen.setdefault(call, canvas_law(filler, ids, result, call))[at]
            assert each.logprob == pytest.approx(truth[each.token_id], abs=1e-5)
            assert [p for _, p in each.top] == pytest.approx(np.sort(truth)[::-1][:2], abs=1e-5)
    for fast, result in zip(
        filler.generate(PROMPTS[:2], logprobs=2, **ask | {"method": f"{method}+freedave"}, **sampling), results,
        strict=True,
    ):  # fmt: skip
        assert fast.token_ids == result.token_ids and fast.calls <= result.calls
        pairs = zip(fast.logprobs, result.logprobs, strict=True)
        assert all(a.logprob == pytest.approx(b.logprob, abs=1e-5) for a, b in pairs)
    assert [r.token_ids for r in results] == [r.token_ids for r in filler.generate(PROMPTS[:2], **ask, **sampling)]


@pytest.mark.parametrize("raw", [True, False])
def test_a_score_is_the_law_of_the_continuation(lm, raw):
    """One result a pair, in batches of other lengths, in chunks, for text and for ids."""
    after = [" abc", " and all the others that there are, " * 12, "y", " one two"]
    scores = lm.score(PROMPTS, after, raw=raw, batch_size=3, top=2)
    for prompt, continuation, found in zip(PROMPTS, after, scores, strict=True):
        ids = lm.encode(prompt, raw=raw)
        new = [each.token_id for each in found.tokens]
        truth = law(lm, [*ids, *new])[len(ids) - 1 :]
        assert lm.tokenizer.decode(new) == continuation
        assert found.logprob == pytest.approx(truth[np.arange(len(new)), new].sum(), rel=1e-5)
        assert found.loss == -found.logprob / len(new)
        assert found.greedy == bool((truth.argmax(-1) == new).all())
        (again,) = lm.score([ids], [new])
        assert again.logprob == pytest.approx(found.logprob, rel=1e-5)
    best = lm.generate(PROMPTS, max_new_tokens=5, logprobs=0, raw=raw, ignore_eos=True)
    for prompt, result in zip(PROMPTS, best, strict=True):
        (found,) = lm.score([lm.encode(prompt, raw=raw)], [result.token_ids])
        assert found.greedy and found.logprob == pytest.approx(sum(e.logprob for e in result.logprobs), abs=1e-5)


def test_what_cannot_be_scored(lm):
    for pair, words in {
        ("Hello", ""): "The continuation has no tokens",
        ("", "Hello"): "The prompt is empty",
        ("Hello", "x" * 2000): "tokens and .* reads at most",
        (("a", "b"), ("c",)): "2 prompts and 1 continuations",
    }.items():
        with pytest.raises(InputError, match=words):
            lm.score(*pair)
    with pytest.raises(InputError, match="fills a canvas"):
        denoiser(lm).score("a", "b")
    with pytest.raises(InputError, match="logprobs must be"):
        lm.generate("a", logprobs=-1)
    with pytest.raises(InputError, match="the 260 likeliest of 259 tokens"):
        lm.generate("a", logprobs=260)


def test_every_prompt_may_be_drawn_in_its_own_way(lm):
    """Greedy beside drawn, each with its seed: what a row gives alone, it gives in a mixed batch."""
    own = dict(temperature=[0.0, 0.9, 1.2, 0.9], top_k=[0, 5, 0, 5], top_p=[1, 1, 0.8, 1], seed=[1, 2, 3, 2])
    ask = dict(max_new_tokens=12, ignore_eos=True, repetition=np.asarray([1.0, 1.0, 1.5, 1.0]))
    mixed = lm.generate([*PROMPTS[:3], PROMPTS[1]], batch_size=4, **own, **ask)
    for row, prompt in enumerate([*PROMPTS[:3], PROMPTS[1]]):
        alone = {name: values[row] for name, values in own.items()} | {"repetition": float(ask["repetition"][row])}
        assert mixed[row].token_ids == lm.generate(prompt, **ask | alone)[0].token_ids
    assert mixed[1].token_ids == mixed[3].token_ids
    assert [r.token_ids for r in lm.generate([*PROMPTS[:3], PROMPTS[1]], batch_size=2, **own, **ask)] == [
        r.token_ids for r in mixed
    ]
    with pytest.raises(InputError, match="seed has 2 values for 1 prompts"):
        lm.generate("a", seed=[1, 2])
    with pytest.raises(InputError, match="seed has 2 values"):
        next(lm.stream("a", seed=[1, 2]))
    with pytest.raises(InputError, match=r"temperature\[1\] must be a number"):
        lm.generate(["a", "b"], temperature=[1, "hot"])
    with pytest.raises(InputError, match="top_p must be above 0"):
        lm.generate(["a", "b"], top_p=[1, 0])


def test_json_tells_them_where_they_were_asked_for(lm):
    told, untold = (lm.generate("Hello", max_new_tokens=3, logprobs=k)[0].public() for k in (1, None))
    assert json.loads(json.dumps(told))["logprobs"][0].keys() == {"token_id", "logprob", "top"}
    assert "logprobs" not in untold
