"""Every piece that is wrong on purpose is caught by a law: so the laws can fail."""

import jax
import jax.numpy as jnp
import pytest

from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.sampling import sampling
from paradec.decode.speculative import speculative
from paradec.decode.verify import Rejection
from paradec.testing import laws, mutants, ragged_prompts, tiny_table, tiny_transformer
from paradec.testing.drafters import OracleDrafter, RandomTree

VOCAB = 29
PROMPT = ragged_prompts(1, VOCAB, width=128)


def tables(**sizes):
    model, target = tiny_table(0, **sizes)
    return model, {"target": target, "draft": tiny_table(1, **sizes)[1]}


def law_of(accept, **drafter):
    """Chi-square of a rule on drafts of another table."""
    model, params = tables()
    method = speculative(model, DraftModel(model, 2, **drafter), accept=accept, eos=(-1,))
    laws.chi_square(model, params, method, [1, 3], how=sampling(1, temperature=1.0))


@pytest.mark.parametrize("rule", [mutants.NoResidual(), mutants.StaleLaw()], ids=lambda rule: type(rule).__name__)
def test_a_wrong_rejection_rule_has_another_law(rule):
    with pytest.raises(AssertionError, match="law of the texts is wrong"):
        law_of(rule, shared_noise=False)


def test_drawing_again_after_a_miss_has_another_law():
    model, params = tables()
    ones = OracleDrafter.of(jnp.ones((8192, 5), jnp.int32), 2, 4)
    method = speculative(model, ones, accept=mutants.Redraw(), eos=(-1,))
    with pytest.raises(AssertionError, match="law of the texts is wrong"):
        laws.chi_square(model, params, method, [1, 3], how=sampling(1, temperature=1.0))


def exactness(wrap=lambda model: model, accept=None, drafter=None, model_and_weights=None):
    model, weights = model_and_weights or tiny_table(0, vocab_size=VOCAB)
    drafter = drafter or (lambda text: OracleDrafter.of(text, 3, VOCAB, accuracy=0.6))
    method = lambda text: speculative(wrap(model), drafter(text), accept=accept)
    laws.exactness(model, {"target": weights}, method, PROMPT)


def test_an_unverified_tail_is_not_exact():
    with pytest.raises(AssertionError, match="the target's forward says"):
        exactness(accept=mutants.UnverifiedTail())


@pytest.mark.parametrize("wrap", [mutants.SiblingsSee, mutants.NoCompaction])
def test_a_wrong_tree_is_not_exact(wrap):
    with pytest.raises(AssertionError, match="the target's forward says"):
        exactness(wrap, drafter=lambda text: RandomTree(text, VOCAB))


def test_a_write_that_slides_is_not_exact():
    """Seen only in the last dozen tokens of a full canvas, by a wide draft that is refused."""
    wide = lambda text: OracleDrafter.of(text, 12, VOCAB, accuracy=0.0)
    with pytest.raises(AssertionError, match="fills the canvas.*the target's forward says"):
        exactness(mutants.Slides, drafter=wide, model_and_weights=tiny_transformer(vocab_size=VOCAB))


def test_a_shared_minimum_shows_in_the_trace_of_a_row():
    """Its tokens are right; only that a row's calls depend on its neighbours gives it away."""
    model, params = tables(vocab_size=VOCAB)
    near = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(5), x.shape), params["target"])
    method = speculative(model, DraftModel(model, 3), accept=mutants.SharedMinimum(), eos=(-1,))
    with pytest.raises(AssertionError, match="in other company"):
        laws.rows(params | {"draft": near}, method, PROMPT)


def test_a_cache_that_is_copied_is_seen():
    model, weights = tiny_transformer()
    method = speculative(mutants.Copies(model), OracleDrafter.of(jnp.zeros((4, 4096), jnp.int32), 3, 97))
    with pytest.raises(AssertionError, match=r"temporaries|the cache is rewritten"):
        laws.memory({"target": weights}, method)


def test_repetitive_text_is_refused():
    model, weights = tiny_table(0, vocab_size=VOCAB, spread=0.0)
    same = speculative(model, OracleDrafter.of(jnp.zeros((5, 128), jnp.int32), 3, VOCAB))
    state = laws.decode({"target": weights}, same, PROMPT)
    with pytest.raises(AssertionError, match="distinct tokens"):
        laws.varied(state)


def test_values_that_trace_again_are_counted():
    model, weights = tiny_table()
    method = speculative(model, OracleDrafter.of(jnp.zeros((1, 8), jnp.int32), 2, 4), accept=Rejection())
    prompt = laws.Prompt(token=jnp.zeros((1, 2), jnp.int32), length=jnp.full(1, 2))
    state = laws.decode({"target": weights}, method, prompt, limit=[2], slots=8)
    other = method.replace(drafter=method.drafter.replace(accuracy=0.5))  # a Python float is another type
    with pytest.raises(AssertionError, match="traced 2 times"):
        laws.one_trace([(method, {"target": weights}, state), (other, {"target": weights}, state)])
