"""Windows of text, characters as tokens, and synthetic text of known entropy."""

import itertools

import numpy as np
import pytest

from paradec.data import synthetic, text
from paradec.errors import InputError


def test_windows_predict_every_token_once():
    rows = text.Windows(np.arange(31), 7)
    assert len(rows) == 5
    predicted = list(itertools.chain(*(rows[i]["token"][1:] for i in range(len(rows)))))
    assert predicted == list(range(1, 31))


@pytest.mark.parametrize("length", [2, 3, 4, 7, 30, 31])
@pytest.mark.parametrize("size", [31, 32, 34, 36])
def test_windows_learn_every_token_once_to_the_end(size, length):
    rows = text.Windows(np.arange(size), length)
    learned = [row["token"][1:][row["learn"][1:]].tolist() for row in (rows[i] for i in range(len(rows)))]
    assert list(itertools.chain(*learned)) == list(range(1, size)) and all(learned)
    moved = text.Windows(np.arange(size), length, jitter=True)
    seen = set()
    for seed, i in itertools.product(range(40), range(len(moved))):
        row = moved.moved(i, np.random.default_rng(seed))
        assert row["token"].shape == row["learn"].shape == (length,) and row["learn"].any()
        seen |= set(row["token"][1:][row["learn"][1:]].tolist())
    assert size - 1 in seen


def test_moved_windows_stay_inside_and_vary():
    rows = text.Windows(np.arange(31), 7, jitter=True)
    firsts = {int(rows.moved(4, np.random.default_rng(seed))["token"][0]) for seed in range(40)}
    assert firsts == {24}  # the last one cannot move
    moved = [rows.moved(1, np.random.default_rng(seed))["token"] for seed in range(60)]
    assert {int(row[0]) for row in moved} == set(range(6, 12))
    assert all((np.diff(row) == 1).all() for row in moved)
    fixed = text.Windows(np.arange(31), 7)
    assert fixed.moved(1, np.random.default_rng(0))["token"][0] == 6


@pytest.mark.parametrize(("size", "length", "words"), [(5, 7, "less than one window"), (9, 1, "at least 2")])
def test_windows_that_cannot_be(size, length, words):
    with pytest.raises(InputError, match=words):
        text.Windows(np.arange(size), length)


def test_a_text_is_split_and_each_side_needs_a_row():
    parts = text.split("abcdefghij" * 4, 0.25)
    assert parts == ("abcdefghij" * 3, "abcdefghij")
    train, held = text.windows(*parts, text.Characters("abcdefghij").encode, 10)
    assert train.jitter and not held.jitter and (len(train), len(held)) == (4, 1)
    with pytest.raises(InputError, match="The held-out text has 2 tokens, less than one window of 5"):
        text.windows("ababababa", "ab", text.Characters("ab").encode, 5)


def test_characters():
    tokens = text.Characters("hello, world")
    assert tokens.decode(tokens.encode("held low")) == "held low" and tokens.vocab_size == 9
    with pytest.raises(InputError, match="'x' is not in the alphabet"):
        tokens.encode("x")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes("grüße".encode("latin-1"))
    (tmp_path / "a").write_text("ä")
    assert text.read([tmp_path / "a", tmp_path / "a"]) == "ää"
    (tmp_path / "marked").write_text("b\n", encoding="utf-8-sig")
    assert text.read([tmp_path / "marked", tmp_path / "marked"]) == "b\nb\n"
    assert text.read(str(tmp_path / "a")) == text.read(tmp_path / "a") == "ä"
    for name, words in (
        ("latin", "not UTF-8 text .byte 2"), ("missing", "There is no file"), (".", "cannot be read"),
        ("nul\0", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            text.read([tmp_path / name])


def test_the_chain_has_the_entropy_it_claims():
    chain = synthetic.Markov(vocab_size=8, length=400, rows=60)
    np.testing.assert_allclose(chain.stationary @ chain.law, chain.stationary, atol=1e-9)
    rows = [chain[i]["token"] for i in range(len(chain))]
    surprise = [-np.log(chain.law[a, b]) for row in rows for a, b in itertools.pairwise(row)]
    assert np.mean(surprise) == pytest.approx(chain.entropy, abs=4 * np.std(surprise) / len(surprise) ** 0.5)
    assert chain.entropy < np.log(8) - 0.3
    np.testing.assert_array_equal(chain[3]["token"], synthetic.Markov(8, 400, 60)[3]["token"])
    assert any(chain[3]["token"] != chain[4]["token"])


def test_copies():
    row = synthetic.Copy(vocab_size=20, length=12, rows=3)[2]
    assert row["token"].tolist() == [*row["token"][:5], 0, *row["token"][:5]]
    assert row["learn"].tolist() == [False] * 6 + [True] * 5 and 0 not in row["token"][:5]
