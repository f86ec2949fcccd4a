"""Exact denoisers against enumeration: every text written down, every posterior a sum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.models.posterior import HiddenMarkov, JointTable, JointTexts, MarkovChain, random_chain


def enumerated(start, move, evidence):
    V, S = len(start), evidence.shape[0]
    texts = np.asarray(list(itertools.product(range(V), repeat=S)))
    p = start[texts[:, 0]] * np.prod([move[texts[:, s - 1], texts[:, s]] for s in range(1, S)], axis=0)
    return texts, p * np.prod([evidence[s, texts[:, s]] for s in range(S)], axis=0)


def marginals(texts, p, vocab):
    return np.stack([np.bincount(texts[:, s], p, vocab) for s in range(texts.shape[1])]) / p.sum()


@pytest.mark.parametrize("parallel", [True, False])
def test_markov_posteriors_are_those_of_the_enumerated_law(parallel):
    V, S = 4, 5
    drawn, _ = random_chain(jax.random.key(3), V, 2, S, sharpness=0.5, accuracy=0.6)
    model = HiddenMarkov(V, parallel)
    token = np.asarray([[V, 2, V, V, 1], [V, V, V, V, V]])
    found = np.asarray(jax.jit(model.marginals)(drawn, jnp.asarray(token)))
    for b in range(2):
        # A committed token replaces the evidence of its place.
        known = token[b] != V
        evidence = np.where(known[:, None], 1.0, np.asarray(drawn.evidence[b], np.float64))
        texts, p = enumerated(np.asarray(drawn.start, np.float64), np.asarray(drawn.transition, np.float64), evidence)
        fits = (texts[:, known] == token[b][known]).all(1)
        np.testing.assert_allclose(found[b], marginals(texts[fits], p[fits], V), atol=2e-6)
    unlike = found[0] - found[1]
    assert np.abs(unlike).max() > 0.05, "what is committed changes nothing"


def test_both_ways_of_passing_messages_agree_on_long_text():
    drawn, text = random_chain(jax.random.key(0), 24, 3, 200, accuracy=0.5)
    some = jnp.where(jax.random.uniform(jax.random.key(1), text.shape) < 0.3, text, 24)
    one, other = (HiddenMarkov(24, parallel).marginals(drawn, some) for parallel in (True, False))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.isfinite(one).all() and float(jnp.max(jnp.abs(one.sum(-1) - 1))) < 1e-5


def test_what_cannot_be_answers_with_the_prior():
    never = jnp.asarray([[0.0, 1.0], [0.0, 1.0]])  # token 0 never follows anything
    chain = MarkovChain(start=jnp.asarray([0.5, 0.5]), transition=never)
    for parallel in (True, False):
        posterior = jax.jit(HiddenMarkov(2, parallel).marginals)
        impossible = posterior(chain, jnp.asarray([[2, 0, 2]]))
        np.testing.assert_allclose(impossible, posterior(chain, jnp.asarray([[2, 2, 2]])), atol=1e-6)
    table = JointTexts(text=jnp.asarray([[0, 1], [1, 0]]), weight=jnp.asarray([0.25, 0.75]))
    wrong = JointTable(2).marginals(table, jnp.asarray([[1, 1], [2, 2], [0, 2]]))
    np.testing.assert_allclose(wrong[0], wrong[1], atol=1e-6)
    np.testing.assert_allclose(wrong[2], [[1, 0], [0, 1]], atol=1e-6)


def test_a_table_is_its_law():
    rng = np.random.default_rng(0)
    texts = np.asarray(list(itertools.product(range(3), repeat=4)))
    p = rng.dirichlet(np.full(len(texts), 0.3))
    table = JointTexts(text=jnp.asarray(texts), weight=jnp.asarray(p, jnp.float32))
    token = np.asarray([3, 1, 3, 3])
    fits = texts[:, 1] == 1
    found = JointTable(3).marginals(table, jnp.asarray(token[None]))[0]
    np.testing.assert_allclose(found, marginals(texts[fits], p[fits], 3), atol=1e-6)


def test_the_drawn_evidence_is_as_good_as_it_says():
    drawn, text = random_chain(jax.random.key(5), 8, 400, 40, accuracy=0.7)
    shown = np.asarray(drawn.evidence).argmax(-1)
    assert abs((shown == np.asarray(text)).mean() - (0.7 + 0.3 / 8)) < 0.02
    pairs = np.zeros((8, 8))
    np.add.at(pairs, (np.asarray(text)[:, :-1].ravel(), np.asarray(text)[:, 1:].ravel()), 1)
    seen = pairs.sum(1) > 300
    np.testing.assert_allclose(
        (pairs / pairs.sum(1, keepdims=True))[seen], np.asarray(drawn.transition)[seen], atol=0.06
    )
