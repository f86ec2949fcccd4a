"""Medusa on tables, where a head can be made to know, or not to know, what comes k tokens later; and its trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.decode.drafters.medusa import Medusa
from paradec.decode.speculative import speculative
from paradec.models.heads import DraftHeads, HeadWeights, MedusaHeads, ShortList
from paradec.models.ranked_tree import MC_SIM_7B_63, best_first, expected, ranked, spread
from paradec.ops.mask import ancestors
from paradec.testing import laws, tiny_table
from paradec.types import OPEN, Prompt

VOCAB, HEADS = 48, 3
NEXT = np.random.default_rng(4).permutation(VOCAB)  # the text that this table writes
PROMPT = Prompt(token=jnp.asarray([[5, NEXT[5]], [7, 0]], jnp.int32), length=jnp.asarray([2, 1], jnp.int32))
CHAIN = ((0,), (0, 0), (0, 0, 0))

# Vicuna-7B, Medusa-1: cumulative accuracy of the best 1 to 5 guesses of each head (training log of the published run).
CUMULATIVE = np.array([
    [.560, .672, .727, .760, .780], [.316, .424, .485, .528, .563], [.201, .288, .348, .383, .417],
    [.147, .225, .274, .311, .340], [.118, .187, .235, .272, .300],
])  # fmt: skip
VICUNA = np.pad(np.diff(CUMULATIVE, prepend=0.0), ((0, 0), (0, 5)))
STAGE2 = spread(
    {(): 10, (0,): 10, (1,): 5, (2,): 2, (3,): 2, (0, 0): 9, (0, 1): 4, (0, 2): 2, (1, 0): 3, (0, 0, 0): 4}
    | dict.fromkeys([(4,), (5,), (6,), (7,), (0, 3), (0, 4), (0, 5), (1, 1), (2, 0)], 1)
    | dict.fromkeys([(0, 0, 1), (0, 0, 2), (0, 1, 0)], 1)
)


def target():
    model, weights = tiny_table(vocab_size=VOCAB, order=1)
    return model, weights.replace(logits=30 * jax.nn.one_hot(np.append(NEXT, 0), VOCAB))


def knowing(guess):
    """Heads whose guess r at token x is `guess(head, rank, x)`: the hidden state of a table is its token, one-hot."""
    heads = MedusaHeads(num_heads=HEADS, width=VOCAB, vocab_size=VOCAB)
    unembed = np.zeros((HEADS, VOCAB, VOCAB), np.float32)
    for k in range(HEADS):
        for x in range(VOCAB):
            for rank in range(3):
                unembed[k, guess(k, rank, x), x] = 3 - rank
    zero = jnp.zeros((HEADS, 1, VOCAB, VOCAB))
    return heads, HeadWeights(linear=zero, bias=zero[:, :, 0], unembed=jnp.asarray(unembed))


def ahead(x, steps):
    for _ in range(steps):
        x = NEXT[x]
    return x


def sizes(guess, tree, short=None):
    """Tokens of every call of both rows, for heads with these guesses."""
    model, weights = target()
    heads, known = knowing(guess)
    if short is not None:
        heads, known = MedusaHeads(num_heads=HEADS, width=VOCAB), known.replace(unembed=None)
    method = speculative(model, Medusa(heads=heads, tree=tree), eos=(-1,))
    state = laws.decode({"target": weights, "heads": DraftHeads(known, short)}, method, PROMPT)
    laws.exact(model, {"target": weights}, method, state)
    laws.trace(state, method.drafter.depth)
    at = [np.asarray(row)[(np.asarray(row) > 0) & (np.asarray(row) != OPEN)] for row in state.committed_at]
    return [np.bincount(row)[1:].tolist() for row in at]


def right(k, rank, x):
    return ahead(x, k + 2 + rank)  # rank 0 is right; others are other tokens of the text


def test_heads_that_know_fill_the_tree():
    assert sizes(right, CHAIN)[0] == [4] * 10
    assert sizes(right, ((0,), (1,), (0, 0)))[0] == [3] * 13 + [1]


def test_a_prompt_of_one_token_has_no_hidden_state_to_guess_from():
    assert sizes(right, CHAIN)[1] == [1] + [4] * 9 + [3]


def test_heads_that_are_wrong_cost_nothing_but_the_call():
    assert sizes(lambda k, rank, x: ahead(x, k + 3 + rank), CHAIN)[0] == [1] * 40


def test_a_guess_further_down_the_ranks_is_found():
    """Head 0 has the right token second, head 1 third: only the tree with that path accepts two."""
    second = lambda k, rank, x: right(k, (1, 0, 2)[rank] if k == 0 else (2, 1, 0)[rank], x)
    assert sizes(second, ((0,), (1,), (1, 0), (1, 1), (1, 2)))[0][:13] == [3] * 13
    assert sizes(second, ((0,), (1,), (1, 0), (1, 1)))[0][:20] == [2] * 20


def test_calls_are_those_of_a_simulation():
    """Heads right for some tokens and wrong for others: a call commits one more than its run of right heads."""
    knows = np.random.default_rng(8).random((HEADS, VOCAB)) < np.array([[0.8], [0.6], [0.5]])
    guess = lambda k, rank, x: right(k, rank, x) if knows[k, x] else ahead(x, k + 9 + rank)
    # The hidden state is that of the token before the root.
    x, want = int(PROMPT.token[0, 0]), []
    while sum(want) < 40:
        run = next((k for k in range(HEADS) if not knows[k, x]), HEADS)
        want.append(min(1 + run, 40 - sum(want)))
        x = ahead(x, 1 + run)
    assert len(set(want)) > 2
    assert sizes(guess, CHAIN)[0] == want


def test_a_short_list_drafts_only_its_own_tokens():
    """With a table of the right guesses of one head only some tokens can be drafted; the text stays the same."""
    listed = np.random.default_rng(2).permutation(VOCAB)[: VOCAB // 2]
    one = np.eye(VOCAB, dtype=np.float32)[[ahead(t, VOCAB_CYCLE - 2) for t in listed]]
    short = ShortList(token=jnp.asarray(listed, jnp.int32), table=jnp.asarray(one))
    x, want = int(PROMPT.token[0, 0]), []
    while sum(want) < 40:  # without layers every head guesses the token two ahead, so only head 0 can be right
        hit = ahead(x, 2) in listed
        want.append(min(1 + hit, 40 - sum(want)))
        x = ahead(x, 1 + hit)
    assert sizes(right, ((0,),), short)[0] == want and 1 in want and 2 in want


VOCAB_CYCLE = int(np.lcm.reduce([next(n for n in range(1, VOCAB + 1) if ahead(x, n) == x) for x in range(VOCAB)]))


def test_new_heads_repeat_the_base():
    heads = MedusaHeads(num_heads=2, width=8, num_layers=2)
    from paradec import params

    weights = params.init(heads.specs(), jax.random.key(0))
    state, table = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((1, (3, 8)), (2, (5, 8))))
    np.testing.assert_allclose(heads.logits(weights, state, table), [state @ table.T] * 2, atol=1e-5)


def test_a_ranked_tree_is_the_published_one():
    parent, depth, rank = ranked(MC_SIM_7B_63)
    assert np.bincount(depth).tolist() == [1, 10, 28, 23, 2] and len(set(range(64)) - set(parent)) == 42
    see = np.asarray(ancestors(jnp.asarray(parent)[None]))[0]
    assert (see.sum(-1) == depth + 1).all() and rank.max() == 9
    assert np.bincount(ranked(STAGE2)[1]).tolist() == [1, 10, 23, 23, 7]


@pytest.mark.parametrize("tree", [((0, 0), (0,)), ((0,), (0,)), ((),), ((1, 0),)])
def test_a_path_without_its_parent_is_refused(tree):
    with pytest.raises(ValueError, match="stands before its parent"):
        ranked(tree)


def test_expected_tokens_are_those_of_the_card():
    """Computed from the three-digit accuracies above, as published for these trees."""
    grown = best_first(VICUNA[:, :5], 63)
    assert expected(VICUNA, MC_SIM_7B_63) == pytest.approx(2.340, abs=1e-3)
    assert expected(VICUNA, STAGE2) == pytest.approx(2.352, abs=1e-3)
    assert expected(VICUNA, grown) == pytest.approx(2.385, abs=1e-3)
    assert expected(VICUNA, [(0,) * n for n in range(1, 6)]) == pytest.approx(1.778, abs=1e-3)
    assert max(map(len, grown)) == 4


def test_the_best_tree_grows_node_by_node():
    grown = best_first(VICUNA, 63)
    ranked(grown)  # parents come first
    assert all((*p[:-1], p[-1] - 1) in grown for p in grown if p[-1]), "a guess without the better ones beside it"
    gains = np.diff([expected(VICUNA, grown[:n]) for n in range(64)])
    assert (gains > 0).all() and (np.diff(gains) <= 1e-12).all()


def test_the_best_tree_is_the_best_of_all():
    """Against every tree of four nodes over two heads and two guesses."""
    from itertools import combinations

    accuracy = np.array([[0.5, 0.3], [0.6, 0.2]])
    every = [(a,) for a in (0, 1)] + [(a, b) for a in (0, 1) for b in (0, 1)]
    closed = [t for t in combinations(every, 4) if all(not p[:-1] or p[:-1] in t for p in t)]
    assert expected(accuracy, best_first(accuracy, 4)) == pytest.approx(max(expected(accuracy, t) for t in closed))


def test_guesses_that_are_worth_nothing_do_not_grow():
    assert best_first(np.array([[0.5, 0.0], [0.0, 0.0]]), 9) == ((0,),)
