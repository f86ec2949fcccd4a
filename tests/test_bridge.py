"""Models of others: a linen and an nnx transformer, a function, and a cache that a module brings, through the laws."""

from __future__ import annotations

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import paradec
from paradec import components
from paradec import params as trees
from paradec.bridge import TokenCache, from_function, from_linen, from_nnx
from paradec.decode import loop
from paradec.decode.drafters.ar import NoDraft
from paradec.decode.drafters.draft_model import DraftModel
from paradec.decode.drafters.jacobi import Jacobi
from paradec.decode.drafters.lookahead import Lookahead
from paradec.decode.drafters.prompt_lookup import PromptLookup
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.speculative import speculative
from paradec.errors import InputError
from paradec.models.bridged import paths
from paradec.testing import laws, model_laws, ragged_prompts
from paradec.testing.drafters import RandomTree, TapReader
from paradec.testing.mutants import NoCompaction, SiblingsSee, Wrapped
from paradec.types import Model, Rows
from tests.fixtures import write_tiny_model
from tests.flax_models import (
    KEYS,
    LONGEST,
    MODELS,
    VOCAB,
    LinenLM,
    NnxLM,
    caching,
    first,
    linen,
    linen_parts,
    nnx_module,
    recomputing,
)

SLOTS = LONGEST
PROMPT = ragged_prompts(1, VOCAB, width=SLOTS)
DRAFTERS = {
    "ar": lambda model, text: NoDraft(),
    "lookup": lambda model, text: PromptLookup(num_draft=4, max_ngram=3, min_ngram=1),
    "jacobi": lambda model, text: Jacobi(window=5),
    "lookahead": lambda model, text: Lookahead(ngram=3, window=4, guesses=3, pool=32),
    "tree": lambda model, text: RandomTree(text, VOCAB),
    "draft": lambda model, text: DraftModel(model=model, num_draft=3),
}


def method(model, name, text=None):
    return speculative(model, DRAFTERS[name](model, text), eos=(-1, -2))


@functools.cache
def own_loop(kind, new=40):
    """Greedy text of the module itself, one token after the other, one row after the other."""
    module, variables = linen_parts()
    evaluated = nnx.clone(nnx_module())
    evaluated.eval()
    logits = evaluated if kind != "linen" else lambda row: module.apply(variables, row, deterministic=True)[0]
    best, texts = jax.jit(lambda row: jnp.argmax(logits(row), axis=-1)), []
    for prompt, length in zip(np.asarray(PROMPT.token), np.asarray(PROMPT.length), strict=True):
        row = np.pad(prompt[:length], (0, SLOTS - length))
        for at in range(length, length + new):
            row[at] = best(row[None])[0, at - 1]
        texts.append(row[: length + new])
    return texts


def test_is_a_model():
    for make in MODELS.values():
        model, params = make()
        assert isinstance(model, Model) and model.vocab_size == VOCAB and model.dtype == "float32"
        specs = model.specs()
        assert jax.tree.structure(params) == jax.tree.structure(specs, is_leaf=trees.is_spec)
        jax.tree.map(lambda x, s: (x.shape, x.dtype) == (s.shape, s.dtype) or pytest.fail(str(s)), params, specs)
    linen_names = [trees.name(path) for path, _ in jax.tree.leaves_with_path(linen()[1])]
    assert "params/LinenBlock_0/Dense_0/kernel" in linen_names
    nnx_names = [trees.name(path) for path, _ in jax.tree.leaves_with_path(recomputing()[1])]
    assert "blocks/0/qkv/kernel" in nnx_names and "embed/embedding" in nnx_names
    assert not [name for name in nnx_names if "rngs" in name or "head" in name], "a tied table stands once"


CASES = [(kind, name) for kind in MODELS for name in DRAFTERS]


@pytest.mark.parametrize("kind, name", CASES)
def test_exact_in_every_trial(kind, name):
    """And greedy text is that of the module's own argmax loop, which knows nothing of paradec."""
    model, params = MODELS[kind]()
    params = {"target": params, "draft": jax.tree.map(lambda x: x * np.float32(0.98), params)}
    given = functools.partial(method, model, name) if name == "tree" else method(model, name)
    states = laws.exactness(model, params, given, PROMPT, slots=SLOTS)
    laws.varied(states["greedy"])
    for row, right in zip(np.asarray(states["greedy"].tokens), own_loop(kind), strict=True):
        np.testing.assert_array_equal(row[: len(right)], right)
    rate = lambda state: float((state.length - state.prompt).sum() / state.calls.sum())
    assert (max(map(rate, states.values())) > 1) == (name != "ar")


@pytest.mark.parametrize(
    "kind, name",
    [
        ("nnx, cached", "lookahead"),
        ("linen", "lookup"),
        ("nnx", "lookahead"),
    ],
)
def test_a_row_is_the_same_in_any_company(kind, name):
    """On a canvas that is longer than what the model reads: what it would give there are no numbers."""
    model, params = MODELS[kind]()
    laws.rows({"target": params}, method(model, name), PROMPT)
    state = laws.decode({"target": params}, method(model, name), PROMPT)
    assert state.tokens.shape[1] > LONGEST
    for row, right in zip(np.asarray(state.tokens), own_loop(kind), strict=True):
        np.testing.assert_array_equal(row[: len(right)], right)


TEXT = jnp.asarray(np.random.default_rng(2).integers(VOCAB, size=(3, 30)), jnp.int32)


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_any_split_of_a_text_is_one_forward(kind, chain):
    model, params = MODELS[kind]()
    schedule = model_laws.plan(7, 8, 3, 3, 5)
    model_laws.cache(model, params, TEXT, schedule, chain=chain)


@pytest.mark.parametrize("kind", ["linen", "nnx, cached"])
def test_refused_rows_leave_no_trace_and_pending_ones_count(kind):
    model, params = MODELS[kind]()
    model_laws.untouched(model, params, TEXT)
    parent = np.asarray([[0, 0, 1, 1, 2, 0], [0, 1, 1, 0, 3, 5], [0, 0, 1, 2, 3, 4]])
    model_laws.pending(model, params, TEXT, parent)
    model_laws.pending(model, params, TEXT, None)


def test_the_paths_of_a_tree():
    """The example of `paths`: whole, and with the last three nodes not asked for."""
    parent, depth = jnp.asarray([[0, 0, 2, 1, 1, 5]]), jnp.asarray([[0, 1, 0, 2, 2, 3]])
    for asked, wanted in ((6, [{2}, {0, 1, 3}, {0, 1, 4}]), (3, [{0, 1}, {2}])):
        rows = Rows(token=depth[:, :asked], depth=depth[:, :asked], parent=parent)
        most, path = paths(rows, jnp.arange(6)[None] < asked, None)
        assert [set(np.flatnonzero(path(i)[0]).tolist()) for i in range(int(most))] == wanted
        assert not path(int(most)).any()


def test_a_chain_costs_one_call_and_a_tree_one_for_each_leaf():
    """Unused nodes cost nothing, nor do rows that are done, nor the reading of a prompt."""
    calls = []

    def apply(params, token):
        jax.debug.callback(lambda: calls.append(1))
        return params[token]

    model, params = from_function(apply, jnp.eye(VOCAB), check=False)
    token, depth = TEXT[:, :5], jnp.tile(jnp.arange(5)[None], (3, 1))
    parents = {
        1: [[0, 0, 1, 2, 3], [0, 0, 2, 3, 4], [0, 1, 2, 3, 4]],  # chains; nodes that are their own parent are unused
        3: [[0, 0, 0, 1, 1], [0, 0, 0, 0, 4], [0, 0, 1, 2, 3]],  # the third of them is the longest
    }
    for leaves, parent in parents.items():
        rows, cache = Rows(token=token, depth=depth, parent=jnp.asarray(parent)), model.init_cache(3, 9)
        for live, wanted in ((None, leaves), ([False] * 3, 0), ([False, False, True], 1)):
            calls.clear()
            run = jax.jit(functools.partial(model.extend, live=None if live is None else jnp.asarray(live)))
            jax.block_until_ready(run(params, cache, rows))
            jax.effects_barrier()
            assert len(calls) == wanted


def test_reading_a_prompt_computes_nothing_where_nothing_is_kept():
    for make, products in ((linen, False), (caching, True)):
        model, params = make()
        args = (method(model, "ar"), {"target": params}, PROMPT, PROMPT.length + 4, row_keys(0, range(5)), sampling(5))
        program = loop.start.lower(*args, slots=SLOTS, chunk=8).compile().as_text()
        assert bool(re.search(r" dot\(|fusion\(.*dot", program)) == products


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KeepsRefused(Wrapped):
    """A commit that keeps every row of a call of which any is kept."""

    def commit(self, cache, delta, path, count):
        most = delta.token.shape[1] if path is None else path.shape[1]
        return self.model.commit(cache, delta, path, jnp.where(count > 0, most, 0))


@pytest.mark.parametrize("mutant", [KeepsRefused, NoCompaction, SiblingsSee])
def test_the_laws_catch_a_wrong_bridge(mutant):
    model, params = caching()
    with pytest.raises(AssertionError):
        model_laws.cache(mutant(model), params, TEXT, model_laws.plan(7, 8, 3, 3, 5), chain=False)


# What is no causal language model, or has no such cache, is refused with a sentence.

EYE = jnp.eye(VOCAB)


def running(params, token):
    """Logits that count the tokens so far."""
    return jnp.cumsum(params[token], axis=1)


def counted(params, token, position, cache, ahead=0, behind=0):
    """The same with tokens in slots. `ahead`: slots seen that come later; `behind`: how far off the slots are."""
    cache = jax.vmap(lambda slots, at, new: slots.at[at].set(new))(
        cache, position - behind * position[:1, :1], params[token]
    )
    see = jnp.arange(cache.shape[1])[None, None] <= position[:, :, None] + ahead
    return jnp.einsum("bts,bsv->btv", see.astype(jnp.float32), cache), cache


def tokens(batch, slots):
    return jnp.zeros((batch, slots, VOCAB))


REFUSED = [
    ("not causal: token 11 moves the logits of position 0 ", lambda p, t: p[t[:, ::-1]], {}),
    ("not causal: token 11 moves the logits of position 10 ", lambda p, t: p[jnp.roll(t, -1, axis=1)], {}),
    ("those of the token itself", lambda p, t: p[jnp.roll(t, 1, axis=1)].at[:, 0].set(0), {}),
    ("no numbers", lambda p, t: p[t] * jnp.nan, {}),
    ("returns a tuple", lambda p, t: (p[t], 0), {}),
    (r"the model's are \(2, 12\)", lambda p, t: t.astype(jnp.float32), {}),
    ("returns int32", lambda p, t: p[t].astype(jnp.int32), {}),
    ("vocab_size is 96", running, {"vocab_size": 96}),
    ("max_length must be at least 2", running, {"max_length": 1}),
    ("no axis of its own", running, {"cache": TokenCache(lambda batch, slots: jnp.zeros((batch, 4)), counted)}),
    ("With its cache", running, {"cache": TokenCache(tokens, functools.partial(counted, ahead=1))}),
    ("With its cache", running, {"cache": TokenCache(tokens, functools.partial(counted, behind=1))}),
]


@pytest.mark.parametrize("sentence, apply, options", REFUSED)
def test_what_is_no_such_model_is_refused_with_a_sentence(sentence, apply, options):
    with pytest.raises(InputError, match=sentence):
        from_function(apply, EYE, **options)


def test_functions_that_are_right_are_taken():
    """A forbidden token (minus infinity), bfloat16, a head of zeros, a cache with its axes elsewhere."""
    barred = lambda p, t: p[t].at[:, :, 3].set(-jnp.inf)
    for apply, params in ((barred, EYE), (running, EYE.astype(jnp.bfloat16)), (running, jnp.zeros((VOCAB, VOCAB)))):
        model, _ = from_function(apply, params)
        assert (model.vocab_size, model.max_length) == (VOCAB, 2**30)

    def turned(params, token, position, cache):
        logits, cache = counted(params, token, position, cache["seen"][0].transpose(1, 2, 0))
        return logits, {"seen": cache.transpose(2, 0, 1)[None]}

    cache = TokenCache(lambda batch, slots: {"seen": tokens(batch, slots).transpose(2, 0, 1)[None]}, turned)
    model, params = from_function(running, EYE, cache=cache)
    model_laws.cache(model, params, TEXT, model_laws.plan(3, 4, 3, 3, 4), chain=False)
    assert model.init_cache(3, 8).axes().kept == {"seen": (None, None, "batch", None)}


def test_modules_that_are_wrong_are_refused_with_a_sentence():
    module, variables = linen_parts()
    with pytest.raises(InputError, match="not causal"):
        from_linen(LinenLM(causal=False), variables, logits=first)
    with pytest.raises(InputError, match="pass logits=lambda out"):
        from_linen(module, variables)
    with pytest.raises(InputError, match="evaluation mode"):
        from_linen(module, variables, call={"deterministic": False}, logits=first)
    with pytest.raises(InputError, match="variables that module.init returns"):
        from_linen(module, variables["params"], logits=first)
    with pytest.raises(InputError, match="flax.linen module; a NnxLM"):
        from_linen(nnx_module(), variables)
    with pytest.raises(InputError, match="flax.nnx module; a LinenLM"):
        from_nnx(module)
    with pytest.raises(InputError, match="tree of arrays; a/b is a str"):
        from_function(running, {"a": {"b": "weights"}})


def test_what_a_function_cannot_do_is_said_when_a_method_is_built():
    model, params = recomputing()
    reader = speculative(model, TapReader(TEXT, width=0), eos=(-1, -2))
    with pytest.raises(InputError, match="this method reads hidden states"):
        laws.decode({"target": params}, reader, PROMPT, slots=SLOTS)
    with pytest.raises(InputError, match="no use for mask"):
        model.forward(params, TEXT, mask=1)
    with pytest.raises(InputError, match="reads at most 72"):
        model.forward(params, jnp.zeros((1, 73), jnp.int32))


class Counter(nn.Module):
    """Logits that count the tokens so far, with weights in a box, and a call for new tokens."""

    def setup(self):
        boxed = nn.with_partitioning(nn.initializers.orthogonal(), (None, "model"))
        self.head = nn.Dense(VOCAB, kernel_init=boxed)

    def __call__(self, token):
        return self.head(running(EYE, token))

    def step(self, token, position, cache):
        logits, cache = counted(EYE, token, position, cache)
        return self.head(logits), cache


def test_a_linen_module_with_a_cache_and_boxed_parameters():
    module = Counter()
    variables = module.init(jax.random.key(0), TEXT)
    model, params = from_linen(module, variables, cache=TokenCache(tokens, Counter.step))
    assert [shape for shape, _ in model.leaves] == [(VOCAB,), (VOCAB, VOCAB)], "boxes are opened"
    model_laws.cache(model, params, TEXT, model_laws.plan(3, 4, 3, 3, 4), chain=False)


def test_equal_modules_are_equal_models_and_the_module_stays_as_it_is():
    other, params = from_nnx(NnxLM(nnx.Rngs(2)), max_length=LONGEST, cache=KEYS, check=False)
    assert other == caching()[0] and hash(other) == hash(caching()[0]) and other != recomputing()[0]
    assert not nnx_module().blocks[0].dropout.deterministic
    again, _ = from_linen(LinenLM(), linen_parts()[1], logits=first, max_length=LONGEST, check=False)
    assert again == linen()[0]
    assert not np.array_equal(params["embed"]["embedding"], caching()[1]["embed"]["embedding"])


class Shifted(nn.Module):
    """A field that has no hash."""

    bias: np.ndarray

    @nn.compact
    def __call__(self, token):
        return nn.Dense(VOCAB)(jax.nn.one_hot(token, VOCAB)) + self.bias[None, None]

    def cached(self, token, position, cache):
        return self(token), cache


def test_a_module_without_a_hash_is_compared_by_identity():
    module = Shifted(np.arange(VOCAB, dtype=np.float32))
    variables = module.init(jax.random.key(0), TEXT)
    cache = TokenCache(lambda batch, slots: jnp.zeros((batch, slots)), Shifted.cached)
    (one, params), (two, _) = (from_linen(module, variables, cache=cache) for _ in range(2))
    assert one == one and one != two and {one, two}
    np.testing.assert_allclose(one.forward(params, TEXT).logits, module.apply(variables, TEXT))


@functools.cache
def language_models(folder):
    """A tiny model from files, and a bridged one with its tokenizer."""
    tiny = paradec.load(str(write_tiny_model(folder, max_length=LONGEST)))
    module = LinenLM(vocab=tiny.tokenizer.vocab_size)
    model, params = from_linen(module, jax.jit(module.init)(jax.random.key(1), TEXT), logits=first, max_length=LONGEST)
    return tiny, paradec.LanguageModel("mine", model, params, tiny.tokenizer)


ASK = {"raw": True, "max_new_tokens": 8, "batch_size": 2, "ignore_eos": True}


def test_a_language_model_in_a_notebook(tmp_path_factory):
    _, lm = language_models(tmp_path_factory.getbasetemp() / "tiny")
    assert repr(lm).startswith("LanguageModel('mine', Bridged, ") and repr(lm).endswith("weights in float32)")
    plain = lm.generate(["one two", "a"], **ASK)
    looked = lm.generate(["one two", "a"], method="prompt_lookup", **ASK)
    assert [g.new_tokens for g in plain] == [8, 8]
    assert [(g.token_ids, g.text) for g in looked] == [(g.token_ids, g.text) for g in plain]
    assert lm.tokenizer.decode(list(plain[0].token_ids)) == plain[0].text
    heads = components.SHIPPED / "smollm2-135m.safetensors"
    with pytest.raises(InputError, match="no hidden states that heads could read"):
        lm.generate("one two", method="medusa", method_args={"heads": heads}, **ASK)
    with pytest.raises(InputError, match="reads at most 71"):
        lm.generate([[1] * 80], **ASK)


def test_a_comparison_and_a_bridged_draft(tmp_path_factory):
    tiny, lm = language_models(tmp_path_factory.getbasetemp() / "tiny")
    report = paradec.compare(lm, ["one two", "a"], ["jacobi", "lookahead"], repeats=1, **ASK)
    assert [(entry.exact, entry.identical) for entry in report.methods] == [(True, 2)] * 3
    assert lm.score("one two", " three", raw=True)[0].tokens
    drafted = tiny.generate("one two", method="draft_model", method_args={"draft": lm}, **ASK)[0]
    assert drafted.token_ids == tiny.generate("one two", **ASK)[0].token_ids
