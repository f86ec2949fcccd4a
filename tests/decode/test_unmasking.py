"""Every unmasking rule: what it accepts from a call, its limits, and what it cannot be combined with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.catalog import SYSTEMS
from paradec.composition import compose
from paradec.decode.unmasking.ada_block import AdaBlock
from paradec.decode.unmasking.credit import Credit
from paradec.decode.unmasking.eb import EntropyBounded
from paradec.decode.unmasking.entropy import Entropy
from paradec.decode.unmasking.factor import Factor
from paradec.decode.unmasking.hierarchical import Hierarchical
from paradec.decode.unmasking.klass import Klass
from paradec.decode.unmasking.learned_filter import EndOfText
from paradec.decode.unmasking.local_leap import LocalLeap
from paradec.decode.unmasking.prophet import Prophet
from paradec.decode.unmasking.quota import Quota
from paradec.decode.unmasking.threshold import Threshold
from paradec.decode.unmasking.time_grid import TimeGrid
from paradec.decode.unmasking.wino import Wino
from paradec.decode.view import View, best, likelihood, rank
from paradec.errors import InputError, UnknownName
from paradec.models.heads import ConfidenceFilter, FilterWeights
from paradec.system import Component
from tests.decode.canvases import LENGTHS, LIMITS, STARTS, chain, decode, denoiser, differs, on_chain, same


def seen(confidence, open_=None, vocab=5, tokens=None, **changes):
    """A call on one row: the likeliest token (0, or `tokens`) has this confidence, the rest share what is left."""
    c = jnp.asarray(confidence, jnp.float32)[None]
    W = c.shape[1]
    top = jnp.zeros((1, W), jnp.int32) if tokens is None else jnp.asarray(tokens, jnp.int32)[None]
    law = jnp.where(jax.nn.one_hot(top, vocab) > 0, c[..., None], (1 - c[..., None]) / (vocab - 1))
    is_open = jnp.ones((1, W), bool) if open_ is None else jnp.asarray(open_, bool)[None]
    one = lambda x: jnp.asarray([x], jnp.int32)
    view = View(
        logits=jnp.log(law), law=jnp.log(law), position=jnp.arange(W, dtype=jnp.int32)[None], token=top, confidence=c,
        open=is_open,
        current=jnp.zeros((1, W), jnp.int32), inside=jnp.ones((1, W), bool), block_start=one(0), block_end=one(W),
        prompt=one(0),
        limit=one(W), turn=one(0), fresh=jnp.asarray([True]), key=jax.random.split(jax.random.key(0), 1),
    )  # fmt: skip
    return view.replace(**changes)


def accepted(rule, view, carry=None):
    choice = rule(view, rule.init(*view.logits.shape) if carry is None else carry)
    return np.flatnonzero(np.asarray(choice.accept & view.eligible)[0]).tolist()


C = [0.95, 0.4, 0.92, 0.8, 0.8, 0.3, 0.85, 0.99]


def test_ranks_and_ties():
    view = seen([0.5, 0.9, 0.5, 0.9], [1, 1, 1, 0])
    assert rank(view.confidence, view.eligible)[0].tolist() == [1, 0, 2, 4]
    none = jnp.full((1, 4), -jnp.inf)
    assert rank(none, view.eligible)[0].tolist() == [0, 1, 2, 4]
    assert best(none, view.eligible)[0].tolist() == [True, False, False, False]
    assert not best(view.confidence, view.eligible & False).any()


def test_probabilities_near_one_keep_their_order():
    logits = jnp.full((1, 3, 40), -1e4).at[0, :, 0].set(40.0).at[0, :, 1].set(jnp.asarray([26.0, 24.0, 38.0]))
    p, log_p = (np.asarray(x)[0] for x in likelihood(logits, jnp.zeros((1, 3), jnp.int32)))
    assert p[2] < p[0] < p[1] < 1
    assert np.allclose(log_p, -np.log1p(np.exp([-14.0, -16.0, -2.0])), rtol=1e-5)
    assert np.allclose(1 - p, [np.exp(-14), np.exp(-16), 1 / (1 + np.exp(2))], atol=6e-8, rtol=0)
    other = np.asarray(likelihood(logits, jnp.ones((1, 3), jnp.int32))[0])[0]
    assert np.allclose(other, np.exp([-14.0, -16.0, -2.0]) / (1 + np.exp([-14.0, -16.0, -2.0])), rtol=1e-5)


def test_the_worst_shadow_is_told_where_probabilities_are_zero():
    view = seen([0.99] * 8, [0, 0, 0, 0, 1, 1, 1, 1])
    shadow = jnp.zeros((1, 8, 5)).at[0, :4, 0].set(jnp.asarray([-200.0, -300.0, -250.0, -150.0]))
    view = view.replace(shadow=shadow, fresh=jnp.asarray([False]))
    assert np.flatnonzero(np.asarray(Wino.of()(view, jnp.asarray([2])).remask)[0]).tolist() == [1]


def test_thresholds():
    assert accepted(Threshold.of(0.8), seen(C)) == [0, 2, 3, 4, 6, 7]
    assert accepted(Threshold.of(0.8, strict=True), seen(np.float32(C) + np.float32(0))) == [0, 2, 6, 7]
    assert accepted(Threshold.of(0.8), seen(C, [0, 1, 1, 0, 1, 1, 1, 1])) == [2, 4, 6, 7]


def test_quota_spreads_a_block_over_its_steps():
    rule, view = Quota.of(steps=3), seen(C)
    carry, left = rule.init(1, 8, 5), np.ones(8, bool)
    counts = []
    for step in range(3):
        now = view.replace(open=jnp.asarray(left)[None], fresh=jnp.asarray([step == 0]))
        choice = rule(now, carry)
        taken = np.asarray(choice.accept)[0]
        assert sorted(-np.float32(C)[taken]) == sorted(-np.float32(C)[left])[: taken.sum()], "not the most confident"
        left, carry = left & ~taken, choice.carry
        counts.append(int(taken.sum()))
    assert counts == [3, 3, 2] and not left.any()
    assert accepted(Quota.of(2), view) == [0, 7]
    for score in ("entropy", "margin"):
        assert accepted(Quota.of(2, score=score), view) == [0, 7]
    drawn = [view.replace(key=jax.random.split(jax.random.key(seed), 1)) for seed in range(9)]
    many = [tuple(accepted(Quota.of(2, score="random"), one)) for one in drawn]
    assert len(set(many)) > 4


def steps_of(rule, view):
    """How many positions of each row each call commits, until none is open."""
    carry, left, counts = rule.init(*view.open.shape, 5), np.asarray(view.open), []
    while left.any():
        now = view.replace(
            open=jnp.asarray(left), fresh=jnp.full(len(left), not counts), turn=jnp.full(len(left), len(counts))
        )
        choice = rule(now, carry)
        taken = np.asarray(choice.accept)
        left, carry = left & ~taken, choice.carry
        counts.append(taken.sum(-1))
    return np.stack(counts)


def test_the_time_grid_cuts_shares_to_integers():
    for n in (4, 8, 32):
        view = seen(np.linspace(0.3, 0.9, n))
        for steps in (1, 3, n):
            t, left, wanted = np.linspace(1, 1e-3, steps + 1), n, []
            for i in range(steps):
                wanted.append(left if i == steps - 1 else int(left * (1 - t[i + 1] / t[i])))
                left -= wanted[-1]
            assert steps_of(TimeGrid.of(steps, "probability"), view)[:, 0].tolist() == wanted
            if steps == n:
                assert wanted[0] == 0 and wanted[-1] == 2
                whole = steps_of(TimeGrid.of(steps, "probability", whole=True), view)[:, 0]
                assert whole.tolist() == [1] * n
    taken = lambda heat, seed: tuple(
        accepted(
            TimeGrid.of(2, "probability", heat=heat), seen(C).replace(key=jax.random.split(jax.random.key(seed), 1))
        )
    )
    assert taken(0.0, 0) == taken(1e-6, 1) == (0, 2, 7), "the most confident, and so they stay when hardly heated"
    assert len({taken(1e6, seed) for seed in range(12)}) > 6


def test_origin_commits_each_mask_on_its_own():
    rows, steps = 3000, 5
    one = seen(C)
    view = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), one.replace(key=None))
    counts = steps_of(TimeGrid.of(steps), view.replace(key=jax.random.split(jax.random.key(3), rows)))
    assert len(counts) == steps and (counts.sum(0) == 8).all()
    share = 0.999 / steps
    for committed in counts[:-1]:
        assert abs(committed.mean() - 8 * share) < 4 * np.sqrt(8 * share * (1 - share) / rows)
        assert abs(committed.var() / (8 * share * (1 - share)) - 1) < 0.12, "positions are not independent"
    assert (counts[0] == 0).any(), "no call idles"


def test_factor_takes_the_longest_prefix():
    for f in (0.3, 0.7, 1.0, 1.6, 3.0):
        c = sorted(C, reverse=True)
        n = max([n for n in range(1, 9) if (n + 1) * (1 - c[n - 1]) <= f] or [1])
        assert len(accepted(Factor.of(f), seen(C))) == n
    assert accepted(Factor.of(-1), seen(C)) == [7] and len(accepted(Factor.of(9), seen(C))) == 8


def test_entropy_and_its_bound():
    view = seen(C)
    nats = np.asarray(view.entropy)[0]
    p = np.exp(np.asarray(view.logits[0], np.float64))
    np.testing.assert_allclose(nats, -(p * np.log(p)).sum(-1), rtol=1e-4)
    assert accepted(Entropy.of(0.5), view) == np.flatnonzero(nats <= 0.5).tolist() != []
    assert accepted(Entropy.of(-1.0), view) == [7]
    order = np.argsort(nats, kind="stable")
    for gamma in (0.0, 0.1, 0.4, 1.0, 99.0):
        spent = np.cumsum(nats[order]) - nats[order]
        assert accepted(EntropyBounded.of(gamma), view) == sorted(order[spent <= gamma].tolist())
    assert accepted(EntropyBounded.of(-1), view) == [7]


def test_local_leap_reaches_from_open_anchors_only():
    c = [0.76, 0.76, 0.95, 0.76, 0.5, 0.76, 0.76, 0.76]
    assert accepted(LocalLeap.of(0.9, 0.75, 1), seen(c)) == [1, 2, 3]
    assert accepted(LocalLeap.of(0.9, 0.75, 3), seen(c)) == [0, 1, 2, 3, 5]
    assert accepted(LocalLeap.of(0.9, 0.75, 8), seen(c)) == [0, 1, 2, 3, 5, 6, 7]
    assert accepted(LocalLeap.of(0.9, 0.75, 3), seen(c, [1, 1, 0, 1, 1, 1, 1, 1])) == []


def calls_until_committed(p, alpha=0.7, gamma=0.2, beta=0.8, threshold=0.9, most=60):
    rule, view = Credit.of(alpha, gamma, beta), seen([p], vocab=2)
    carry = rule.init(1, 1, 2)
    for call in range(1, most + 1):
        logits, carry = rule(view.replace(fresh=jnp.asarray([call == 1])), carry)
        if float(jax.nn.softmax(logits)[0, 0, 0]) >= threshold:
            return call
    return None


def test_credit_passes_the_bar_when_its_closed_form_says():
    assert [calls_until_committed(p) for p in (0.849, 0.80, 0.75, 0.73)] == [1, 3, 8, 17]
    assert calls_until_committed(0.7265) is None and calls_until_committed(0.7275) is not None
    for p in (0.6, 0.8):  # the odds of a token with credit C grow by (1 + C) ** alpha
        logits, credit = Credit.of()(seen([p], vocab=2), jnp.zeros((1, 1, 2)))
        odds = np.exp(float(logits[0, 0, 0] - logits[0, 0, 1]))
        np.testing.assert_allclose(odds, p / (1 - p) * (1 + p**0.2) ** 0.7, rtol=1e-4)
    _, credit = Credit.of()(seen([0.8, 0.8], [1, 0]), jnp.zeros((1, 2, 5)))
    assert float(credit[0, 0, 0]) > 0 and not np.asarray(credit[0, 1]).any(), "a committed position gained credit"


def test_hierarchical_takes_one_of_every_gap():
    view = seen([0.5, 0.6, 0.95, 0.45, 0.3, 0.2, 0.7, 0.7], [1, 1, 0, 1, 1, 1, 0, 1])
    assert accepted(Hierarchical.of(0.9, 0.4), view) == [1, 3, 7]
    assert accepted(Hierarchical.of(0.55, 0.5), view) == [1, 7]


def test_klass_wants_two_calm_calls():
    rule, view, other = Klass.of(0.9, 0.01, 2), seen(C), seen(C[::-1])
    carry, found = rule.init(1, 8, 5), []
    for call, now in enumerate([view, view, view, other, other, other]):
        choice = rule(now.replace(fresh=jnp.asarray([call == 0])), carry)
        carry = choice.carry
        found.append(np.flatnonzero(np.asarray(choice.accept)[0]).tolist())
    assert found == [[], [], [0, 2, 7], [], [], [0, 5, 7]]


def test_ada_block_ends_behind_the_most_confident_delimiter():
    tokens = [0, 3, 0, 0, 3, 0, 3, 0]
    view = seen([0.9, 0.5, 0.9, 0.9, 0.8, 0.9, 0.95, 0.9], tokens=tokens)
    region = lambda **changes: int(AdaBlock.of(**({"delimiter": [3], "size": 4, "ahead": 6} | changes))(view)[0])
    assert region() == 5 and region(ahead=8) == 7 and region(tau=0.85) == 4 and region(ahead=1) == 4
    committed = view.replace(open=view.open.at[0, 4].set(False))
    assert int(AdaBlock.of([3], size=4, ahead=6)(committed)[0]) == 2


def test_prophet_reads_the_gap_over_the_answer():
    view = seen([0.5] * 6 + [0.99, 0.99], vocab=2)
    gap = np.log(0.99 / 0.01)
    for threshold, width, wanted in ((gap, 2, True), (gap, 3, False), (gap / 2, 4, True), (gap / 2, 5, False)):
        assert bool(Prophet.of(threshold - 0.01, 99, 99, answer=-width, width=width)(view)[0]) == wanted
    late, patient = view.replace(turn=jnp.asarray([6])), Prophet.of(99, 99, 1.0, answer=6, width=2)
    assert bool(patient(late)[0]) and not patient(view)[0]


def test_wino_takes_back_what_a_shadow_doubts():
    view = seen(C, [0, 0, 0, 1, 1, 1, 1, 1])
    law = jnp.full((1, 8, 5), 0.02).at[:, :, 0].set(0.92).at[0, 1, 0].set(0.3).at[0, 2, 0].set(0.5)
    view = view.replace(shadow=jnp.log(law / law.sum(-1, keepdims=True)), fresh=jnp.asarray([False]))
    reopened = lambda last: np.flatnonzero(np.asarray(Wino.of()(view, jnp.asarray([last])).remask)[0]).tolist()
    assert reopened(5) == [1, 2] and reopened(2) == [1] and reopened(1) == []
    assert accepted(Wino.of(most=2), view, jnp.asarray([5])) == [6, 7]
    single = view.replace(open=jnp.asarray([[0, 0, 0, 1, 0, 0, 0, 0]], bool))
    assert not Wino.of()(single, jnp.asarray([5])).remask.any(), "a call that commits one takes something back"


def test_end_of_text_cuts_where_it_is_predicted():
    view = seen([0.9, 0.5, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9], tokens=[0, 0, 4, 4, 0, 4, 0, 0])
    none, some = jnp.zeros((1, 8), bool), jnp.zeros((1, 8), bool).at[0, 2].set(True).at[0, 5].set(True)
    cut = lambda accept, **options: int(EndOfText(jnp.asarray([4]), **options)(view, accept)[0])
    assert cut(some) == 3 and cut(none) == 6 and cut(none, leftmost=True) == 3
    assert cut(none, tau=jnp.float32(0.95)) == 8


def hard_filter(length, tau):
    """A filter that is a threshold: each output a steep function of its own input."""
    steep = jnp.eye(length) * 4000.0
    bias = jnp.full(length, -4000.0 * (tau - 1e-3))
    weights = FilterWeights(into=steep, bias=bias, out=jnp.eye(length), out_bias=jnp.full(length, -2.0))
    return weights, ConfidenceFilter(length, length)


FIXED = {"delimiter": (3,), "ada_block.tau": 2.0, "size": 8, "ahead": 12}

# Limits: the same decode under another name. Every line is (names, options) twice.
SAME = {
    "local_leap of radius 0": (("local_leap", {"radius": 0}), ("threshold", {})),
    "local_leap of one threshold": (("local_leap", {"tau": 0.9}), ("threshold", {})),
    "credit of 0": (("credit+threshold", {"alpha": 0.0}), ("threshold", {})),
    "ada_block without delimiters sure enough": (("ada_block+threshold", FIXED), ("threshold", {})),
    "prophet that never knows": (("prophet+threshold", dict(early=1e9, mid=1e9, late=1e9)), ("threshold", {})),
    "hierarchical without a low threshold": (("hierarchical", {"low": 2.0}), ("threshold", {"strict": True})),
    "threshold above 1": (("threshold", {"tau": 2.0}), ("quota", {})),
    "factor below 0": (("factor", {"f": -1.0}), ("quota", {})),
    "local_leap above 1": (("local_leap", {"kappa": 2.0}), ("quota", {})),
    "as many steps as positions": (("quota", {"steps": 8}), ("quota", {})),
    "klass of a law that never rests": (("klass", {"kl": -1.0}), ("quota", {})),
    "eb below 0": (("eb", {"gamma": -1.0}), ("entropy", {"delta": -1.0})),
    "quota by entropy": (("quota", {"score": "entropy"}), ("entropy", {"delta": -1.0})),
    "factor of a whole block": (("factor", {"f": 9.0}), ("threshold", {"tau": 0.0})),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_limits(name):
    (names, options), (limit, its) = SAME[name]
    kept = {} if "ada_block" not in names else {"block": None}
    same(on_chain(names, options, **kept), on_chain(limit, its))


def test_a_filter_can_be_a_threshold():
    weights, network = hard_filter(8, 0.9)
    trained = {"filter": Component(network, weights)}
    same(on_chain("learned_filter", components=trained), on_chain("threshold"))
    same(on_chain("learned_filter", {"tau": 1.0}, components=trained), on_chain("quota"))


def test_rules_are_not_all_the_same():
    plain = on_chain("threshold")
    for names, options in (
        ("local_leap", {}),
        ("credit+threshold", {}),
        ("eb", {}),
        ("factor", {}),
        ("quota", {}),
        ("klass", {}),
    ):
        assert differs(plain, on_chain(names, options)), names


def test_prophet_that_always_knows_needs_one_call():
    state = on_chain("prophet+threshold", dict(early=-1e9, mid=-1e9, late=-1e9))
    assert (np.asarray(state.calls) == 1).all()
    same(state, on_chain("threshold", {"tau": 0.0}, block=None))


def test_the_oracle_returns_the_reference():
    right = on_chain("quota").tokens
    state = on_chain("oracle", {"reference": right})
    same(state, on_chain("quota"), stamps=False)
    assert state.calls.sum() < on_chain("threshold").calls.sum() < on_chain("quota").calls.sum()
    new = jnp.arange(32)[None] >= jnp.asarray(STARTS)[:, None]
    wrong = jnp.where(new, (right + 1) % 12, right)
    same(on_chain("oracle", {"reference": wrong}), on_chain("quota").replace(tokens=wrong), stamps=False)


def test_wino_ends_and_counts_what_it_takes_back():
    target, params = denoiser()
    state = decode(compose(target, "wino", {"tau": 0.3, "tau_remask": 0.6}, block=16), params)
    assert np.asarray(state.done).all() and int(state.carry.revised.sum()) > 3
    assert (np.asarray(state.calls) <= LIMITS - LENGTHS).all()
    assert (np.asarray(state.stats.queries) == np.asarray(state.calls) * (48 + 16)).all(), "shadow rows are rows"
    none = decode(compose(target, "wino", {"tau": 0.3, "tau_remask": 0.0}, block=16), params)
    assert int(none.carry.revised.sum()) == 0


def test_other_thresholds_do_not_trace_again():
    model = chain()[0]
    traced = []

    @jax.jit
    def count(method):
        traced.append(method)
        return method.select.tau + 1

    for tau in (0.1, 0.5, 0.9):
        count.eval_shape(compose(model, "threshold", {"tau": tau}, block=8))
    assert len(traced) == 1


BAD = {
    "an unknown rule": (("treshold", {}, {}), "Did you mean 'threshold'"),
    "an unknown option": (("threshold", {"tua": 1}, {}), "Did you mean 'tau'"),
    "an option of two": (("local_leap+ada_block", {"tau": 0.5, "delimiter": (1,)}, {}), "local_leap.tau"),
    "two for one slot": (("eb+local_leap", {}, {}), "'eb' and 'local_leap' both fill the slot 'select'"),
    "ada_block without delimiters": (("ada_block", {}, {}), "ada_block needs the option ada_block.delimiter"),
    "an unknown cache": (("quota", {}, {"cache": "dul"}), "Did you mean 'dual'"),
    "a cache and a prophet": (("prophet", {}, {"cache": "dual", "block": 8}), "prophet must see the whole canvas"),
    "a dual cache without blocks": (("quota", {}, {"cache": "dual"}), "cache 'dual' needs blocks"),
    "a block cache for full attention": (("quota", {}, {"cache": "block"}), "sees the whole canvas"),
    "freedave and revocation": (("wino+freedave", {}, {"block": 8}), "freedave needs a rule that never takes back"),
    "no end-of-text": (("end_of_text", {}, {}), "end_of_text needs end-of-text token ids"),
    "a block of nothing": (("quota", {}, {"block": 0}), "A block is at least one token long"),
    "a threshold below 0": (("threshold", {"tau": -0.1}, {}), "tau is a confidence, so 0 or more"),
    "no number": (("local_leap", {"kappa": float("nan")}, {}), "kappa is a confidence"),
    "no steps": (("time_grid", {"steps": 0}, {}), "time_grid wants steps >= 1"),
    "a quota of nothing": (("quota", {"per_call": 0}, {}), "per_call is 1 or more"),
    "a mode of ending": (("quota", {}, {"eos_policy": "soon"}), "eos_policy is free, late or never"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence(name):
    (names, options, rest), sentence = BAD[name]
    with pytest.raises((InputError, UnknownName), match=sentence):
        compose(denoiser()[0], names, options, **rest)


def test_more_bad_input():
    causal, exact = denoiser(block=8)[0], chain()[0]
    with pytest.raises(InputError, match="its mask fixes them at 8"):
        compose(causal, "ada_block", {"delimiter": (1,)})
    with pytest.raises(InputError, match="do not divide the model's blocks of 8"):
        compose(causal, "quota", block=5)
    with pytest.raises(InputError, match="cache 'prefix' is for models that see the whole canvas"):
        compose(causal, "quota", cache="prefix")
    with pytest.raises(InputError, match="trained for blocks of 8; give block=8"):
        weights, network = hard_filter(8, 0.9)
        compose(exact, "learned_filter", components={"filter": Component(network, weights)}, block=16)
    with pytest.raises(InputError, match="shadow rows"):
        compose(exact, "wino", block=8)
    with pytest.raises(InputError, match="one place off"):
        compose(denoiser(shift=True)[0], "wino", block=8)
    with pytest.raises(InputError, match="mask_token_id"):
        denoiser()[0].__class__(denoiser()[0].base, mask_id=97)
    for make in (
        lambda: Quota.of(0),
        lambda: LocalLeap.of(radius=-1),
        lambda: Klass.of(history=0),
        lambda: Wino.of(most=0),
    ):
        with pytest.raises(ValueError):
            make()


def test_every_part_says_what_it_is():
    slots = [row.slot for row in SYSTEMS.values() if row.slot not in ("draft", "accept")]
    assert set(slots) == {"select", "rewrite", "region", "stop", "cut", "wrap"} and len(slots) == 18
