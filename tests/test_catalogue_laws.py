"""The shared laws over the catalogue: every row on every kind of model, every rule under every cache policy.

One test is one method on one model; all laws of its row share its compiled programs.
"""

from __future__ import annotations

import dataclasses

import jax
import pytest

from paradec import catalog
from paradec.decode.canvas_cache import POLICIES
from paradec.engines import PREFIX
from paradec.errors import InputError
from paradec.system import LAWS, ExactTo, System
from paradec.testing import canvas_laws
from paradec.testing.check import BLOCK, CANVAS_TARGETS, PREFIX_TARGETS, run_law, trial_of

pytestmark = pytest.mark.usefixtures("few_programs")

ROWS = catalog.SYSTEMS
PREFIX_ROWS = [name for name, row in ROWS.items() if row.slot in PREFIX.slots]
CANVAS_ROWS = [name for name, row in ROWS.items() if row.slot not in PREFIX.slots]

OPTIONS = {  # small drafts, so that programs are small and a law meets every depth
    "prompt_lookup": {"num_draft": 4, "max_ngram": 3, "min_ngram": 1},
    "jacobi": {"window": 5},
    "lookahead": {"ngram": 3, "window": 4, "guesses": 3, "pool": 32},
    "draft_model": {"num_draft": 3},
    "time_grid": {"steps": 4},
    "threshold": {"tau": 0.4},
    "freedave": {"drafts": 3, "tau": 0.4},
    "credit": {"tau": 0.4},
    "ada_block": {"delimiter": (3, 5, 8), "size": 8, "ahead": 12, "ada_block.tau": 0.05, "threshold.tau": 0.4},
    "prophet": {"early": 4.0, "mid": 2.0, "late": 1.0, "tau": 0.4},
    "end_of_text": {"end_of_text.tau": 0.05, "threshold.tau": 0.4},
    "wino": {"tau": 0.3, "tau_remask": 0.6},
    "klass": {"tau": 0.4, "kl": 0.5},
    "local_leap": {"kappa": 0.5, "tau": 0.3},
    "hierarchical": {"tau": 0.5, "low": 0.2},
    "learned_filter": {"tau": 0.5},
    "renoise": {"steps": 4, "gamma": 1.0},
}
PARTNER = {"match": "jacobi", "rejection": "jacobi", "typical": "jacobi"}
PARTNER |= dict.fromkeys(("credit", "ada_block", "prophet", "end_of_text", "freedave"), "threshold")


def partnered(name):
    """Options of a row and of what it is tried with."""
    partner = PARTNER.get(name, "")
    return partner, (OPTIONS["jacobi"] if partner == "jacobi" else {}) | OPTIONS.get(name, {})


def put_through(row: System, trial) -> None:
    for law in row.laws:
        run_law(law, trial)


@pytest.mark.parametrize("target", PREFIX_TARGETS)
@pytest.mark.parametrize("name", PREFIX_ROWS)
def test_prefix(name, target):
    """Lawful; or refused, with a sentence: only what needs a model of both engines is."""
    partner, options = partnered(name)
    try:
        trial = trial_of(ROWS[name], *PREFIX_TARGETS[target](), options=options, partner=partner)
    except InputError as refusal:
        assert name == "linear_speculation" and target != "both" and str(refusal).endswith("."), refusal
        return
    put_through(ROWS[name], trial)


def canvas_trial(name, target, cache, **more):
    """A rule on one model under one cache. Blocks are of 8, unless the rule makes its own."""
    partner, options = partnered(name)
    model, weights = CANVAS_TARGETS[target]()
    if name == "oracle" and target != "noise":
        static = trial_of(ROWS["quota"], model, weights, options={}, block=BLOCK)
        prompt = canvas_laws.prompts(model.vocab_size - 1)
        options = {"reference": canvas_laws.decode(static.method, static.params, prompt).tokens}
    block = {} if ROWS[name].slot == "region" or target in ("block", "causal") else {"block": BLOCK}
    if cache == "sub_block":
        block = {"block": BLOCK // 2} if name != "learned_filter" else {}
    trial = trial_of(ROWS[name], model, weights, options=options, partner=partner, cache=cache, **block | more)
    return dataclasses.replace(trial, per_row=name == "oracle")


@pytest.mark.parametrize("cache", POLICIES)
@pytest.mark.parametrize("target", CANVAS_TARGETS)
@pytest.mark.parametrize("name", CANVAS_ROWS)
def test_canvas(name, target, cache):
    """Admitted, and lawful; or refused, with a sentence."""
    partner = PARTNER.get(name, name)
    try:
        trial = canvas_trial(name, target, cache)
    except InputError as refusal:
        said = str(refusal)
        assert said.endswith(".") and (cache in said or any(part in said for part in (name, partner, "quota"))), said
        unlike = ROWS[name].slot in ("region", "stop", "cut") or name in ("wino", "renoise") or target == "noise"
        assert cache != "none" or unlike, "a rule is refused without a cache"
        return
    put_through(ROWS[name], trial)


def test_how_many(capsys):
    """Of the matrix above. At least the pairs whose cache fits the model are admitted for plain rules."""
    admitted = 0
    for name in CANVAS_ROWS:
        for target in CANVAS_TARGETS:
            for cache in POLICIES:
                try:
                    canvas_trial(name, target, cache) if name != "oracle" else None
                    admitted += 1
                except InputError:
                    pass
    pairs, laws = len(CANVAS_ROWS) * len(CANVAS_TARGETS) * len(POLICIES), sum(len(row.laws) for row in ROWS.values())
    prefix = len(PREFIX_ROWS) * len(PREFIX_TARGETS)
    said = (
        f"{len(ROWS)} rows, {laws} laws; {prefix} rows on models that continue a text; {pairs} pairs of rule and cache"
    )
    with capsys.disabled():
        print(f"\n{said} on models that fill a canvas, of which {admitted} are admitted")
    assert admitted >= 100


def test_no_row_is_without_laws():
    for row in ROWS.values():
        assert row.laws and set(row.laws) <= set(LAWS)
        assert row.about and row.cost and row.proof, f"{row.name} does not say what it is"
        assert set(row.meanings) == set(row.options), f"{row.name} does not say what its options mean"


@pytest.mark.parametrize("change", [{"laws": ()}, {"exact_to": ExactTo()}, {"exact_to": ExactTo("ar", None)},
                                    {"laws": ("rows",)}, {"laws": ("exact", "speed")}, {"slot": "middle"},
                                    {"needs": ("luck",)}, {"make": len}], ids=str)  # fmt: skip
def test_a_row_that_contradicts_itself_is_refused(change):
    with pytest.raises(ValueError, match="The row of ar"):
        dataclasses.replace(ROWS["ar"], **change)


def test_a_law_that_is_broken_is_told(monkeypatch):
    """Three mutants in three files: an accept rule that commits what it has not checked, a rule that looks at the other
    rows of the batch, and an engine that ends all rows with the first."""
    from paradec.decode.canvas import Canvas
    from paradec.decode.unmasking.threshold import Threshold
    from paradec.decode.verify import Match
    from paradec.testing.mutants import UnverifiedTail

    jacobi = trial_of(ROWS["jacobi"], *PREFIX_TARGETS["table"](), options=OPTIONS["jacobi"])
    wrong = dataclasses.replace(jacobi, method=jacobi.method.replace(accept=UnverifiedTail()))
    assert isinstance(jacobi.method.accept, Match)
    with pytest.raises(AssertionError, match="the target's forward says"):
        put_through(ROWS["jacobi"], wrong)

    plain = Threshold.__call__
    by_place = lambda self, view, carry: plain(self, view, carry).replace(
        accept=view.eligible & (view.confidence.sum(0, keepdims=True) > 3 * self.tau)
    )
    monkeypatch.setattr(Threshold, "__call__", by_place)  # what the other rows say counts, too
    jax.clear_caches()
    with pytest.raises(AssertionError, match="in other company"):
        put_through(ROWS["threshold"], canvas_trial("threshold", "full", "none"))
    monkeypatch.undo()

    advance = Canvas.advance
    together = lambda state: state.replace(done=state.done | state.done.any())
    monkeypatch.setattr(Canvas, "advance", lambda self, state: together(advance(self, state)))
    jax.clear_caches()
    with pytest.raises(AssertionError, match="in other company"):
        put_through(ROWS["quota"], canvas_trial("quota", "full", "none"))
    monkeypatch.undo()
    jax.clear_caches()
