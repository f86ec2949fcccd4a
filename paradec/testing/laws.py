"""The laws of decoding as functions: each asks one question of any model and method, and raises a sentence if it fails.

The truth is the target's `forward`. Sampling is argmax of warped logits plus noise keyed by position, so one forward
pass over a decoded text says what every token had to be: if each is right given those before it, the text is right.
Everything that varies between trials (temperature, end-of-text, limits, prompt lengths) is a value, so all trials of a
method share one compiled program; only a new structure or batch size compiles again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PyTree
from scipy.special import chdtrc

from paradec.decode import loop
from paradec.decode.sampling import NEXT, gumbel, penalise, row_keys, sampling, warp
from paradec.decode.seams import Method
from paradec.types import OPEN, DecodeState, Model, Prompt, Sampling


def decode(
    params: PyTree,
    method: Method,
    prompt: Prompt,
    *,
    limit: Any = None,
    how: Sampling | None = None,
    key: jax.Array | None = None,
    slots: int = 128,
    chunk: int = 8,
) -> DecodeState:
    """A finished decode: greedy, rows keyed by their number, 40 new tokens a row, unless told otherwise."""
    B = prompt.length.shape[0]
    limit = prompt.length + 40 if limit is None else jnp.asarray(limit, jnp.int32)
    how = sampling(B) if how is None else how
    key = row_keys(0, range(B)) if key is None else key
    state = loop.start(method, params, prompt, limit, key, how, slots=slots, chunk=chunk)
    return loop.run(method, params, state, OPEN)  # as an argument, as `stream` gives it: one program for both


@partial(jax.jit, static_argnums=0)
def truth(model: Model, params: PyTree, state: DecodeState) -> Int32[Array, "B S"]:
    """What the target itself puts at every position, given the state's text before it. Position 0 is undefined (0)."""
    logits = model.forward(params["target"], state.tokens).logits
    V = logits.shape[-1]
    seen = jnp.cumsum(jax.nn.one_hot(state.tokens, V, dtype=jnp.int32), axis=1) > 0
    position = jnp.broadcast_to(jnp.arange(1, state.tokens.shape[1] + 1)[None], state.tokens.shape)
    weights = warp(penalise(logits, seen, state.sampling), state.sampling)
    choice = jnp.argmax(weights + gumbel(state.key, position, V, NEXT), axis=-1).astype(jnp.int32)
    return jnp.pad(choice[:, :-1], ((0, 0), (1, 0)))


def exact(model: Model, params: PyTree, method: Method, state: DecodeState) -> None:
    """Every generated token is the target's own, and every row ends at its first end-of-text or at its limit."""
    text, right = np.asarray(state.tokens), np.asarray(truth(model, params, state))
    prompt, length, limit = (np.asarray(x) for x in (state.prompt, state.length, state.limit))
    for b in range(len(text)):
        wrong = [s for s in range(prompt[b], length[b]) if text[b, s] != right[b, s]]
        assert not wrong, (
            f"row {b}: token {wrong[0] - prompt[b]} of {length[b] - prompt[b]} is {text[b, wrong[0]]}; after this text "
            f"the target's forward says {right[b, wrong[0]]} (temperature {float(state.sampling.temperature[b]):g})"
        )
        ends = [s for s in range(prompt[b], length[b]) if text[b, s] in np.asarray(method.eos)]
        stop = max(limit[b], prompt[b]) if not ends else ends[0] + 1
        assert length[b] == stop, f"row {b} ends at {length[b]}; first end-of-text or limit say {stop}"
    assert np.asarray(state.done).all(), "run returned although a row is not done"


def trace(state: DecodeState, depth: int) -> None:
    """`committed_at` is a trace: prompt 0, then calls in order, each 1 to depth + 1 tokens, and the counters add up."""
    at, length, calls = (np.asarray(x) for x in (state.committed_at, state.length, state.calls))
    prompt, stats = np.asarray(state.prompt), jax.tree.map(np.asarray, state.stats)
    for b in range(len(at)):
        assert (at[b] != OPEN).sum() == length[b], f"row {b}: {(at[b] != OPEN).sum()} committed, length {length[b]}"
        assert (at[b, : prompt[b]] == 0).all(), f"row {b}: a prompt position is not committed by call 0"
        new = at[b, prompt[b] : length[b]]
        assert (np.diff(new) >= 0).all(), f"row {b}: committed_at falls along the row"
        called, each = np.unique(new, return_counts=True)
        assert called.tolist() == list(range(1, calls[b] + 1)), f"row {b}: {calls[b]} calls, but these commit: {called}"
        assert (each <= depth + 1).all(), f"row {b}: a call committed {each.max()} tokens with a depth of {depth}"
        assert stats.accepted[b].sum() + calls[b] >= len(new), f"row {b}: fewer accepted and own tokens than text"
        read = int(state.cache.length[b])
        assert read == length[b] - 1 or not calls[b], f"row {b}: the cache covers {read} of {length[b]} tokens"
    assert (stats.accepted <= stats.offered).all(), "more tokens were accepted than offered at some depth"
    assert (stats.offered <= calls[:, None]).all(), "a depth was offered more often than there were calls"
    assert (stats.queries >= calls).all(), "fewer target rows than target calls"


def spread(rows: int, *values: float) -> list:
    """One value per row, over and over."""
    return [values[b % len(values)] for b in range(rows)]


def trials(prompt: Prompt, slots: int, text: np.ndarray) -> Iterator[tuple[str, dict, tuple[int, ...]]]:
    """What `exactness` tries: names, arguments of `decode`, and two end-of-text ids (-1: none).

    `text` is a greedy text, from which the ids are taken that greedy rows will meet in the middle.
    """
    B, length = prompt.length.shape[0], np.asarray(prompt.length)
    mixed = sampling(
        B,
        temperature=spread(B, 0.8, 0.0, 1.0, 0.8, 1.3),
        top_k=spread(B, 0, 0, 8, 0, 20),
        top_p=spread(B, 1.0, 1.0, 1.0, 0.9, 0.95),
        min_p=spread(B, 0.0, 0.0, 0.0, 0.0, 0.02),
        repetition=spread(B, 1.0, 1.3, 1.0, 1.2, 1.0),
    )
    ends = tuple(int(text[b, length[b] + 9 + 4 * b]) for b in (0, 1))
    yield "greedy", {}, (-1, -1)
    yield "sampled at 0.8", dict(how=sampling(B, temperature=0.8)), (-1, -1)
    yield "mixed temperatures, filters and penalties", dict(how=mixed), (-1, -1)
    yield "end of text", {}, ends
    yield "sampled to the end of text", dict(how=mixed), ends
    yield "limits", dict(limit=np.minimum(length + spread(B, 40, 0, 1, 7, 40), slots)), (-1, -1)
    near = np.maximum(length, slots - np.asarray(spread(B, 17, 40, 6, 1, 0)))
    late = Prompt(token=jnp.resize(prompt.token, (B, slots)), length=jnp.asarray(near, jnp.int32))
    yield "a text that fills the canvas", dict(prompt=late, limit=np.full(B, slots)), (-1, -1)


def exactness(
    model: Model,
    params: PyTree,
    method: Any,
    prompt: Prompt,
    *,
    slots: int = 128,
    chunk: int = 8,
    sampled: bool = True,
) -> dict[str, DecodeState]:
    """Exactness and the trace invariants over all `trials`, which share one compiled program; unless `sampled`, over
    those at temperature 0 alone. Returns their states.

    `method` is a `Method`, or a function from the right texts of a trial ("B S") to one, for drafters that know it.
    """
    from paradec.decode.drafters.ar import NoDraft
    from paradec.decode.speculative import speculative

    wide = Prompt(token=jnp.resize(prompt.token, (prompt.token.shape[0], slots)), length=prompt.length)
    wide = wide.replace(token=wide.token.at[:, : prompt.token.shape[1]].set(prompt.token))
    plain = speculative(model, NoDraft(), eos=(-1, -2))
    greedy, states = np.asarray(decode(params, plain, wide, slots=slots, chunk=chunk).tokens), {}
    for name, options, ends in trials(wide, slots, greedy):
        if not sampled and "how" in options:
            continue
        options = dict(prompt=wide, slots=slots, chunk=chunk) | options
        chosen = method
        if not hasattr(method, "step"):
            chosen = method(decode(params, plain, **options).tokens)
        chosen = chosen.replace(eos=jnp.asarray(ends, jnp.int32))
        try:
            states[name] = decode(params, chosen, **options)
            exact(model, params, chosen, states[name])
            trace(states[name], chosen.drafter.depth)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    return states


def varied(state: DecodeState, distinct: int = 12) -> None:
    """Most rows hold at least `distinct` different tokens among the first 40 generated: laws on dull text are empty."""
    text, prompt, length = (np.asarray(x) for x in (state.tokens, state.prompt, state.length))
    kinds = [len(set(t[p : min(n, p + 40)].tolist())) for t, p, n in zip(text, prompt, length, strict=True)]
    assert np.median(kinds) >= distinct, f"distinct tokens a row: {kinds}; most rows should have {distinct}"


def same(a: DecodeState, b: DecodeState, rows: Sequence[tuple[int, int]], stamps: bool = True) -> None:
    """Row i of `a` and row j of `b` have the same text, and with `stamps` the same trace and calls, for all (i, j)."""
    for i, j in rows:
        for name in ("length", "tokens", *(("calls", "committed_at") if stamps else ())):
            x, y = np.asarray(getattr(a, name))[i], np.asarray(getattr(b, name))[j]
            if x.ndim:
                x, y = x[: int(a.length[i])], y[: int(b.length[j])]
            assert np.array_equal(x, y), f"row {i}: {name} is {x}, but {y} in other company"


def rows(
    params: PyTree, method: Method, prompt: Prompt, *, how: Sampling | None = None, permute: bool = True, alone: int = 0
) -> None:
    """A row has the same text and the same trace in any company, at any place in the batch, and at any padding.

    `permute=False` is for methods that hold something per row. The first `alone` rows are also decoded in a batch of
    one, which compiles another program.
    """
    B, key = prompt.length.shape[0], row_keys(0, range(prompt.length.shape[0]))
    how = sampling(B, temperature=spread(B, 0.8, 0.0)) if how is None else how
    together = decode(params, method, prompt, how=how)

    def some(order: np.ndarray) -> None:
        prompts, hows, keys = jax.tree.map(lambda x: x[order], (prompt, how, key))
        same(together, decode(params, method, prompts, how=hows, key=keys), [(int(b), i) for i, b in enumerate(order)])

    text = jnp.arange(prompt.token.shape[1])[None] < prompt.length[:, None]
    padded = prompt.replace(token=jnp.where(text, prompt.token, (prompt.token * 7 + 3) % 5))
    same(together, decode(params, method, padded, how=how), [(b, b) for b in range(B)])
    for b in (0, B - 1):
        company = prompt.length + jnp.where(jnp.arange(B) == b, 40, 0)  # the others are done before they begin
        same(together, decode(params, method, prompt, how=how, limit=company), [(b, b)])
    if permute:
        some(np.roll(np.arange(B), 2))
    for b in range(alone):
        some(np.asarray([b]))


def loops(params: PyTree, method: Method, prompt: Prompt, *, by_hand: int = 0) -> None:
    """`stream` ends where `run` ends and shows every turn; the step called by hand, without jit, does the same."""
    B = prompt.length.shape[0]
    limit, key, how = prompt.length + 12, row_keys(0, range(B)), sampling(B, temperature=spread(B, 0.0, 0.8))
    fresh = lambda: loop.start(method, params, prompt, limit, key, how, slots=128, chunk=8)
    final = loop.snapshot(loop.run(method, params, fresh(), OPEN))
    shown = list(loop.stream(method, params, fresh()))
    jax.tree.map(np.testing.assert_array_equal, shown[-1], final)
    assert len(shown) == final.calls.max(), f"{len(shown)} snapshots of a decode of {final.calls.max()} turns"
    for turn, now in enumerate(shown, start=1):
        committed = final.committed_at <= turn
        assert np.array_equal(now.committed_at != OPEN, committed), f"after turn {turn} other positions are committed"
        assert np.array_equal(now.tokens[committed], final.tokens[committed]), f"a token of turn {turn} changed later"
    if by_hand:
        state = fresh()
        for _ in range(by_hand):
            state = method.step(params, state)
        run = loop.snapshot(loop.run(method, params, fresh(), np.int32(by_hand)))
        jax.tree.map(np.testing.assert_array_equal, loop.snapshot(state), run)


def one_trace(calls: Sequence[tuple[Method, PyTree, DecodeState]]) -> None:
    """Calls of `run` with equal shapes and other values (weights, thresholds, models equal by value) trace it once."""
    traced = []

    @jax.jit
    def counted(method: Method, params: PyTree, state: DecodeState) -> DecodeState:
        traced.append(method)
        return method.step(params, state)

    for call in calls:
        counted.eval_shape(*call)  # shares jit's trace cache and compiles nothing
    assert len(traced) == 1, f"{len(calls)} calls of equal shapes were traced {len(traced)} times"


def enumerate_law(
    model: Model, params: PyTree, prompt: Sequence[int], steps: int, how: Sampling
) -> Float[np.ndarray, "..."]:
    """The exact joint law of the next `steps` tokens, shape (V,) * steps, from one forward over all V^steps texts.

    `how` is the `Sampling` of one row.
    """
    V = model.vocab_size
    ends = np.stack(np.meshgrid(*[np.arange(V)] * steps, indexing="ij"), axis=-1).reshape(-1, steps)
    text = jnp.asarray(np.concatenate([np.tile(prompt, (len(ends), 1)), ends], axis=1), jnp.int32)
    each = _conditionals(model, params, text, how, steps)
    return np.prod(np.asarray(each, np.float64), axis=1).reshape((V,) * steps)


@partial(jax.jit, static_argnames="steps")
def _conditionals(
    model: Model, params: PyTree, text: Int32[Array, "B T"], how: Sampling, steps: int
) -> Float[Array, "B steps"]:
    """The probability of each of the last `steps` tokens after those before it, under one row's `Sampling`."""
    rows, P = text.shape[0], text.shape[1] - steps
    seen = jnp.cumsum(jax.nn.one_hot(text, model.vocab_size, dtype=jnp.int32), axis=1) > 0
    how = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows,)), how)
    weights = warp(penalise(model.forward(params, text).logits, seen, how), how)
    law = jax.nn.softmax(weights[:, P - 1 : -1].astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(law, text[:, P:, None], axis=2)[..., 0]


def chi_square(
    model: Model, params: PyTree, method: Method, prompt: Sequence[int], *, steps: int = 3, rows: int = 8192, how: Any
) -> float:
    """The p-value of `rows` decodes of one prompt against the enumerated law; below 1e-4 it raises.

    Cells that expect fewer than five texts are pooled; a text of probability 0 raises at once.
    """
    law = enumerate_law(model, params["target"], prompt, steps, how).reshape(-1)
    token = jnp.broadcast_to(jnp.asarray(prompt, jnp.int32), (rows, len(prompt)))
    batch = Prompt(token=token, length=jnp.full(rows, len(prompt)))
    hows = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows,)), how)
    state = decode(params, method, batch, limit=batch.length + steps, how=hows, slots=len(prompt) + steps)
    text = np.asarray(state.tokens)[:, len(prompt) : len(prompt) + steps]
    cell = np.ravel_multi_index(tuple(text.T), (model.vocab_size,) * steps)
    got, want = np.bincount(cell, minlength=law.size), law * rows
    assert not got[law == 0].any(), f"{got[law == 0].sum()} of {rows} texts have probability 0"
    rare = want < 5
    got, want = (np.append(x[~rare], x[rare].sum()) for x in (got, want))
    got, want = got[want > 0], want[want > 0]
    p = float(chdtrc(len(want) - 1, ((got - want) ** 2 / want).sum()))
    apart = np.abs(got - want).sum() / 2 / rows
    assert p > 1e-4, f"the law of the texts is wrong: p = {p:.2g}, total variation {apart:.3f} over {len(want)} cells"
    return p


COPIES = "copy|transpose|gather|scatter|select|concatenate|all-gather|pad|reverse|broadcast|convert"


def memory(params: PyTree, method: Method, *, batch: int = 4, slots: int = 4096) -> None:
    """A compiled decode keeps its cache in place: small temporaries, all of it aliased, nothing of its shape copied."""
    prompt = Prompt(token=jnp.zeros((batch, 16), jnp.int32), length=jnp.full(batch, 16))
    start = partial(loop.start, slots=slots, chunk=8)
    key = row_keys(0, range(batch))
    state = jax.eval_shape(start, method, params, prompt, prompt.length + 8, key, sampling(batch))
    program = loop.run.lower(method, params, state, OPEN).compile()
    leaves, used = jax.tree.leaves(state.cache), program.memory_analysis()
    whole = sum(x.size * x.dtype.itemsize for x in leaves)
    assert used.temp_size_in_bytes < whole / 4, f"temporaries {used.temp_size_in_bytes}, cache {whole} bytes"
    assert used.alias_size_in_bytes >= whole, f"only {used.alias_size_in_bytes} of {whole} cache bytes are reused"
    biggest = max(leaves, key=lambda x: x.size)
    shape = ",".join(map(str, biggest.shape))
    found = re.findall(rf"^.*= \w+\[{shape}\]\S* (?:{COPIES})\(.*$", program.as_text(), re.MULTILINE)
    assert not found, f"the cache is rewritten in every step by {found[0].strip()[:160]}"
