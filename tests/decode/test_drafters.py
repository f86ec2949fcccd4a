"""What the papers promise of each drafter, on tables whose text is known beforehand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.decode import loop
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.lookahead import Lookahead, LookaheadCarry
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.decode.verify import Rejection
from paradec.ops.mask import ancestors
from paradec.testing import laws, tiny_table, tiny_transformer
from paradec.testing.drafters import OracleDrafter
from paradec.types import OPEN, Prompt, Rows

VOCAB = 64


def table(next_token=None, vocab=VOCAB):
    """A table in which each token is followed by `next_token` of it, for certain; by a uniform one if not given."""
    model, weights = tiny_table(vocab_size=vocab, order=1, spread=0.0)
    if next_token is not None:
        after = jnp.asarray([next_token(t) for t in range(vocab + 1)])
        weights = weights.replace(logits=30 * jax.nn.one_hot(after, vocab))
    return model, {"target": weights, "draft": weights}


def prompts(*texts):
    width = max(map(len, texts))
    token = jnp.asarray([list(t) + [0] * (width - len(t)) for t in texts], jnp.int32)
    return Prompt(token=token, length=jnp.asarray([len(t) for t in texts], jnp.int32))


def started(method, params, prompt, slots=64):
    """The state of a greedy decode of 41 tokens before its first call."""
    rows = len(prompt.length)
    key = row_keys(0, range(rows))
    return loop.start(method, params, prompt, prompt.length + 41, key, sampling(rows), slots=slots, chunk=8)


def sizes(state, row=0):
    """How many tokens each call of a row committed."""
    at = np.asarray(state.committed_at[row])
    return np.bincount(at[(at > 0) & (at != OPEN)])[1:].tolist()


LOOKUP = PromptLookup(num_draft=7, max_ngram=3, min_ngram=1)


def test_lookup_follows_a_loop():
    """A loop of period 5: every call commits the draft and one more, however long the draft against the period."""
    model, params = table(lambda t: (t + 1) % 5)
    prompt = prompts(range(5), [*range(5), 0, 1, 2], [3, 4, 0, 1, 2, 3])
    state = laws.decode(params, speculative(model, LOOKUP), prompt, limit=prompt.length + 41)
    assert sizes(state, 0)[0] == 1  # nothing has repeated yet
    assert sizes(state, 1) == sizes(state, 2) == [8, 8, 8, 8, 8, 1]


def test_lookup_in_text_without_repetition_is_plain_decoding():
    """Also in cost: no call is wider than one token."""
    model, params = table(lambda t: (t + 1) % VOCAB)
    prompt = prompts([3], range(9, 17), [7, 8, 9])
    state = laws.decode(params, speculative(model, LOOKUP), prompt, limit=prompt.length + 40)
    assert all(sizes(state, b) == [1] * 40 for b in range(3))
    assert state.stats.queries.tolist() == state.calls.tolist() == [40, 40, 40]


@pytest.mark.parametrize(("latest", "follower"), [(True, 8), (False, 5)])
def test_lookup_takes_the_longest_match_then_the_latest_or_the_earliest(latest, follower):
    def drafted(text, **sizes):
        drafter = PromptLookup(num_draft=2, latest=latest, **sizes)
        draft, found = drafter.look_up(started(speculative(table()[0], drafter), table()[1], prompts(text)))
        return draft[0].tolist() if found[0] else None

    assert drafted([2, 5, 2, 8, 2], max_ngram=1, min_ngram=1)[0] == follower
    text = [1, 2, 3, 4, 9, 2, 5, 2, 8, 9, 2]  # ends in 9 2, which 5 followed
    assert drafted(text, max_ngram=2, min_ngram=1) == [5, 2]
    assert drafted(text, max_ngram=3, min_ngram=3) is None


def test_jacobi_gains_nothing_on_a_chain_of_hashes():
    """Each token decides the next, and no guess is ever right: as many calls as tokens."""
    model, params = table(lambda t: (t + 1) % VOCAB)
    state = laws.decode(params, speculative(model, Jacobi(window=6)), prompts([3]), limit=[44])
    assert sizes(state) == [1] * 43


def test_jacobi_where_the_model_ignores_the_window():
    """One call computes what the next one confirms: a window of W is right but for the fresh guesses in it."""
    W, (model, params) = 6, table()
    method = speculative(model, Jacobi(window=W))
    state = laws.decode(params, method, prompts([3]), limit=[90], how=sampling(1, temperature=1.0))
    each = sizes(state)
    assert all(b >= W + 2 - a for a, b in itertools.pairwise(each)), each
    assert len(each) <= 2 * 89 / (W + 2) + 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rule", [None, Rejection()], ids=["match", "rejection"])
def test_a_draft_model_that_is_the_target_is_always_right(rule, temperature):
    """Also by the ratio, with noise of its own: p = q accepts everything."""
    model, weights = tiny_table(vocab_size=29)
    method = speculative(model, DraftModel(model, 3, shared_noise=rule is None), accept=rule)
    prompt = prompts([5], [1, 2, 3, 4, 5, 6, 7], [8, 9])
    how = sampling(3, temperature=temperature)
    state = laws.decode({"target": weights, "draft": weights}, method, prompt, how=how)
    assert all(sizes(state, b) == [4] * 10 for b in range(3))
    assert state.stats.drafts.tolist() == [30] * 3


def test_tokens_per_call_of_an_oracle_that_errs():
    """(1 - a^(k+1)) / (1 - a) tokens a call for k drafts, each right with probability a (2211.17192, equation 1)."""
    k, rows, new, (model, params) = 4, 64, 120, table(lambda t: (t + 1) % VOCAB)
    prompt = prompts(*[[r % VOCAB] for r in range(rows)])
    text = (jnp.arange(rows)[:, None] + jnp.arange(128)[None]) % VOCAB
    for a in (0.3, 0.8):
        method = speculative(model, OracleDrafter.of(text, k, VOCAB, accuracy=a))
        state = laws.decode(params, method, prompt, limit=prompt.length + new)
        each = np.concatenate([sizes(state, b)[:-1] for b in range(rows)])  # the last call is cut by the limit
        p = np.append((1 - a) * a ** np.arange(k), a**k)
        mean, square = p @ np.arange(1, k + 2), p @ np.arange(1, k + 2) ** 2
        assert mean == pytest.approx((1 - a ** (k + 1)) / (1 - a))
        assert abs(each.mean() - mean) < 3 * np.sqrt((square - mean**2) / len(each))


# Lookahead: the published mask, and what its pool does.


@pytest.fixture(scope="module")
def looking():
    """A lookahead tree with a full window and three n-grams in the pool, and what is needed to score it."""
    drafter = Lookahead(ngram=4, window=5, guesses=3, pool=8)
    model, weights = tiny_transformer()
    params, prompt = {"target": weights}, prompts([9])  # one token: nothing to prefill
    state = speculative(model, drafter).init(params, prompt, prompt.length + 9, row_keys(0, [0]), sampling(1), 32)
    grams = jnp.asarray([[9, 20, 21, 22], [9, 30, 31, 32], [9, 20, 21, 42], [8, 1, 1, 1]] + [[0] * 4] * 4)
    carry = LookaheadCarry(
        window=jnp.arange(50, 65).reshape(1, 3, 5),
        filled=jnp.ones(1, bool),
        pool=grams[None],
        age=jnp.asarray([[3, 2, 1, 4, -1, -1, -1, -1]]),
    )
    state = state.replace(carry=carry)
    return drafter, model, params, state, drafter.propose(params, state)[0]


def test_lookahead_mask_is_the_published_one(looking):
    tree = looking[-1]
    R, W, G = 3, 5, 3
    see = np.asarray(ancestors(tree.parent))[0]
    cell = lambda r, j: r * W + j
    for r in range(R):
        for j in range(W):
            want = {cell(0, i) for i in range(j + 1)} | {cell(i, j) for i in range(r + 1)}
            assert set(np.flatnonzero(see[cell(r, j)])) == want, (r, j)
            assert tree.depth[0, cell(r, j)] == r + j
    token, first = np.asarray(tree.token)[0], R * W
    assert token[0] == 9 and not np.asarray(tree.walk)[0, 1:first].any()
    seen = {tuple(token[np.flatnonzero(see[n])]) for n in range(first, first + G * 3) if tree.valid[0, n]}
    tries = {(9, 20), (9, 20, 21), (9, 20, 21, 22), (9, 30), (9, 30, 31), (9, 30, 31, 32), (9, 20, 21, 42)}
    assert seen == tries  # the root, own n-gram, nothing of the window; equal beginnings once


def test_window_and_guesses_of_lookahead_do_not_touch(looking):
    """Another guess changes no logit of the window, another window none of a guess; another root changes all."""
    _, model, params, state, tree = looking
    size = 15
    score = jax.jit(lambda token: model.extend(
        params["target"], state.cache, Rows(token=token, depth=tree.depth, parent=tree.parent))[0].logits[0]
    )  # fmt: skip
    before, valid = score(tree.token), np.asarray(tree.valid)[0]
    changed = lambda token: np.asarray((score(token) != before).any(-1)) & valid
    guess, window, root = np.arange(len(valid)) >= size, np.arange(len(valid)) < size, np.arange(len(valid)) == 0
    assert (changed(tree.token.at[0, size:].add(1)) == guess & valid).all()
    assert (changed(tree.token.at[0, 1:size].add(1)) == window & ~root).all()
    assert (changed(tree.token.at[0, 0].add(1)) == valid).all()


def test_lookahead_with_all_ngrams_in_its_pool():
    """N - 1 guessed tokens and the target's own: N tokens a call."""
    model, params = table(lambda t: (t + 1) % VOCAB)
    method = speculative(model, Lookahead(ngram=4, window=3, guesses=2, pool=128))
    state = started(method, params, prompts([5]))
    grams = (jnp.arange(128)[:, None] + jnp.arange(4)[None]) % VOCAB
    state = state.replace(carry=state.carry.replace(pool=grams[None], age=jnp.full((1, 128), 1000)))
    assert sizes(loop.run(method, params, state, OPEN)) == [4] * 10 + [1]


@pytest.mark.parametrize(
    "sizes", [dict(window=1), dict(window=1, ngram=3), dict(pool=2, guesses=7), dict(pool=1, window=2)], ids=str
)
def test_small_lookaheads_are_exact_too(sizes):
    """A window of one column (noise must reach the guesses, which are deeper), a pool of fewer n-grams than guesses."""
    model, weights = tiny_table(vocab_size=29)
    params, prompt = {"target": weights}, prompts([5], [1, 2, 3, 1, 2], [8, 9])
    how = sampling(3, temperature=[0.0, 0.8, 0.8])
    state = laws.decode(params, speculative(model, Lookahead(**sizes)), prompt, how=how)
    laws.exact(model, params, speculative(model, Lookahead(**sizes)), state)
