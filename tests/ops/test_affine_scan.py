"""The affine scan in all its forms against a plain loop that jax differentiates."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from paradec.errors import InputError, UnknownName
from paradec.ops.scan import affine_scan
from tests.ops.affine_cases import KINDS, assert_close, inputs, loop, times, with_gradients

PARALLEL = ("associative", "lanes", "chunk")
DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@functools.cache
def program(kind, implementation, reverse):
    """Compiled once for each shape; "loop" is the reference."""
    scan = functools.partial(affine_scan, kind=kind, reverse=reverse, implementation=implementation, chunk=4)
    scan = functools.partial(loop, kind, reverse) if implementation == "loop" else scan
    return jax.jit(lambda *args: with_gradients(scan, args))


@DIRECTIONS
@pytest.mark.parametrize("implementation", ["sequential", *PARALLEL])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_equals_the_loop_in_values_and_gradients(kind, implementation, reverse):
    args = inputs(kind)
    assert_close(program(kind, implementation, reverse)(*args), program(kind, "loop", reverse)(*args))


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_any_shapes(data):
    """Values; axes of `a` are shared or missing, and any axis may be of size 0."""
    draw = lambda *choices: data.draw(st.sampled_from(choices))
    size = st.integers(0, 3)
    kind, chunk, T = draw(*KINDS), data.draw(st.integers(1, 5)), data.draw(st.integers(0, 9))
    batch = data.draw(st.lists(size, max_size=2))
    batch = batch or [2] if kind == "dense" else batch
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    shared = [draw(1, n) for n in batch[: data.draw(st.integers(0, len(batch)))]]
    factor = lambda: np.tanh(normal(T, *shared)) / 2
    if kind == "dense":
        a, b, h0 = normal(T, *batch[:-1], batch[-1], batch[-1]) / 4, normal(T, *batch), normal(*batch)
    elif kind == "block":
        k = data.draw(st.integers(1, 3))
        a, b = tuple(tuple(factor() for _ in range(k)) for _ in range(k)), tuple(normal(T, *batch) for _ in range(k))
        h0 = tuple(normal(*batch) for _ in range(k))
    else:
        a, b, h0 = factor(), normal(T, *batch), normal(*batch)
    form = dict(kind=kind, reverse=draw(False, True), implementation=draw("sequential", *PARALLEL), chunk=chunk)
    a, b, h0 = jax.tree.map(jnp.asarray, (a, b, h0))
    got = jax.jit(functools.partial(affine_scan, **form))(a, b, h0)
    state, want = h0, [None] * T
    for t in reversed(range(T)) if form["reverse"] else range(T):
        step = jax.tree.map(lambda x, t=t: x[t], (a, b))
        state = want[t] = jax.tree.map(jnp.add, times(kind, step[0], state), step[1])
    assert_close(got, jax.tree.map(lambda *x: jnp.stack(x), *want) if T else b)


def test_no_steps_give_no_states_and_leave_h0_without_gradient():
    for kind in KINDS:
        args = jax.tree.map(lambda x: x[:0], inputs(kind)[:2])
        h, gradients = with_gradients(functools.partial(affine_scan, kind=kind), (*args, inputs(kind)[2]))
        assert_close(h, args[1])
        assert not any(x.any() for x in jax.tree.leaves(gradients))


@DIRECTIONS
def test_the_gradient_has_a_gradient(reverse):
    """Reverse over reverse, in lanes."""

    def twice(scan, args):
        of = lambda *args: jnp.cos(scan(*args)).sum()
        once = jax.grad(lambda *args: sum(jnp.sin(g).sum() for g in jax.grad(of, (0, 1, 2))(*args)), (0, 1, 2))
        return jax.jit(once)(*args)

    args = inputs("diagonal", T=6)
    scan = functools.partial(affine_scan, implementation="lanes", chunk=4, reverse=reverse)
    assert_close(twice(scan, args), twice(functools.partial(loop, "diagonal", reverse), args), 2e-5)


# Documents and padding.

SEGMENT = np.array([[7, 7, 7, 3, 3, 9, 9, 9, 9, 3, 3], [1, 2, 2, 2, 2, 2, 1, 1, 5, 5, 5]]).T
VALID = np.array([[0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0]], bool).T


def machine(kind, reverse, segment, valid, a, b, h0):
    """A loop that remembers the id of the last valid step."""
    wide = lambda flag, x: flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim))

    def step(carry, now):
        h, id_before, any_before = carry
        a, b, id_now, counts = now
        reset = any_before & (id_now != id_before)
        old = jax.tree.map(lambda x: jnp.where(wide(reset, x), 0.0, x), h)
        new = jax.tree.map(jnp.add, times(kind, a, old), b)
        h = jax.tree.map(lambda x, y: jnp.where(wide(counts, x), x, y), new, h)
        return (h, jnp.where(counts, id_now, id_before), any_before | counts), h

    start = h0, jnp.zeros_like(segment[0]), jnp.zeros_like(valid[0])
    return lax.scan(step, start, (a, b, segment, valid), reverse=reverse)[1]


@pytest.mark.parametrize(
    ("kind", "given", "reverse"),
    [*((kind, "both", reverse) for kind in KINDS for reverse in (False, True)),
     ("block", "segment", False), ("block", "segment", True), ("diagonal", "valid", False)],
)  # fmt: skip
def test_segments_reset_and_what_is_not_valid_passes_the_state_through(kind, given, reverse):
    segment = jnp.asarray(SEGMENT) if given != "valid" else None
    valid = jnp.asarray(VALID) if given != "segment" else None
    args = inputs(kind)
    scan = functools.partial(affine_scan, kind=kind, implementation="lanes", chunk=4, reverse=reverse)
    got = jax.jit(lambda *args: with_gradients(functools.partial(scan, segment=segment, valid=valid), args))(*args)
    segment = jnp.zeros_like(SEGMENT) if segment is None else segment
    valid = jnp.ones_like(VALID) if valid is None else valid
    want = functools.partial(machine, kind, reverse, segment, valid)
    assert_close(got, jax.jit(lambda *args: with_gradients(want, args))(*args))


@DIRECTIONS
def test_segments_are_separate_scans_and_padding_is_removed_steps(reverse):
    """What the two arguments mean, in words that a user would use; `machine` above is how a loop does it."""
    a, b, h0 = (x[:, 0] if i < 2 else x[0] for i, x in enumerate(inputs("diagonal")))
    kept = np.array([0, 1, 2, 3, 5, 6, 8, 9, 10])
    ids = np.array([4, 4, 4, 1, 0, 1, 1, 4, 2, 2, 2])  # steps 4 and 7 are padding
    valid = np.isin(np.arange(11), kept)
    scan = functools.partial(affine_scan, reverse=reverse, implementation="sequential")
    whole = scan(a, b, h0, segment=jnp.asarray(ids), valid=jnp.asarray(valid))
    parts = [[0, 1, 2], [3, 5, 6], [8, 9, 10]]
    starts = [jnp.zeros_like(h0), jnp.zeros_like(h0), h0] if reverse else [h0, jnp.zeros_like(h0), jnp.zeros_like(h0)]
    for part, start in zip(parts, starts, strict=True):
        assert_close(whole[np.array(part)], scan(a[np.array(part)], b[np.array(part)], start))
    for padding, same in ((4, 5 if reverse else 3), (7, 8 if reverse else 6)):
        np.testing.assert_array_equal(whole[padding], whole[same])


# Products that overflow where every state is finite.


def test_a_product_that_overflows_falls_back_to_the_loop():
    """40 factors of 1e3 meet a state of zero, then comes a factor of zero; the other way round, the same happens to the
    adjoint. Without the check, none of the parallel forms gives numbers."""
    large = jnp.concatenate([jnp.full(46, 0.5), jnp.full(40, 1e3), jnp.zeros(1), jnp.full(51, 0.5)])
    late = jnp.where(jnp.arange(138) > 86, 1.0, 0.0)

    def both(scan, a, b):
        h, pull = jax.vjp(scan, a, b, jnp.zeros(()))
        return h, pull(b)

    @functools.partial(jax.jit, static_argnums=0)
    def forms(checked, a, b):
        options = [dict(implementation=x, chunk=46, checked=checked) for x in PARALLEL]
        return [both(functools.partial(affine_scan, **x), a, b) for x in options]

    for order in (1, -1):
        a, b = large[::order], late[::order]
        want = both(functools.partial(loop, "diagonal", False), a, b)
        assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(want)])).all()
        for got, (h, (_, adjoint, _)) in zip(forms(True, a, b), forms(False, a, b), strict=True):
            assert_close(got, want)
            assert not np.isfinite(h if order == 1 else adjoint).all()


def test_a_state_that_is_truly_infinite_stays_so():
    a, b = jnp.full(60, 10.0), jnp.ones(60)
    h = affine_scan(a, b, implementation="lanes", chunk=8)
    np.testing.assert_array_equal(h, affine_scan(a, b, implementation="sequential"))


# Types, platforms, kernels, mistakes.


def test_states_are_float32_and_gradients_have_the_types_of_what_came_in():
    a, b, h0 = (x.astype(jnp.bfloat16) for x in inputs("diagonal", T=5))
    h, gradients = jax.jit(lambda *args: with_gradients(affine_scan, args))(a, b, h0)
    assert h.dtype == jnp.float32 and {x.dtype for x in gradients} == {jnp.dtype(jnp.bfloat16)}
    wide = tuple(x.astype(jnp.float32) for x in (a, b, h0))
    np.testing.assert_array_equal(h, affine_scan(*wide))
    with jax.enable_x64(True):
        assert affine_scan(jnp.ones(3, jnp.float64), jnp.ones(3, jnp.float32)).dtype == jnp.float64


def test_auto_is_the_loop_on_a_cpu_and_lanes_when_compiled_for_a_tpu():
    args = inputs("diagonal")
    traced = jax.jit(functools.partial(affine_scan, chunk=4)).trace(*args)
    loops = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
    assert (loops("cpu"), loops("tpu")) == (1, 4), "of the 4, one is the fallback"
    np.testing.assert_array_equal(affine_scan(*args), affine_scan(*args, implementation="sequential"))


def test_rows_of_a_batch_under_vmap():
    args = inputs("diagonal")
    scan = functools.partial(affine_scan, implementation="lanes", chunk=4)
    rows = jax.vmap(scan, in_axes=(1, 1, 0), out_axes=1)
    assert_close(jax.jit(rows)(*args), program("diagonal", "loop", False)(*args)[0])


def test_the_kernel_is_one_of_the_forms():
    """Interpreted; its own tests have the gradients and all shapes."""
    for kind, reverse in (("diagonal", False), ("block", True)):
        scan = functools.partial(affine_scan, kind=kind, implementation="kernel", reverse=reverse)
        assert_close(jax.jit(scan)(*inputs(kind, T=3)), loop(kind, reverse, *inputs(kind, T=3)))


def test_where_there_is_no_kernel_it_says_so(monkeypatch):
    with pytest.raises(InputError, match="no kernel for dense scans"):
        affine_scan(*inputs("dense"), kind="dense", implementation="kernel")
    monkeypatch.delattr("paradec.ops.kernels.scan", raising=False)
    monkeypatch.setitem(sys.modules, "paradec.ops.kernels.scan", None)
    with pytest.raises(InputError, match="no kernels for scans; use implementation='auto'"):
        affine_scan(*inputs("diagonal"), implementation="kernel")


X = jnp.ones((5, 2, 3))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: affine_scan(X, X, kind="diagnal"), UnknownName, "Did you mean 'diagonal'"),
        (lambda: affine_scan(X, X, implementation="parallel"), UnknownName, "There is no implementation of a scan"),
        (lambda: affine_scan(X, X, chunk=0), InputError, "chunk must be at least 1"),
        (lambda: affine_scan(X[:4], X), InputError, r"a must fit \(5, 2, 3\).*it is \(4, 2, 3\)"),
        (lambda: affine_scan(X[:1], X), InputError, "a must fit"),
        (lambda: affine_scan(X[:, :, :2], X), InputError, "a must fit"),
        (lambda: affine_scan(X, X[..., 0]), InputError, "a must fit"),
        (lambda: affine_scan(jnp.ones((5, 2, 3, 2)), X, kind="dense"), InputError, r"a must fit \(5, 2, 3, 3\) and"),
        (lambda: affine_scan(X, jnp.ones(5), kind="dense"), InputError, "Time is axis 0 of b"),
        (lambda: affine_scan(jnp.ones(()), jnp.ones(())), InputError, "Time is axis 0 of b"),
        (lambda: affine_scan(X, X, X), InputError, r"h0 must be like one step of b, \(2, 3\)"),
        (lambda: affine_scan((X,), (X,)), InputError, "tuples of arrays are for kind='block'"),
        (lambda: affine_scan(X, X, kind="block"), InputError, "takes a tuple of k arrays as b"),
        (lambda: affine_scan(((X,) * 5,) * 5, (X,) * 5, kind="block"), InputError, "1 to 4 arrays.*use kind='dense'"),
        (lambda: affine_scan(((X, X), (X,)), (X, X), kind="block"), InputError, "a tuple of 2 tuples of 2 arrays"),
        (lambda: affine_scan(((X, X), (X, X)), (X, X[:, 1:]), kind="block"), InputError, "must have one shape"),
        (lambda: affine_scan(X, X, segment=jnp.zeros((5, 3), int)), InputError, r"segment .* it is \(5, 3\)"),
        (lambda: affine_scan(X, X, segment=jnp.zeros((), int)), InputError, "segment must have the first axes"),
        (lambda: affine_scan(X, X, valid=jnp.zeros(4, bool)), InputError, r"valid .*\(5, 2, 3\) or fewer"),
        (
            lambda: affine_scan(X, X, segment=jnp.zeros(5, int), valid=jnp.zeros((5, 2), bool)),
            InputError, "must have one shape",
        ),
        (
            lambda: affine_scan(jnp.ones((5, 2, 3, 3)), X, kind="dense", valid=jnp.zeros((5, 2, 3), bool)),
            InputError, r"valid .*\(5, 2\) or fewer",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
