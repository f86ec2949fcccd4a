"""SmolLM2-135M against transformers on the same weights: logits and greedy text."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paradec
from tests.golden.make_greedy import GOLDEN, NEW_TOKENS, prompts

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def peers(smollm2, tmp_path_factory):
    """The same weights in transformers, in float32 and in float64."""
    from paradec.io.hf import save_hf

    folder = tmp_path_factory.mktemp("peer")
    save_hf(folder, smollm2.model, jax.device_get(smollm2.params))
    return [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        for kind in (torch.float32, torch.float64)
    ]


def test_logits(smollm2, peers):
    """Both are float32 roundings of one truth, which float64 knows better; how far each is from it depends on the
    machine (0.6 to 1.4e-4 were seen). Logits reach about 38."""
    forward = jax.jit(lambda w, t: smollm2.model.forward(w, t).logits)
    for text in prompts()[:4]:
        ids = smollm2.encode(text)[:48]
        ours = np.asarray(forward(smollm2.params, jnp.asarray([ids], jnp.int32)))
        with torch.no_grad():
            single, double = (peer(torch.tensor([ids])).logits.numpy() for peer in peers)
        assert np.abs(ours - single).max() < 3e-4 and np.abs(ours - double).max() < 2e-4
        assert (ours.argmax(-1) == double.argmax(-1)).all()


def test_greedy_text(smollm2, peers):
    """The stored texts, with which tests/test_smollm2.py compares ours, are what transformers says today: behind every
    prefix of a text, its next token is the likeliest. A call for each text asks that of all its prefixes."""
    stored = json.loads(GOLDEN.read_text())
    assert len(stored) == 20 and [row["prompt"] for row in stored] == prompts()
    for row in stored:
        prompt, text = smollm2.encode(row["prompt"]), row["token_ids"]
        with torch.no_grad():
            likeliest = peers[0](torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert likeliest.tolist() == text, row["prompt"]
        assert (len(text) == NEW_TOKENS) != (text[-1] in smollm2.tokenizer.eos_ids), "ends where it must"


@pytest.fixture(scope="module")
def law(peers):
    """Log-probabilities of the whole vocabulary at every new token's place; each text is asked once."""
    known = {}

    def ask(ids, new):
        if (text := (*ids, *new)) not in known:
            with torch.no_grad():
                logits = peers[1](torch.tensor([text])).logits[0, len(ids) - 1 : -1]
            known[text] = torch.log_softmax(logits, -1).numpy()
        return known[text]

    return ask


LAYERS = {"draft": "layers:4"}
METHODS = [("ar", {}, 1), ("ar", {}, 8), ("prompt_lookup", {}, 8), ("medusa", {}, 8), ("draft_model", LAYERS, 8)]
if "PARADEC_CASES" in os.environ:
    METHODS += [("prompt_lookup", {}, 1), ("medusa", {}, 1), ("draft_model", LAYERS, 1)]


@pytest.mark.parametrize(("method", "options", "batch"), METHODS)
def test_logprobs(smollm2, law, method, options, batch):
    """Of chosen and likeliest tokens, whoever drafted them."""
    asked = prompts()[: max(batch, 2)]
    ask = dict(max_new_tokens=16, logprobs=3, batch_size=batch, method_args=options)
    for text, result in zip(asked, smollm2.generate(asked, method=method, **ask), strict=True):
        truth = law(smollm2.encode(text), result.token_ids)
        own = truth[np.arange(len(truth)), list(result.token_ids)]
        assert np.abs([e.logprob for e in result.logprobs] - own).max() < 1e-4
        best = np.sort(truth)[:, ::-1][:, :3]
        assert np.abs(np.asarray([[p for _, p in e.top] for e in result.logprobs]) - best).max() < 1e-4


def test_conversations_of_spec_bench(smollm2, peers, shared, tmp_path):
    """Of two turns each, twenty with PARADEC_CASES: their rendering with our answers in it, and behind every prefix the
    likeliest token."""
    count, new = (20, 24) if "PARADEC_CASES" in os.environ else (4, 12)
    smollm2.tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = [json.loads(line) for line in (shared / "data/spec_bench/question.jsonl").read_text().splitlines()]
    talks = [line["turns"] for line in lines if len(line["turns"]) == 2 and len(" ".join(line["turns"])) < 600][:count]
    assert len(talks) == count
    for turns, results in zip(talks, paradec.converse(smollm2, talks, max_new_tokens=new, batch_size=4), strict=True):
        messages = []
        for turn, result in zip(turns, results, strict=True):
            messages.append({"role": "user", "content": turn})
            ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            with torch.no_grad():
                logits = peers[0](torch.tensor([[*ids, *result.token_ids]])).logits[0, len(ids) - 1 : -1]
            assert tuple(logits.argmax(-1).tolist()) == result.token_ids
            assert theirs.decode(result.token_ids, skip_special_tokens=True) == result.text
            messages.append({"role": "assistant", "content": result.text})


def test_scores(smollm2, peers):
    """The loss that transformers tells of the same text, its labels the continuation's."""
    pairs = [(text, " and then there were none of them left.") for text in prompts()[:6]]
    for (text, _), found in zip(pairs, smollm2.score(*zip(*pairs, strict=True), batch_size=4), strict=True):
        ids, new = smollm2.encode(text), [each.token_id for each in found.tokens]
        labels = torch.tensor([[*[-100] * len(ids), *new]])
        with torch.no_grad():
            loss = peers[1](torch.tensor([[*ids, *new]]), labels=labels).loss.item()
        assert found.loss == pytest.approx(loss, abs=1e-4)
