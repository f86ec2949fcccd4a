"""`--model paradec` in lm-evaluation-harness against its own `hf` class, on the same weights and requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from paradec import cli
from paradec.errors import InputError, UnknownName
from tests.fixtures import write_tiny_model

pytestmark = pytest.mark.oracle
pytest.importorskip("torch")
lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'paradec[harness]'")
pytest.importorskip("accelerate", reason="the harness's hf class needs it: pip install 'lm_eval[hf]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from paradec.evals.harness import ParadecLM

TASKS = Path(__file__).parents[2] / "infer" / "harness"
ITEMS = 50 if "PARADEC_CASES" in os.environ else 6
LONG = "The quick brown fox jumps over the lazy dog; "


def requests(kind, *args):
    return [Instance(kind, {}, each, i) for i, each in enumerate(args)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A token a byte, one before each text, and 96 tokens at most."""
    where = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_length=96)
    core = Tokenizer.from_file(str(where / "tokenizer.json"))
    begin = "<|im_start|>"
    core.post_processor = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, core.token_to_id(begin))]
    )
    core.save(str(where / "tokenizer.json"))
    return str(where)


@pytest.fixture(scope="module")
def hf(folder):
    return HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def ours(folder):
    return ParadecLM.create_from_arg_string(f"pretrained={folder}", {"batch_size": 4, "device": "cuda:0"})


def test_both_know_the_same_tokens(ours, hf):
    for name in ("max_length", "max_gen_toks", "eot_token_id", "prefix_token_id"):
        assert getattr(ours, name) == getattr(hf, name), name
    for text in ("", " a ", "<|im_start|>user\nHi<|im_end|>", "Grüße 東京"):
        for special in (None, True, False):
            assert ours.tok_encode(text, add_special_tokens=special) == hf.tok_encode(text, add_special_tokens=special)


def test_log_likelihoods(ours, hf):
    """Also of contexts that are empty, end in spaces or are too long, up to the last token that can be predicted; and
    of what the model would write itself."""
    asked = [(context, {"max_gen_toks": 1, "until": []}) for context in "abcdefgh"]
    said = zip("abcdefgh", ours.generate_until(requests("generate_until", *asked)), strict=True)
    pairs = [
        *((context, text) for context, text in said if text.isascii() and text), ("東", "京"),
        ("Hello", " world"), ("Hello  ", "world"), ("", "x y"), ("", "<|im_start|>abc"),
        *((LONG[:n], "abc") for n in (1, 40)), *((LONG * 3, LONG[:n]) for n in (1, 7, 40)),
        *(("x" * n, "abc") for n in range(92, 97)), ("abc", (LONG * 3)[:95]), ("abc", (LONG * 3)[:96]),
    ]  # fmt: skip
    found, wanted = (lm.loglikelihood(requests("loglikelihood", *pairs)) for lm in (ours, hf))
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted], atol=1e-3)
    assert [x for _, x in found] == [x for _, x in wanted]
    assert {x for _, x in found} == {True, False}
    with pytest.raises(InputError, match=r"has 97 tokens; from 1 to max_length=96"):
        ours.loglikelihood(requests("loglikelihood", ("a", "x" * 97)))


def test_whole_texts(ours, hf):
    texts = [("",), ("a",), (LONG,), ((LONG * 5)[:96],), ((LONG * 5)[:97],), (LONG * 5,)]
    found, wanted = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) for lm in (ours, hf))
    np.testing.assert_allclose(found, wanted, atol=2e-3)


ASKS = [
    {"until": ["e"], "max_gen_toks": 24},
    {"until": ["<|endoftext|>", "\n\n"], "max_gen_toks": 60, "do_sample": False, "temperature": 0.7},
    {"until": "ab", "max_new_tokens": 9, "repetition_penalty": 1.4},
    {"max_gen_toks": 5, "temperature": 0.0, "num_beams": 1},
]


@pytest.mark.parametrize("ask", ASKS)
def test_texts(ours, hf, ask):
    contexts = ["Hello", LONG, LONG * 4, "one two one two", "The end", "x"]
    asked = requests("generate_until", *((context, dict(ask)) for context in contexts))
    alone = [
        hf.generate_until([each])[0] for each in asked
    ]  # rows of a batch end together there, special tokens hidden
    assert ours.generate_until(asked) == alone


def test_a_special_token_stops_a_text(ours, monkeypatch):
    """It is no part of the text, so the text cannot show it: here a letter in the middle of what is written."""
    (free,) = ours.lm.generate([ours.tok_encode("Hello")], max_new_tokens=24)
    letters = [i for i in free.token_ids[2:] if ours.tok_decode([i]).isascii()]
    first = free.token_ids.index(letters[-1])
    monkeypatch.setattr(ours.tokenizer, "special_ids", ours.tokenizer.special_ids | {letters[-1]})
    ask = {"until": [ours.tok_decode(letters[-1:], skip_special_tokens=False)], "max_gen_toks": 24}
    assert ours.generate_until(requests("generate_until", ("Hello", ask))) == [ours.tok_decode(free.token_ids[:first])]


def test_conversations(ours, hf):
    talk = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}]
    prefilled = [*talk, {"role": "assistant", "content": "Well, Be brief. "}]
    for messages, ask in ((talk, True), (prefilled, False)):
        assert ours.apply_chat_template(messages, ask) == hf.apply_chat_template(messages, ask)
    assert ours.chat_template(True) == hf.chat_template(True)


def test_what_is_drawn_is_the_request_s_own(ours):
    """Not the batch's; and the same request again is drawn anew."""
    ask = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_k": -1}
    asked = requests("generate_until", *((context, ask) for context in ("a", "Hello", "a", "bc")))
    found = ours.generate_until(asked)
    assert found[0] != found[2]
    assert ParadecLM(ours.lm, batch_size=2).generate_until(asked) == found
    assert ParadecLM(ours.lm, batch_size=4, seed=1).generate_until(asked) != found


def test_what_cannot_be_asked(ours):
    lists = ParadecLM("lists", method="threshold", tau=0.9)
    (text,) = lists.generate_until(requests("generate_until", ("sort - - D A C B F E", {"max_gen_toks": 6})))
    assert text.split() == [*"ABCDEF"]
    with pytest.raises(InputError, match="cannot tell log-likelihoods"):
        lists.loglikelihood(requests("loglikelihood", ("A", " B")))
    for ask, words in {("num_beams", 4): "no generation argument num_beams=4", ("max_gen_toks", 96): "no room"}.items():
        with pytest.raises(InputError, match=words):
            ours.generate_until(requests("generate_until", ("a", dict([ask]))))
    for wrong in ({"batch_size": "auto"}, {"method": "beam"}, {"windo": 3}, {"max_length": 97}):
        with pytest.raises((InputError, UnknownName)):
            ParadecLM(ours.lm, **wrong)


def test_the_command(folder, tmp_path, capsys):
    words = f"lm-eval --model paradec --model_args pretrained={folder} --tasks facts_choice --limit 1 --batch_size 4"
    assert cli.main([*words.split(), "--include_path", str(TASKS), "--output_path", str(tmp_path / "out.json")]) == 0
    assert "facts_choice" in capsys.readouterr().out
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["results"]["facts_choice"]["sample_len"] == 1


def test_scores_of_a_real_model(smollm2, tmp_path):
    """A task of choices and one of texts: the same scores, and behind them the same numbers and the same texts."""
    from paradec.io.hf import save_hf

    save_hf(tmp_path, smollm2.model, jax.device_get(smollm2.params))
    smollm2.tokenizer.save(tmp_path)
    models = [ParadecLM(smollm2, batch_size=8, method="prompt_lookup")]
    models += [HFLM(pretrained=str(tmp_path), dtype="float32", device="cpu", batch_size=8)]
    tasks = dict(tasks=["facts_choice", "facts_written"], task_manager=TaskManager(include_path=str(TASKS)))
    found, wanted = (lm_eval.simple_evaluate(lm, **tasks, limit=ITEMS, bootstrap_iters=0) for lm in models)
    assert found["results"] == wanted["results"]
    for mine, theirs in zip(*(run["samples"]["facts_written"] for run in (found, wanted)), strict=True):
        assert mine["resps"] == theirs["resps"]
    told = [
        [one for sample in run["samples"]["facts_choice"] for one, in sample["resps"]] for run in (found, wanted)
    ]  # fmt: skip
    assert len(told[0]) == 4 * ITEMS
    np.testing.assert_allclose(*([float(value) for value, _ in run] for run in told), atol=1e-3)
    assert [str(greedy) for _, greedy in told[0]] == [str(greedy) for _, greedy in told[1]]
