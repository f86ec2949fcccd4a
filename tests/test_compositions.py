"""Every composition of the catalogue, on every kind of model, under every cache: lawful, or refused with a sentence.

Which are refused is written down here once more (`refusals`), each reason with the two things that do not go together,
so that nothing is refused by accident and nothing is admitted by one. Of the admitted ones a cover of all pairs is
decoded and put through the laws of the canvas engine; `PARADEC_CASES=n` decodes n more, drawn at random.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import catalog, composition, engines
from paradec.decode.canvas_cache import POLICIES
from paradec.decode.unmasking import credit, freedave
from paradec.errors import InputError
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.nemotron_diffusion import NemotronDiffusion
from paradec.testing import canvas_laws, laws
from paradec.testing.check import BLOCK, CANVAS_TARGETS, Maskless, sample_components
from paradec.testing.tiny import ragged_prompts, tiny_transformer

pytestmark = pytest.mark.usefixtures("few_programs")

ROWS = catalog.SYSTEMS
SELECTS = tuple(name for name, row in ROWS.items() if row.slot == "select")
OTHERS = {slot: tuple(name for name, row in ROWS.items() if row.slot == slot)
          for slot in ("rewrite", "region", "stop", "cut", "wrap")}  # fmt: skip
VOCAB = 33
ENDS = (3, 17)
OPTIONS = {  # such that a tiny random model gets to every branch: thresholds are sometimes passed, delimiters proposed
    "quota": {"per_call": 2},
    "time_grid": {"steps": 4},
    "threshold": {"tau": 0.3},
    "factor": {"f": 1.5},
    "entropy": {"delta": 2.0},
    "eb": {"gamma": 2.0},
    "klass": {"tau": 0.2, "kl": 0.5},
    "hierarchical": {"tau": 0.5, "low": 0.2},
    "local_leap": {"kappa": 0.5, "tau": 0.2},
    "learned_filter": {"tau": 0.5},
    "wino": {"tau": 0.2, "tau_remask": 0.5},
    "renoise": {"steps": 4, "gamma": 1.0},
    "oracle": {"reference": np.random.default_rng(7).integers(VOCAB - 1, size=(3, canvas_laws.SLOTS)).astype(np.int32)},
    "ada_block": {"delimiter": (2, 5, 8, 11), "tau": 0.05, "size": BLOCK, "ahead": BLOCK},
    "prophet": {"early": 3.0, "mid": 1.5, "late": 0.5},
    "end_of_text": {"tau": 0.05},
    "freedave": {"drafts": 3},
}


class Case(NamedTuple):
    """One composition on one kind of model."""

    parts: tuple[str, ...]
    cache: str
    target: str

    def __str__(self) -> str:
        return f"{'+'.join(self.parts)}-{self.cache}-{self.target}"

    @property
    def pairs(self) -> set[tuple[str, ...]]:
        """What stands together here: parts two by two, and each part with the cache and the model."""
        together = itertools.combinations(self.parts, 2)
        return {*together, *((part, self.cache, self.target) for part in self.parts)}


def cases() -> Iterator[Case]:
    """All of them: a select rule, and each other slot filled or not."""
    filled = itertools.product(SELECTS, *(("", *names) for names in OTHERS.values()))
    for parts, cache, target in itertools.product(filled, POLICIES, CANVAS_TARGETS):
        yield Case(tuple(filter(None, parts)), cache, target)


def refusals(case: Case) -> list[tuple[str, str]]:
    """Why a composition is refused: pairs of a part or cache, which its sentence names, and what it does not suit."""
    parts, cache, target = case
    why = []
    if cache in ("dual", "prefix") and target in ("block", "causal"):
        why.append((cache, target))  # one bidirectional call would spoil what a block-causal model may keep
    if (cache in ("block", "sub_block") and target != "block") or (cache == "causal" and target != "causal"):
        why.append((cache, target))
    for part in parts:
        slot = ROWS[part].slot
        if slot == "region" and target in ("block", "causal"):
            why.append((part, target))  # the mask of the model fixes its blocks
        if slot in ("stop", "cut") and cache != "none":
            why.append((part, cache))  # they read all that is open
        if slot in ("stop", "cut") and target == "causal":
            why.append((part, target))
        if part == "wino" and target in ("shifted", "causal"):
            why.append((part, target))  # no shadow rows, or one place off
        if slot == "wrap" and "wino" in parts:
            why.append((part, "wino"))  # it takes tokens back
        if slot == "wrap" and "renoise" in parts:
            why.append((part, "renoise"))  # nobody can guess what it will draw
        if slot == "wrap" and target == "noise":
            why.append((part, target))  # which only renoise decodes
        if slot == "select" and (part == "renoise") != (target == "noise"):
            why.append((part, target))  # noise where there is a mask token, or the other way round
    return why


ADMITTED = tuple(case for case in cases() if not refusals(case))


@functools.cache
def small(target: str):
    """A model of one layer of each kind in `CANVAS_TARGETS`, and its weights."""
    base, weights = tiny_transformer(1, vocab_size=VOCAB, width=16, num_layers=1, mlp_width=24)
    if target == "noise":
        return Maskless(base), weights.replace(norm=weights.norm * 3.0)
    more = {"full": {}, "block": {"block": BLOCK}, "shifted": {"shift": True}, "causal": {"block": BLOCK}}[target]
    kind = NemotronDiffusion if target == "causal" else BlockDiffusion
    return kind(base, mask_id=VOCAB - 1, **more), weights.replace(norm=weights.norm * 3.0)


def settings(case: Case) -> dict:
    """The engine's options: blocks of `BLOCK`, and under the cache of sub-blocks of half of it where a rule can."""
    own = any(ROWS[part].slot == "region" for part in case.parts) or case.target in ("block", "causal")
    if case.cache == "sub_block" and "learned_filter" not in case.parts:
        return {"cache": case.cache, "block": BLOCK // 2}
    return {"cache": case.cache} | ({} if own else {"block": BLOCK})


def composed(case: Case):
    """The method of a case, on its small model, and the parameters. Raises `InputError`."""
    model, weights = small(case.target)
    options = {f"{part}.{key}": value for part in case.parts for key, value in OPTIONS.get(part, {}).items()}
    components = _filter() if "learned_filter" in case.parts else {}
    names = "+".join(case.parts)
    method = composition.compose(model, names, options, eos=ENDS, components=components, **settings(case))
    return method, {"target": weights}


@functools.cache
def _filter():
    return sample_components(ROWS["learned_filter"], *small("full"))


def put_through(case: Case) -> None:
    """The laws of the canvas engine that hold for every composition. Raises `AssertionError`."""
    method, params = composed(case)
    prompt = canvas_laws.prompts(VOCAB - 1)
    state = canvas_laws.decode(method, params, prompt)
    canvas_laws.trace(method, prompt, state)
    canvas_laws.budget(method, prompt, state)
    canvas_laws.rows(method, params, prompt, permute="oracle" not in case.parts)  # which holds a text for each row
    if method is not canvas_laws.base(method):
        canvas_laws.texts_of_base(method, params, prompt)


def cover(admitted: tuple[Case, ...], held: Callable[[Case], set]) -> tuple[Case, ...]:
    """Cases that hold all that any admitted one holds: each next one brings the most new, the first of equals."""
    pairs, chosen = {case: held(case) for case in admitted}, []
    left = set().union(*pairs.values())
    while left:
        chosen.append(max(pairs, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    return tuple(chosen)


def two_by_two(case: Case) -> set[tuple[str, ...]]:
    """Parts two by two; the cache with the model, and with every part that is no select rule, which are each tried
    under every cache on every model in `test_catalogue_laws`."""
    others = [part for part in case.parts if part not in SELECTS]
    return {*itertools.combinations(case.parts, 2), (case.cache, case.target), *((case.cache, part) for part in others)}


FOUND = (
    Case(("eb", "credit", "freedave"), "dual", "full"),  # an entropy that depended on how its program was compiled
    Case(("time_grid", "prophet", "end_of_text"), "none", "full"),  # committed positions behind an end that moved
)
"""Compositions that have broken a law."""
TRIED = tuple(dict.fromkeys((*FOUND, *cover(ADMITTED, two_by_two))))
if "PARADEC_CASES" in os.environ:
    RANDOM = random.Random(11).sample(ADMITTED, min(int(os.environ["PARADEC_CASES"]), len(ADMITTED)))
    TRIED = tuple(dict.fromkeys((*TRIED, *cover(ADMITTED, lambda case: case.pairs), *RANDOM)))


@pytest.mark.parametrize("target", CANVAS_TARGETS)
def test_admitted_or_refused_with_a_sentence(target):
    """Each composition as it is written down above, and no sentence names a part that has nothing to do with it."""
    for case in cases():
        if case.target == target:
            check_admission(case)


def check_admission(case: Case) -> None:
    """Raises `AssertionError` for a composition that is admitted and should not be, or the other way round."""
    why = refusals(case)
    try:
        composed(case)
    except InputError as refusal:
        said = str(refusal)
        assert why, f"{case} is refused: {said}"
        assert said.endswith(".") and ". " not in said, said
        assert any(named in said for named, _ in why), f"{case}: {said} names none of {why}"
    else:
        assert not why, f"{case} is admitted, and {why[0][0]} does not suit {why[0][1]}"


def test_how_many():
    """No pair is refused by accident: each occurs among the admitted, or is itself a reason."""
    every = set(cases())
    assert len(every) == len(SELECTS) * 2**5 * len(POLICIES) * len(CANVAS_TARGETS) > 9_000
    assert 1_000 < len(ADMITTED) < 3_000
    held = set().union(*(case.pairs for case in ADMITTED))
    for case in every:
        for pair in case.pairs - held:
            alone = {name for why in refusals(case) for name in why}
            assert len(alone & {*pair}) > 1, f"{pair} is never admitted, for reasons of other things: {refusals(case)}"
    assert {pair for case in TRIED for pair in itertools.combinations(case.parts, 2)} == {
        p for p in held if len(p) == 2
    }


@pytest.mark.parametrize("case", TRIED, ids=str)
def test_decodes_lawfully(case):
    put_through(case)


PREFIX_OPTIONS = {
    "prompt_lookup": {"num_draft": 3, "max_ngram": 2, "min_ngram": 1},
    "jacobi": {"window": 3},
    "lookahead": {"ngram": 3, "window": 3, "guesses": 2, "pool": 8},
    "draft_model": {"num_draft": 2},
    "medusa": {"num_draft": 7},
}
DRAFTS, ACCEPTS = (tuple(n for n, row in ROWS.items() if row.slot == slot) for slot in ("draft", "accept"))


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_drafts_and_accept_rules(draft, accept):
    """Each accept rule is plain decoding at temperature 0, whatever drafts; or it says that it cannot judge trees."""
    model, weights = small("causal")
    components = sample_components(ROWS[draft], model, weights)
    tree = draft in ("lookahead", "medusa")
    make = lambda: composition.compose(
        model, f"{draft}+{accept}", PREFIX_OPTIONS.get(draft, {}), eos=(-1,), components=components
    )
    if accept == "rejection" and tree:
        with pytest.raises(InputError, match=rf"^The rejection rule verifies chains; {draft} drafts a tree"):
            make()
        return
    method = make()
    params = {"target": weights} | {name: part.params for name, part in components.items()}
    prompt = ragged_prompts(1, VOCAB - 1, lengths=(9, 1, 5), width=16)
    state = laws.decode(params, method, prompt, limit=[24, 12, 24], slots=32)
    laws.exact(model, params, method, state)
    laws.trace(state, method.drafter.depth)


@pytest.mark.parametrize("draft", (*DRAFTS, *ACCEPTS))
def test_parts_of_two_engines(draft):
    for other in (*SELECTS, *itertools.chain(*OTHERS.values())):
        with pytest.raises(InputError, match="parts of two kinds of decoding, and do not go together") as refusal:
            composition.compose(small("causal")[0], f"{draft}+{other}", eos=(3,))
        assert draft in str(refusal.value) and other in str(refusal.value)


def test_a_refusal_that_is_lost_or_new_is_told(monkeypatch):
    """Mutants of `engines.problems`."""
    both, plain = Case(("wino", "freedave"), "none", "full"), Case(("quota", "credit"), "none", "full")
    with monkeypatch.context() as patch:
        patch.setattr(engines, "problems", lambda method, rows: ())
        with pytest.raises(AssertionError, match="is admitted, and freedave does not suit wino"):
            check_admission(both)
    with monkeypatch.context() as patch:
        patch.setattr(engines, "problems", lambda method, rows: ["quota has no mind to."] if "rewrite" in rows else ())
        with pytest.raises(AssertionError, match="is refused: quota has no mind to"):
            check_admission(plain)
    check_admission(both)
    check_admission(plain)


def test_a_composition_that_breaks_a_law_is_told(monkeypatch):
    """Mutants: drafts that are taken for true, and credit that counts for the row beside it."""
    case = Case(("threshold", "credit", "freedave"), "none", "full")
    with monkeypatch.context() as patch:
        patch.setattr(freedave, "agree", lambda a, b: jnp.ones_like(a.done))
        jax.clear_caches()
        with pytest.raises(AssertionError):
            put_through(case)
    plain = credit.Credit.__call__
    with monkeypatch.context() as patch:
        moved = lambda self, view, carry: plain(self, view, jnp.roll(carry, 1, axis=0))
        patch.setattr(credit.Credit, "__call__", moved)
        jax.clear_caches()
        with pytest.raises(AssertionError, match="in other company"):
            put_through(Case(("threshold", "credit"), "none", "full"))
    jax.clear_caches()
