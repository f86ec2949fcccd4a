"""The accept rules: exact in law where they say so, with the published limits where they do not, and one walk."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.decode.verify import Match, Rejection, Typical
from paradec.testing import laws, tiny_table
from paradec.types import DecodeState, Scored, Tree

HOWS = {
    "as it is": dict(temperature=1.0),
    "sharpened and filtered": dict(temperature=0.7, top_k=3, top_p=0.9),
    "penalised": dict(temperature=1.2, repetition=1.5),
}


def table(seed=0, **overrides):
    model, weights = tiny_table(seed, **overrides)
    return model, {"target": weights, "draft": tiny_table(seed + 1, **overrides)[1]}


@pytest.fixture(scope="module")
def sampled():
    """Rejection of chains that another table sampled with noise of its own."""
    model, params = table()
    return model, params, speculative(model, DraftModel(model, 2, shared_noise=False), accept=Rejection(), eos=(-1,))


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_rejection_of_sampled_drafts_is_exact_in_law(sampled, how):
    laws.chi_square(*sampled, [1, 3], how=sampling(1, **how))


def test_rejection_of_deterministic_drafts_is_exact_in_law():
    """A draft without a law is one-hot."""
    model, params = table(vocab_size=3)
    method = speculative(model, PromptLookup(num_draft=2, max_ngram=2, min_ngram=1), accept=Rejection(), eos=(-1,))
    laws.chi_square(model, params, method, [0, 1, 2, 0, 1], how=sampling(1, temperature=1.0))


def test_match_with_shared_noise_is_exact_in_law():
    model, params = table(vocab_size=5)
    method = speculative(model, DraftModel(model, 2), eos=(-1,))
    laws.chi_square(model, params, method, [4], how=sampling(1, temperature=0.9))


@pytest.mark.parametrize(("rule", "rate"), [(Rejection(), 0.70), (Match(), 0.29)])
def test_marginal_acceptance_is_the_overlap_of_the_laws(rule, rate):
    """sum min(p, q) for the ratio, sum p q for matching of independent samples (the card's example)."""
    model, params = table(vocab_size=3, order=1)
    law = lambda *p: jax.tree.map(lambda x: jnp.log(jnp.broadcast_to(jnp.asarray(p), x.shape)), params["target"])
    params = {"target": law(0.5, 0.3, 0.2), "draft": law(0.2, 0.3, 0.5)}
    rows = 4096
    prompt = laws.Prompt(token=jnp.zeros((rows, 1), jnp.int32), length=jnp.ones(rows, jnp.int32))
    method = speculative(model, DraftModel(model, 1, shared_noise=False), accept=rule, eos=(-1,))
    state = laws.decode(params, method, prompt, limit=prompt.length + 4, how=sampling(rows, 1.0), slots=8)
    offered, accepted = np.asarray(state.stats.offered).sum(), np.asarray(state.stats.accepted).sum()
    assert abs(accepted / offered - rate) < 4 * np.sqrt(rate * (1 - rate) / offered)


# The rules on their own: random trees, random logits, no model.

B, N, V, DEPTH = 64, 10, 12, 4
EMPTY = DecodeState(**dict.fromkeys(DecodeState.__dataclass_fields__))


@pytest.fixture(scope="module")
def drafted():
    """Random trees (an unused and an auxiliary node among them) whose tokens are often likely ones, and a state."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(B, N, V)) * 2, jnp.float32)
    parent, depth = np.tile(np.arange(N), (B, 1)), np.zeros((B, N), int)
    token = rng.integers(V, size=(B, N))
    for b in range(B):
        children = [rng.permutation(np.argsort(-np.asarray(logits[b, n]))[:4]).tolist() for n in range(N)]
        for n in range(1, N):
            p = rng.choice([m for m in range(n) if depth[b, m] < DEPTH and children[m]])
            parent[b, n], depth[b, n], token[b, n] = p, depth[b, p] + 1, children[p].pop()
    valid, walk = np.ones((B, N), bool), np.ones((B, N), bool)
    valid[:, 5] = False
    walk[:, 7] = False
    tree = Tree(*(jnp.asarray(x, jnp.int32) for x in (token, parent, depth)), jnp.asarray(valid), jnp.asarray(walk))
    return tree, logits


def verdict(rule, drafted, temperature):
    """The rule's verdict when the target's choice is its argmax."""
    tree, logits = drafted
    how = sampling(B, temperature=temperature)
    state = EMPTY.replace(key=row_keys(0, range(B)), length=jnp.full(B, 3), sampling=how)
    scored = Scored(choice=jnp.argmax(logits, -1).astype(jnp.int32), logits=logits, hidden=None)
    return JUDGE(rule, tree, scored, state)


JUDGE = jax.jit(lambda rule, tree, scored, state: rule(tree, scored, state, DEPTH))


def typical(eps, delta, drafted, temperature=1.0):
    return verdict(Typical.of(eps, delta), drafted, temperature)


def test_typical_at_temperature_zero_is_match(drafted):
    for rule in (Typical.of(), Typical.of(0.5, 0.1)):
        want, got = verdict(Match(), drafted, 0.0), verdict(rule, drafted, 0.0)
        assert 1 < np.asarray(want.count).mean() < DEPTH + 1
        for b, n in enumerate(np.asarray(want.count)):
            assert got.count[b] == n
            assert (got.token[b, :n] == want.token[b, :n]).all() and (got.path[b, :n] == want.path[b, :n]).all()


def test_typical_never_accepts_fewer_than_greedy(drafted):
    """The likeliest child always passes: p_max >= exp(-entropy), and delta < 1."""
    for temperature in (0.5, 1.0, 2.0):
        assert (typical(0.09, 0.3, drafted, temperature).count >= verdict(Match(), drafted, 0.0).count).all()


def test_typical_accepts_more_as_its_thresholds_fall(drafted):
    counts = [
        np.asarray(typical(eps, delta, drafted).count) for eps, delta in ((2, 99), (0.3, 0.9), (0.09, 0.3), (0, 0))
    ]
    assert all((a <= b).all() for a, b in itertools.pairwise(counts))
    assert len({c.sum() for c in counts}) == 4
    assert (counts[0] == 1).all()  # a threshold of 1 or more refuses everything
    tree, _ = drafted
    usable = np.asarray(tree.valid & tree.walk)
    for b in range(B):  # a threshold of 0 accepts every usable node whose ancestors are usable
        alive = [True] + [False] * (N - 1)
        for n in range(1, N):
            alive[n] = usable[b, n] and alive[int(tree.parent[b, n])]
        assert counts[-1][b] == 1 + max(int(tree.depth[b, n]) for n in range(N) if alive[n])


def test_typical_keeps_a_path_and_ends_with_the_targets_own_token(drafted):
    tree, logits = drafted
    got = typical(0.09, 0.3, drafted)
    for b, n in enumerate(np.asarray(got.count)):
        path = np.asarray(got.path[b, :n])
        assert path[0] == 0 and (np.asarray(tree.parent[b])[path[1:]] == path[:-1]).all()
        assert (np.asarray(got.token[b, : n - 1]) == np.asarray(tree.token[b])[path[1:]]).all()
        assert got.token[b, n - 1] == jnp.argmax(logits[b, path[-1]])


def test_match_walks_the_tree():
    """Root, two siblings, an auxiliary and an unused node with the right token, and a right token under a wrong one."""
    #        0   1   2   3   4   5   6   7
    token = [9, 4, 5, 5, 7, 7, 0, 7]
    paren = [0, 0, 0, 0, 2, 1, 4, 7]
    walk = [1, 1, 1, 0, 1, 1, 1, 1]
    valid = [1, 1, 1, 1, 1, 1, 1, 0]
    choice = [5, 0, 7, 7, 0, 0, 3, 0]
    depth = [0, 1, 1, 1, 2, 2, 3, 0]
    row = lambda x, kind: jnp.asarray([x], kind)
    tree = Tree(row(token, jnp.int32), row(paren, jnp.int32), row(depth, jnp.int32), row(valid, bool), row(walk, bool))

    def walked(choice, depth=3):
        scored = Scored(choice=row(choice, jnp.int32), logits=None, hidden=None)
        found = Match()(tree, scored, EMPTY, depth)
        n = int(found.count[0])
        return found.path[0, :n].tolist(), found.token[0, :n].tolist()

    assert walked(choice) == ([0, 2, 4, 6], [5, 7, 0, 3])
    assert walked(choice, depth=2) == ([0, 2, 4], [5, 7, 0])
    assert walked([4, 3] + choice[2:]) == ([0, 1], [4, 3])  # node 5 holds 7, the target wants 3
    assert walked([9] + choice[1:]) == ([0], [9])  # the root is its own parent, and not its own child
    assert walked(choice[:4] + [1] + choice[5:]) == ([0, 2, 4], [5, 7, 1])
