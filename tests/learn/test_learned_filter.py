"""Learn2PD's filter from recorded calls to a decode: labels, loss, file, program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import paradec
from configs import learned_filter as configs
from paradec import params
from paradec.catalog import SYSTEMS
from paradec.composition import compose, parse
from paradec.data.padded import Padded
from paradec.decode.seams import FACTS, SelectAround
from paradec.errors import InputError, UnknownName, WeightsError
from paradec.io.confidence_filter import TrainedFilter, load_filter, save_filter
from paradec.io.hf import save_hf
from paradec.io.medusa import fingerprint
from paradec.io.tokenizer import save_words
from paradec.learn import step as learn
from paradec.learn.loop import Run
from paradec.learn.objectives.learned_filter import FilterBatch, FilterLoss, Verdicts, filter_batch, verdicts
from paradec.learn.step import Plan
from paradec.lm import Request
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.heads import ConfidenceFilter, FilterWeights
from paradec.models.transformer import Transformer
from paradec.record import canvas_calls
from paradec.system import Component
from tests.decode.canvases import denoiser, on_chain, same
from tests.test_train import newest, program

pytestmark = pytest.mark.mixed_dtypes  # optax raises a float to an int32 step

TASK = Padded(items=4)
BLOCK, NEW = 4, 12
PROMPTS = [[1, 2, 3], [7], [5, 5, 9, 32], [34, 3, 1, 2], [33, 2]]
ASK = dict(block=BLOCK, max_new_tokens=NEW, batch_size=2)


def write_model(folder, seed=0):
    """A random denoiser that speaks the task's words; it is sharp and often wrong."""
    base = Transformer(
        vocab_size=TASK.vocab_size, width=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_width=48,
        max_length=128, tied=False, qk_norm=True,
    )  # fmt: skip
    weights = params.init(base.specs(), jax.random.key(seed))
    loud = weights.blocks.replace(out=weights.blocks.out * 6, down=weights.blocks.down * 6)
    weights = weights.replace(blocks=loud, norm=weights.norm * (5 + seed))
    save_hf(folder, BlockDiffusion(base, mask_id=TASK.mask_id), jax.device_get(weights))
    save_words(folder, TASK.words)
    return str(folder)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return paradec.load(write_model(tmp_path_factory.mktemp("denoiser") / "model"))


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    return canvas_calls.record(lm, PROMPTS, tmp_path_factory.mktemp("calls") / "oracle", shard=3, **ASK)


def slowly(lm, prompt, slots=16):
    """The calls of one prompt in plain numpy: decode the reference, then go along the oracle, a block at a time."""
    forward = jax.jit(lambda token, valid: lm.model.forward(lm.params, token, valid=valid).logits)
    first, end, mask, eos = len(prompt), len(prompt) + NEW, TASK.mask_id, TASK.eos
    valid = jnp.asarray(np.arange(slots) < end)[None]

    def call(canvas):
        logits = np.asarray(forward(jnp.asarray(canvas)[None], valid)[0], np.float64)
        logits[:, mask] = -np.inf
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    empty = np.full(slots, mask, np.int32)
    empty[:first], empty[end:] = prompt, 0
    reference, found = empty.copy(), []
    for lo in range(first, end, BLOCK):
        while open_ := [s for s in range(lo, lo + BLOCK) if reference[s] == mask]:
            p = call(reference)
            best = max(open_, key=lambda s: p[s].max())
            reference[best] = p[best].argmax()
    canvas = empty.copy()
    for lo in range(first, end, BLOCK):
        while open_ := [s for s in range(lo, lo + BLOCK) if canvas[s] == mask]:
            before = canvas[first : canvas.tolist().index(mask)]
            if eos in before:
                return found
            p, here = call(canvas), range(lo, lo + BLOCK)
            right = [s for s in open_ if p[s].argmax() == reference[s]]
            shown = [p[s].max() if s in open_ else p[s][canvas[s]] for s in here]
            found.append((shown, [s in right for s in here], [s in open_ for s in here]))
            for s in right or [max(open_, key=lambda s: p[s].max())]:
                canvas[s] = reference[s]
    return found


def test_what_is_recorded_is_what_a_slow_loop_sees(lm, folder):
    rows = canvas_calls.FilterRows.read([folder]).columns
    missed = passed = 0
    for number, prompt in enumerate(PROMPTS):
        mine = {name: x[rows["row"] == number] for name, x in rows.items()}
        confidence, final, open_ = (np.asarray(x) for x in zip(*slowly(lm, prompt), strict=True))
        np.testing.assert_array_equal(mine["open"], open_)
        np.testing.assert_array_equal(mine["final"], final)
        np.testing.assert_allclose(mine["confidence"], confidence, atol=1e-5)
        assert not np.array_equal(np.roll(final, 1, axis=1), final)
        missed, passed = missed + (open_ & ~final).sum(), passed + final.sum()
    assert missed > 10 and passed > 10  # or the labels say nothing


def test_a_recording_goes_on_and_refuses_another(lm, folder, tmp_path):
    again = canvas_calls.record(lm, PROMPTS, tmp_path / "again", shard=3, **ASK)
    files = sorted(path.name for path in again.iterdir())
    assert files == ["00000.safetensors", "00001.safetensors", "recording.json"]
    (again / files[1]).unlink()
    (again / files[0]).write_bytes(b"kept")
    canvas_calls.record(lm, PROMPTS, again, shard=3, **ASK)
    assert (again / files[0]).read_bytes() == b"kept"
    assert (again / files[1]).read_bytes() == (folder / files[1]).read_bytes()
    with pytest.raises(InputError, match="block: 4 → 6"):
        canvas_calls.record(lm, PROMPTS, folder, shard=3, **ASK | {"block": 6})
    with pytest.raises(InputError, match="speculates"):
        canvas_calls.record(lm, PROMPTS, tmp_path / "new", along="oracle+freedave", **ASK)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("threshold+end_of_text", {"threshold.tau": 0.3, "end_of_text.tau": 0.5}),  # the window is the whole canvas
        ("time_grid", {"steps": 3 * BLOCK, "score": "probability"}),  # calls that commit nothing
    ],
)
def test_the_rule_that_is_watched_decides_as_if_alone(lm, names, options):
    ask = Request(method=names, max_new_tokens=NEW, batch_size=5)
    walk = canvas_calls.Walk.of(lm, ask, BLOCK, names, options)
    decoder = lm.decoder(ask, options | {"block": BLOCK})
    alone = decoder.run(lm.begin(decoder, PROMPTS, ask, range(5)))
    calls = walk.calls(PROMPTS, range(5))
    np.testing.assert_array_equal(calls.open.any(-1).sum(-1), alone.calls)
    assert calls.open[:, 0].any(-1).all()
    oracle = canvas_calls.Walk.of(lm, ask, BLOCK, "oracle", {}).calls(PROMPTS, range(5))
    for name in ("confidence", "final", "open"):  # all begin with the same call
        first = [np.asarray(getattr(x, name)[:, 0], np.float32) for x in (calls, oracle)]
        np.testing.assert_allclose(*first, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", [row.name for row in SYSTEMS.values() if row.slot == "select"])
def test_what_a_rule_says_of_itself_is_handed_on(name):
    filter, text = ConfidenceFilter(4, 2), jnp.zeros((1, 4), jnp.int32)
    trained = {"filter": Component(filter, params.init(filter.specs(), jax.random.key(0)))}
    given = {"oracle": {"reference": text}, "learned_filter": trained}.get(name, {})
    rule = SYSTEMS[name].make(**given)
    seen = canvas_calls.Recorder(rule, text, 4, 4)
    assert {f: getattr(seen, f) for f in FACTS} == {f: getattr(rule, f) for f in FACTS}
    assert set(FACTS) <= set(vars(SelectAround)), "a fact that no wrapper knows"


def test_batches_go_on_where_they_were(folder):
    rows = canvas_calls.FilterRows.read([folder])
    some = iter(canvas_calls.Drawn(rows, 6, seed=2, make=filter_batch))
    first, state, second = next(some), some.get_state(), next(some)
    again = iter(canvas_calls.Drawn(rows, 6, seed=2, make=filter_batch))
    again.set_state(json.loads(json.dumps(state)))
    jax.tree.map(np.testing.assert_array_equal, next(again), second)
    assert not np.array_equal(first.confidence, second.confidence) and first.confidence.shape == (6, BLOCK)
    train, held = rows.split(5)
    assert set(held.columns["row"]) == {4} and set(train.columns["row"]) == {0, 1, 2, 3}
    for every, words in ((1, "cannot be held out"), (0, "cannot be held out"), (9, "none to measure with")):
        with pytest.raises(InputError, match=words):
            rows.split(every)


def batch_of(rows=64, seed=0):
    """A position is final where its own and its left neighbour's confidence are above a half: no one threshold says
    that."""
    rng = np.random.default_rng(seed)
    confidence = rng.random((rows, 8)).astype(np.float32)
    final = (confidence > 0.5) & (np.roll(confidence, 1, axis=1) > 0.5)
    return FilterBatch(*map(jnp.asarray, (confidence, final, rng.random((rows, 8)) < 0.7)))


def test_the_loss_is_that_of_the_formula():
    network, batch = ConfidenceFilter(8, 5), batch_of()
    weights = jax.tree.map(lambda x: x * 3, params.init(network.specs(), jax.random.key(1)))
    got = FilterLoss(network, wrong=2.5, threshold=0.6)(weights, None, batch, jax.random.key(0))
    confidence, final, open_ = map(np.asarray, (batch.confidence, batch.final, batch.open))
    total, count, hits = 0.0, 0, {"passed": 0, "final": 0, "both": 0}
    for b, i in zip(*np.nonzero(open_), strict=True):
        hidden = np.maximum(confidence[b] @ weights.into + weights.bias, 0)
        p = 1 / (1 + np.exp(-float(hidden @ weights.out[:, i] + weights.out_bias[i])))
        total += -np.log(p) if final[b, i] else -2.5 * np.log(1 - p)
        count += 1
        hits["passed"] += p > 0.6
        hits["final"] += final[b, i]
        hits["both"] += p > 0.6 and final[b, i]
    np.testing.assert_allclose(got.total, total, rtol=1e-4)
    assert got.weight == count and 0 < hits["both"] < min(hits["passed"], hits["final"])
    shares = {"passed": hits["passed"] / count, "precision": hits["both"] / hits["passed"]}
    for name, share in (shares | {"recall": hits["both"] / hits["final"]}).items():
        np.testing.assert_allclose(got.means()[name], share, rtol=1e-5)
    shown = batch.replace(final=batch.final ^ ~batch.open)  # what is committed is not learned
    again = FilterLoss(network, 2.5, 0.6)(weights, None, shown, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, got)


def test_a_filter_learns_what_no_bar_can_say():
    network, plan = ConfidenceFilter(8, 32), Plan(steps=400, warmup=1, learning_rate=0.02, weight_decay=0.0)
    state, batch = learn.init(plan, params.init(network.specs(), jax.random.key(0)), jax.random.key(0)), batch_of(1024)
    for _ in range(400):
        state, metrics = learn.step(plan, FilterLoss(network), state, None, batch)
    said = verdicts(network, state.trainable, batch_of(512, seed=1))
    constant = max(said.final.mean(), 1 - said.final.mean())
    assert constant < 0.8 and said.accuracy(by_threshold=True) < 0.85 and said.accuracy() > 0.95
    assert said.at(0.96)["precision"] > 0.98 > said.of_confidence(0.9)["precision"] + 0.3
    assert metrics["precision"] > 0.98 and metrics["recall"] > 0.6


def test_verdicts_count():
    said = Verdicts(np.asarray([0.9, 0.9, 0.2, 0.7]), np.asarray([0.5] * 4), np.asarray([True, False, False, True]))
    assert said.at(0.8) == {"passed": 0.5, "precision": 0.5, "recall": 0.5}
    assert said.at(0.95) == {"passed": 0.0, "precision": 1.0, "recall": 0.0}
    assert said.of_confidence(0.5) == {"passed": 1.0, "precision": 0.5, "recall": 1.0}
    assert said.accuracy() == 0.75 and said.accuracy(by_threshold=True) == 0.5  # equal scores pass together or not


def copying(tau, length=8):
    """A filter that is a threshold."""
    weights = FilterWeights(
        jnp.eye(length) * 4e3, jnp.full(length, -4e3 * tau), jnp.eye(length), jnp.full(length, -2.0)
    )
    return {"filter": Component(ConfidenceFilter(length, length), weights)}


def test_a_filter_finds_its_block_on_a_whole_canvas():
    """End-of-text prediction needs every position in the window, which then does not begin with the block."""
    cut = {"end_of_text.tau": 0.9}
    same(
        on_chain("learned_filter+end_of_text", cut, components=copying(0.9 - 1e-3), eos=(3,)),
        on_chain("threshold+end_of_text", {"threshold.tau": 0.9} | cut, eos=(3,)),
    )


@pytest.fixture(scope="module")
def trained(lm):
    network = ConfidenceFilter(BLOCK, 6)
    weights = params.init(network.specs(), jax.random.key(3))
    return TrainedFilter(
        network, jax.device_get(weights), {"base": lm.name, "base_digest": fingerprint(lm.model, lm.params)}
    )


def test_a_file_read_back_is_the_same(lm, trained, tmp_path):
    path = tmp_path / "filter.safetensors"
    save_filter(path, trained)
    read = load_filter(path)
    assert (
        read.filter == trained.filter and read.facts == {"format": "paradec filter 1", "block": BLOCK} | trained.facts
    )
    jax.tree.map(np.testing.assert_array_equal, read.weights, trained.weights)
    asked = dict(method="learned_filter", max_new_tokens=NEW, batch_size=5)
    from_file = lm.generate(PROMPTS, method_args={"filter": str(path), "tau": 0.5}, **asked)
    options = parse("learned_filter", [f"learned_filter.filter={path}", "tau=0.5", f"block={BLOCK}"])
    opened = {"filter": Component(trained.filter, jax.tree.map(jnp.asarray, trained.weights)), "tau": 0.5}
    for other in (options, {"filter": trained, "tau": 0.5}, opened | {"block": BLOCK}):
        again = lm.generate(PROMPTS, method_args=other, **asked)
        assert [(r.token_ids, r.settled) for r in again] == [(r.token_ids, r.settled) for r in from_file]
    with pytest.raises(InputError, match="trained for blocks of 4; give block=4"):
        lm.generate(PROMPTS[0], method_args={"filter": str(path), "block": 6}, **asked)


def test_what_does_not_fit_is_refused(lm, trained, tmp_path):
    other = paradec.load(write_model(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match="This filter was trained for .* has other weights"):
        other.generate(PROMPTS[0], method="learned_filter", method_args={"filter": trained}, max_new_tokens=4)
    with pytest.raises(InputError, match="pass filter=FILE"):
        compose(denoiser()[0], "learned_filter", block=8)
    with pytest.raises(UnknownName, match="option of learned_filter named"):
        parse("learned_filter", ["weights=3"])
    path = tmp_path / "filter.safetensors"
    with pytest.raises(WeightsError, match="is missing"):
        load_filter(path)
    save_filter(path, trained)
    tensors, facts = load_file(path), path.with_suffix(".json")
    save_file(tensors | {"into": tensors["into"].T.copy()}, path)
    with pytest.raises(WeightsError, match="are no filter of a block of 4"):
        load_filter(path)
    save_file({"into": tensors["into"]}, path)
    with pytest.raises(WeightsError, match="holds into and no filter"):
        load_filter(path)
    save_file(tensors, path)
    facts.write_text(json.dumps({"format": "paradec medusa 1", "block": BLOCK}))
    with pytest.raises(WeightsError, match="does not describe a filter"):
        load_filter(path)
    facts.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        load_filter(path)


def test_from_a_command_to_a_decode(lm, tmp_path):
    """On eight devices; a second start finds every stage done."""
    calls = configs.Calls(items=4, prompts=12, new_tokens=11, block=BLOCK, batch=4, held_out=3)
    plan = dataclasses.replace(configs.padded().plan, steps=6, average=0.5)
    run = Run(out=tmp_path / "out", save_every=3)
    config = dataclasses.replace(configs.padded(), model=lm.name, calls=calls, plan=plan, batch=8, run=run)
    path = program("learned_filter").main(config)
    found, saved = load_filter(path), newest(tmp_path / "out" / "checkpoints")
    for name in ("into", "bias", "out", "out_bias"):
        np.testing.assert_array_equal(getattr(found.weights, name), saved[f"average/{name}"])
        assert not np.array_equal(saved[f"average/{name}"], saved[f"trainable/{name}"]), "that is what is trained"
    assert found.filter == ConfidenceFilter(BLOCK, 64) and found.facts["base_digest"] == fingerprint(
        lm.model, lm.params
    )
    assert set(found.facts["metrics"]["filter"]) == {"0.5", "0.9", "0.96", "0.99"}
    assert found.facts["config"]["calls"]["block"] == BLOCK and "run" not in found.facts["config"]
    (result,) = lm.generate(PROMPTS[0], method="learned_filter", method_args={"filter": str(path)}, max_new_tokens=NEW)
    assert result.calls >= 1
    written = path.read_bytes()
    assert program("learned_filter").main(config).read_bytes() == written
    wrong = dataclasses.replace(calls, task="files")
    with pytest.raises(InputError, match=r"--calls.files"):
        program("learned_filter").main(dataclasses.replace(config, calls=wrong))
