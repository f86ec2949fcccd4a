"""A comparison under way: what it is worth when it ends early, and its texts on request."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

import paradec
from paradec import comparison
from paradec.errors import InputError
from paradec.lm import Decoder, LanguageModel
from paradec.request import Generation
from paradec.testing.tiny import tiny_transformer

PROMPTS = ["one", "two", "three", "four"]
ASK = {"max_new_tokens": 6, "batch_size": 2}
METHODS = ["prompt_lookup", "jacobi"]
MODEL = tiny_transformer()[0]
SECONDS = {"ar": 4.0, "prompt_lookup": 2.0, "jacobi": 8.0}


class Scripted(LanguageModel):
    """What `compare` asks of a language model, answered without one: row b of n tokens takes n calls of `ar`, and half
    as many of the others. A batch takes the method's `SECONDS`. `other` changes a token of a row: (method, row)."""

    def __init__(self, other: tuple[str, int] | None = None) -> None:
        super().__init__("scripted", MODEL, None, None)
        object.__setattr__(self, "other", other)

    def decoder(self, ask, method_args=None):
        return Decoder(ask.method, None, {})

    def encode(self, prompt, **_):
        return [*prompt.encode()]

    def shown(self, prompt):
        return prompt

    def decode(self, *ask):
        return self.finish(*ask)[0]

    def finish(self, decoder, batch, ask, rows, shown=()):
        method, out = decoder.name, []
        for row, ids in zip(rows, batch, strict=True):
            tokens = [*range(row + 2)]
            if (method, row) == self.other:
                tokens[1] += 1
            calls = len(tokens) if method == "ar" else -(-len(tokens) // 2)
            out.append(Generation(bytes(ids).decode(), "text", tuple(tokens), len(tokens), calls, len(tokens) / calls,
                                  SECONDS[method], method, "length", (), ()))  # fmt: skip
        calls = np.asarray([g.calls for g in out])
        stats = {"offered": calls[:, None], "accepted": calls[:, None] - 1, "queries": 2 * calls, "drafts": calls}
        return out, SimpleNamespace(stats=SimpleNamespace(**stats))


def ends_at(number: int):
    """A `track` that Ctrl-C meets before that many cells are through."""

    def track(cells):
        yield from itertools.islice(cells, number)
        raise KeyboardInterrupt

    return track


@pytest.mark.parametrize(
    ("cells", "prompts", "rounds"),
    [
        (3, 2, 0),  # three methods have compiled and decoded the first batch
        (5, 2, 0),
        (6, 2, 1),
        (11, 2, 2),
        (12, 2, 3),
        (14, 2, 3),
        (18, 2, 3),  # one round of two batches is less than three of one
        (20, 2, 3),
        (21, 4, 2),
        (23, 4, 2),
    ],
)
def test_an_interrupt_leaves_the_comparison_of_the_first_prompts(cells, prompts, rounds):
    with pytest.raises(KeyboardInterrupt) as told:
        paradec.compare(Scripted(), PROMPTS, METHODS, repeats=3, track=ends_at(cells), **ASK)
    report = told.value.comparison
    assert isinstance(told.value, paradec.Interrupted) and report.extent in str(told.value)
    assert report.partial and report.asked == {"prompts": 4, "repeats": 3}
    assert report.extent == f"partial: {prompts} of 4 prompts, {rounds} of 3 rounds"
    whole = paradec.compare(Scripted(), PROMPTS[:prompts], METHODS, repeats=rounds, **ASK)
    assert not whole.partial
    assert (report.methods, report.settings, report.generations) == (whole.methods, whole.settings, whole.generations)
    ar, lookup, jacobi = report.methods
    assert [ar.total, ar.seconds] == [prompts, 4.0 * prompts / 2], "of these prompts, each once"
    assert (lookup.speedups, jacobi.speedups) == ((2.0,) * rounds, (0.5,) * rounds)
    assert ar.new_tokens == sum(range(2, prompts + 2)) and ar.tokens_per_second == ar.new_tokens / ar.seconds


@pytest.mark.parametrize("cells", [0, 2])
def test_before_anything_is_complete_an_interrupt_is_just_that(cells):
    with pytest.raises(KeyboardInterrupt) as told:
        paradec.compare(Scripted(), PROMPTS, METHODS, track=ends_at(cells), **ASK)
    assert type(told.value) is KeyboardInterrupt


def test_a_track_may_end_early():
    some = lambda number: {"track": lambda cells: itertools.islice(cells, number), **ASK}
    report = paradec.compare(Scripted(), PROMPTS, "jacobi", repeats=0, **some(3))
    assert report.extent == "partial: 2 of 4 prompts" and report.methods[1].speedup is None
    with pytest.raises(InputError, match="track ended before"):
        paradec.compare(Scripted(), PROMPTS, "jacobi", **some(1))


def test_a_divergence_behind_the_rows_that_are_told_is_not_told(monkeypatch):
    monkeypatch.setattr(comparison, "top2_gap", lambda lm, text: len(text))
    lm = Scripted(other=("jacobi", 3))
    with pytest.raises(paradec.Interrupted) as told:
        paradec.compare(lm, PROMPTS, ["jacobi"], repeats=1, track=ends_at(7), **ASK)
    assert told.value.comparison.methods[1].first_divergence is None and not told.value.comparison.broken()
    (broken,) = paradec.compare(lm, PROMPTS, ["jacobi"], repeats=1, **ASK).broken()
    assert (broken.identical, broken.total) == (3, 4)
    assert broken.first_divergence == {"row": 3, "position": 1, "top2_gap": len("four") + 1}


def test_nothing_is_computed_for_a_report(monkeypatch):
    """An interrupt leaves two seconds: what needs the device was done with the row that it is about."""
    lm, seen = Scripted(other=("jacobi", 0)), []
    monkeypatch.setattr(comparison, "top2_gap", lambda lm, text: seen.append(text) or 0.5)

    def track(cells):
        yield from itertools.islice(cells, 4)
        seen.append("interrupted")
        raise KeyboardInterrupt

    with pytest.raises(paradec.Interrupted) as told:
        paradec.compare(lm, PROMPTS, ["jacobi"], repeats=1, track=track, **ASK)
    assert len(seen) == 2 and seen[-1] == "interrupted"
    assert told.value.comparison.methods[1].first_divergence["top2_gap"] == 0.5


def test_the_document_has_texts_on_request():
    report = paradec.compare(Scripted(), PROMPTS, ["jacobi"], repeats=0, **ASK)
    plain = json.loads(json.dumps(report.public()))
    assert plain["partial"] is False and all("generations" not in row for row in plain["methods"])
    told = json.loads(json.dumps(report.public(texts=True)))
    assert [row["method"] for row in told["methods"]] == ["ar", "jacobi"]
    for row in told["methods"]:
        written = row.pop("generations")
        assert [g["prompt"] for g in written] == PROMPTS
        assert written == json.loads(json.dumps([g.public() for g in report.generations[row["method"]]]))
    assert told == plain
