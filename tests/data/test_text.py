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


def test_characters():
    tokens = text.Characters("hello, world")
    assert tokens.decode(tokens.encode("held low")) == "held low" and tokens.vocab_size == 9
    with pytest.raises(InputError, match="'x' is not in the alphabet"):
        tokens.encode("x")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes("grüße".encode("latin-1"))
    (tmp_path / "a").write_text("ä")
    assert text.read([tmp_path / "a", tmp_path / "a"]) == "ää"
    for name, words in (("latin", "not UTF-8 text .byte 2"), ("missing", "There is no file"), (".", "cannot be read")):
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
