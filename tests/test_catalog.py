"""The catalogue: what it says in public, its options, and that the README repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paradec import catalog, composition
from paradec.errors import InputError, UnknownName
from paradec.models.transformer import Transformer

TINY = Transformer(
    vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8, max_length=64
)


def test_public_fields_are_the_contract():
    wanted = {"name", "title", "arxiv", "family", "exact_greedy", "exact_sampled", "trained", "status"}
    for row in catalog.SYSTEMS.values():
        assert set(row.public()) == wanted | ({"slot"} if row.slot != "draft" else set())
    assert next(iter(catalog.SYSTEMS)) == "ar"


def test_readme_holds_the_table():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    assert catalog.table() in readme, "Run `paradec methods --markdown` and put its table into the README."


def test_the_page_of_methods_is_that_of_the_rows():
    page = Path(__file__).parents[1].joinpath("docs/methods.md").read_text(encoding="utf-8")
    assert page == catalog.page(), "Run `paradec methods --page > docs/methods.md`."


def test_proofs_name_tests_that_exist():
    root = Path(__file__).parents[1]
    for row in catalog.SYSTEMS.values():
        command, path, *rest = row.proof.split()
        assert command == "pytest" and (root / path).is_file(), f"{row.name}: {row.proof}"
        assert not rest or rest[1] in (root / path).read_text(encoding="utf-8"), f"{row.name}: {row.proof}"


def test_rules_are_parsed_by_their_parts():
    options = composition.parse(
        "credit+threshold", ["tau=0.7", "credit.alpha=0.5", "block=16", "synchronous_blocks=false"]
    )
    assert options == {"tau": 0.7, "credit.alpha": 0.5, "block": 16, "synchronous_blocks": False}
    assert composition.parse("ada_block", ["delimiter=198,271"]) == {"delimiter": (198, 271)}
    for bad, sentence in (
        ("tau", "has no '='"),
        ("tau=high", "cannot be 'high'"),
        ("synchronous_blocks=maybe", "cannot be 'maybe'"),
    ):
        with pytest.raises(InputError, match=sentence):
            composition.parse("threshold", [bad])
    with pytest.raises(UnknownName, match="Did you mean 'tau'"):
        composition.parse("threshold", ["taw=1"])
    with pytest.raises(UnknownName, match="Did you mean 'local_leap'"):
        composition.parse("threshold+local_lep", [])


ALONE = ("ar", "prompt_lookup", "jacobi", "lookahead")


@pytest.mark.parametrize("name", ALONE)
def test_every_method_builds(name):
    method = composition.build(name, TINY, eos=[1, 2])
    assert method.eos.tolist() == [1, 2]
    assert method.drafter.nodes >= method.drafter.depth + 1


def test_unknown_method_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'prompt_lookup'"):
        catalog.find("promt_lookup")


def test_unknown_option_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'num_draft'"):
        composition.parse("prompt_lookup", ["numdraft=3"])
    with pytest.raises(UnknownName, match="option of ar"):
        composition.build("ar", TINY, eos=(), windw=3)


def test_options_are_typed():
    options = composition.parse("prompt_lookup", ["num_draft=3", "latest=false", "accept=rejection"])
    assert options == {"num_draft": 3, "latest": False, "accept": "rejection"}
    for bad in ("num_draft=three", "latest=maybe", "num_draft"):
        with pytest.raises(InputError):
            composition.parse("prompt_lookup", [bad])


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("prompt_lookup", {"num_draft": 0}, "at least 1"),
        ("lookahead", {"ngram": 2}, "at least 3"),
        ("prompt_lookup", {"min_ngram": 9}, "never drafts"),
        ("lookahead", {"accept": "rejection"}, "verifies chains"),
        ("draft_model", {}, "second model"),
        ("medusa", {}, "needs heads"),
        ("medusa", {"accept": "rejection"}, "verifies chains"),
        ("jacobi", {"accept": "hope"}, "accept rule"),
    ],
)
def test_impossible_options(name, options, hint):
    with pytest.raises((InputError, UnknownName), match=hint):
        composition.build(name, TINY, eos=(), **options)


def test_a_draft_models_table_may_be_padded_otherwise():
    """Whether two models share a tokenizer is no matter of sizes; `lm` compares the tokenizers."""
    other = Transformer(vocab_size=9, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8)
    assert composition.build("draft_model", TINY, eos=(), draft=other).drafter.vocab_size == TINY.vocab_size
    with pytest.raises(InputError, match="needs a second model"):
        composition.build("draft_model", TINY, eos=())


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [("jacobi", {"window": 2.5}, "whole number"), ("jacobi", {"window": "3"}, "whole number"),
     ("jacobi", {"window": True}, "whole number"), ("jacobi", {"window": 10**9}, "at most 2048"),
     ("lookahead", {"window": 500, "ngram": 9}, "would look at"), ("prompt_lookup", {"latest": 1}, "True or False"),
     ("prompt_lookup", {"max_ngram": 500}, "at most 64"), ("jacobi", {"accept": None}, "accept rule")],
    ids=str,
)  # fmt: skip
def test_options_are_checked_by_kind_and_size(name, options, hint):
    with pytest.raises((InputError, UnknownName), match=hint):
        composition.build(name, TINY, eos=(), **options)


def test_promises_depend_on_rule_and_temperature():
    assert composition.promises("jacobi", {}, 0.0) and composition.promises("jacobi", {}, 0.8)
    assert composition.promises("prompt_lookup", {"accept": "typical"}, 0.0)
    assert not composition.promises("prompt_lookup", {"accept": "typical"}, 0.8)
    assert not composition.promises("prompt_lookup", {"accept": "rejection"}, 0.8)
