"""Every drafter on every kind of target, through the laws. One case compiles one program; its tests share it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.decode import loop
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.lookahead import Lookahead
from paradec.decode.drafters.medusa import Medusa
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.models.heads import DraftHeads, HeadWeights, MedusaHeads
from paradec.models.ranked_tree import best_first
from paradec.testing import laws, ragged_prompts, tiny_recurrence, tiny_transformer
from paradec.testing.drafters import OracleDrafter, Random, RandomTree, TapReader

VOCAB, SLOTS = 97, 128
PROMPT = ragged_prompts(1, VOCAB, width=SLOTS)
TARGETS = {"transformer": tiny_transformer, "recurrence": tiny_recurrence}


def shaken(weights, by=0.02):
    """The weights, each leaf a little off: a draft model that is mostly right."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + np.asarray(rng.normal(scale=by * np.std(x), size=x.shape), x.dtype), weights)


# Methods from (target, text); those that read the text hold something per row.
DRAFTERS = {
    "ar": lambda model, text: NoDraft(),
    "lookup": lambda model, text: PromptLookup(num_draft=4, max_ngram=3, min_ngram=1),
    "jacobi": lambda model, text: Jacobi(window=5),
    "lookahead": lambda model, text: Lookahead(ngram=3, window=4, guesses=3, pool=32),
    "draft": lambda model, text: DraftModel(model=model, num_draft=3),
    "draft, own noise": lambda model, text: DraftModel(model=model, num_draft=3, shared_noise=False),
    "unrelated draft": lambda model, text: DraftModel(model=other(model)[0], num_draft=2),
    "medusa": lambda model, text: Medusa(heads=HEADS, tree=TREE, base=model),
    "random": lambda model, text: Random(3, VOCAB),
    "oracle": lambda model, text: OracleDrafter.of(text, 3, VOCAB),
    "adversary": lambda model, text: OracleDrafter.of(text, 3, VOCAB, accuracy=0.0),
    "tree": lambda model, text: RandomTree(text, VOCAB, width=32),
    "taps": lambda model, text: TapReader(text),
}
HEADS, TREE = MedusaHeads(num_heads=2, width=32), best_first(0.5 ** np.indices((2, 24)).sum(0), 40)
PER_ROW = ("oracle", "adversary", "tree", "taps")


def other(model):
    """A tiny model of the other kind, with its weights."""
    return tiny_recurrence() if isinstance(model, type(tiny_transformer()[0])) else tiny_transformer()


class Case:
    """A target, its parameters and a method. The drafter's own program is compiled when the first law runs."""

    def __init__(self, target, name):
        self.target, self.name = target, name
        self.model, weights = TARGETS[target]()
        draft = other(self.model)[1] if name == "unrelated draft" else shaken(weights)
        reader = jnp.asarray(np.random.default_rng(3).normal(size=(3, 32, VOCAB)), jnp.float32)
        zero = jnp.zeros((2, 1, 32, 32))
        heads = DraftHeads(HeadWeights(linear=zero, bias=zero[:, :, 0], unembed=None))
        self.params = {"target": weights, "draft": draft, "reader": reader, "heads": heads}

    def method(self, text):
        return speculative(self.model, DRAFTERS[self.name](self.model, text), eos=(-1, -2))

    def fixed(self, text=None):
        """The method for laws that decode greedily: per-row drafters are given the greedy text."""
        if text is None:
            plain = speculative(self.model, NoDraft(), eos=(-1, -2))
            text = laws.decode(self.params, plain, PROMPT).tokens if self.name in PER_ROW else None
        return self.method(text)


CASES = [pytest.param((target, name), id=f"{target}-{name}") for target in TARGETS for name in DRAFTERS]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(*request.param)


def per_call(state):
    return float((state.length - state.prompt).sum() / state.calls.sum())


def test_exact_in_every_trial(case):
    states = laws.exactness(case.model, case.params, case.method, PROMPT)
    laws.varied(states["greedy"])
    rates = {name: per_call(state) for name, state in states.items()}
    depth = case.method(states["greedy"].tokens).drafter.depth
    match case.name:
        case "ar" | "adversary":
            assert set(rates.values()) == {1.0}
        case "oracle":
            assert rates["greedy"] == rates["sampled at 0.8"] == depth + 1
            # End-of-text came from inside an accepted path: the draft went on behind it.
            cut, whole = states["end of text"], states["greedy"]
            at, end = np.asarray(whole.committed_at), np.asarray(cut.length)
            beyond = [at[b, end[b]] == at[b, end[b] - 1] for b in range(5) if end[b] < whole.length[b]]
            assert any(beyond), "no row met an end-of-text in the middle of a call"
        case "unrelated draft" | "random":
            assert 1 <= rates["sampled at 0.8"] < 1.5
        case _:
            assert 1 < max(rates.values()) < depth + 1, f"tokens per call {rates} prove little at a depth of {depth}"


def test_a_row_is_the_same_in_any_company(case):
    laws.rows(case.params, case.fixed(), PROMPT, permute=case.name not in PER_ROW)


def test_run_is_stream(case):
    laws.loops(case.params, case.fixed(), PROMPT)


def test_taps_and_hidden_states_belong_to_the_last_row_read():
    case = Case("transformer", "taps")
    state = laws.decode(case.params, case.fixed(), PROMPT)
    truth = case.model.forward(case.params["target"], state.tokens, taps=(0,))
    for carried, right in zip(state.carry, (truth.taps[0], truth.hidden), strict=True):
        read = jnp.take_along_axis(right, (state.length - 2)[:, None, None], axis=1)[:, 0]
        np.testing.assert_allclose(carried, read, atol=1e-5)


def test_the_cache_after_a_decode_is_that_of_a_fresh_prefill():
    case = Case("transformer", "tree")
    state = laws.decode(case.params, case.fixed(), PROMPT)
    text = type(PROMPT)(token=state.tokens, length=state.length)
    fresh = laws.decode(case.params, speculative(case.model, NoDraft(), eos=(-1, -2)), text, limit=state.length + 1)
    for b, n in enumerate(np.asarray(state.length) - 1):
        np.testing.assert_allclose(state.cache.k[:, b, :, :n], fresh.cache.k[:, b, :, :n], atol=1e-5)
        np.testing.assert_allclose(state.cache.v[:, b, :, :n], fresh.cache.v[:, b, :, :n], atol=1e-5)


@pytest.mark.parametrize("name", ["tree"])
def test_the_step_by_hand_without_jit(name):
    case = Case("transformer", name)
    laws.loops(case.params, case.fixed(), PROMPT, by_hand=2)


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_alone_in_a_batch_of_one(target):
    case = Case(target, "lookahead")
    laws.rows(case.params, case.fixed(), PROMPT, alone=3)


def test_other_values_do_not_trace_again():
    calls = []
    for seed, temperature, new, eos in ((0, 0.0, 5, (1, 2)), (1, 0.7, 9, (3, 4))):
        model, weights = tiny_transformer(seed)
        params, prompt = {"target": weights}, ragged_prompts(seed, VOCAB, width=SLOTS)
        method = speculative(model, OracleDrafter.of(prompt.token, 3, VOCAB, accuracy=temperature), eos=eos)
        how, key = sampling(5, temperature=temperature, top_k=seed), row_keys(seed, range(5))
        state = loop.start(method, params, prompt, prompt.length + new, key, how, slots=SLOTS, chunk=8)
        calls.append((method, params, state))
    laws.one_trace(calls)


@pytest.mark.parametrize("name", ["ar", "tree"])
def test_the_cache_stays_in_place(name):
    case = Case("transformer", name)
    laws.memory(case.params, case.method(jnp.zeros((4, 4096), jnp.int32)))
