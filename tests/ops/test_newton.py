"""Recurrences solved by Newton's method against the loop over time: the numbers of the papers' methods, gradients, and
everything that can go wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.models.cells.para import ParaWeights
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.para_lstm import ParaLSTM
from paradec.ops.jacobian import probe
from paradec.ops.kalman import filtered
from paradec.ops.newton import solve
from tests.ops.newton_cases import CELLS, GRU, LSTM, B, N, case, dense

STEPS = {structure: jax.jit(step) for structure, step in CELLS.items()}


def loop(structure, w, x, h0):
    """The states after every step, one call after the other."""
    states = [h0]
    for u in x:
        states.append(STEPS[structure](w, states[-1], u))
    return jax.tree.map(lambda *h: np.stack(h), *states[1:])


def scanned(structure, w, x, h0):
    """The same as one program, for its gradient."""
    return jax.lax.scan(lambda h, u: (new := CELLS[structure](w, h, u), new), h0, x)[1]


@partial(jax.jit, static_argnums=(0,), static_argnames=("method", "iterations", "adaptive", "fallback", "window"))
def solved(structure, w, x, h0, **options):
    return solve(CELLS[structure], w, x, h0, structure=structure, **options)


def apart(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)), initial=0)) for x, y in leaves)


def loss(run):
    """A scalar of all states whose gradient is not the same for any two of them."""
    weigh = lambda h: jnp.sum(h * jnp.cos(jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape))
    return lambda *args: sum(weigh(leaf) for leaf in jax.tree.leaves(run(*args)))


# The numbers of the reference implementations, in float64.


def fill(shape, c, scale=1.0):
    return jnp.asarray(scale * np.sin(1.3 * np.arange(np.prod(shape)) + c)).reshape(shape)


EXPECTED = {
    "diagonal": {
        "first": [[-0.192054, 0.319560, 0.427181, 0.314643]],
        "last": [[-0.485205, -0.339330, 0.096401, 0.407406]],
        "loss": 1.224857,
        "of weights": [[-0.016050, -0.000802, 0.001398, -0.005740]],
        "of x": [0.148976, 0.061703, 0.078318, -0.404595],
        "jacobian": [0.427163, 0.261331, 0.564398, 0.495032],
        "errors": [0.441, 1.32e-2, 2.06e-5, 3e-13],
    },
    "block": {
        "first": [[-0.078971, 0.135485, 0.201504, 0.462441], [-0.023171, 0.055612, 0.098882, 0.172341]],
        "last": [[-0.586266, -0.409555, 0.062044, 0.215945], [-0.325831, -0.175632, 0.044523, 0.078152]],
        "loss": 0.346989,
        "of weights": [[0.006619, 0.000146, -0.001485, 0.000848], [-0.033438, -0.031299, 0.034104, 0.021874]],
        "of x": [0.001260, -0.008325, 0.048729, 0.010449],
        "jacobian": [0.462939, -0.186188, 0.225626, -0.007879],  # of channel 0, row by row
        "errors": [0.307, 2.03e-2, 4.12e-6, 2.5e-13],
    },
}


@pytest.mark.parametrize("cell", [ParaGRU(2, 2), ParaLSTM(2, 2)], ids=["GRU", "LSTM"])
def test_the_published_numbers(cell):
    want = EXPECTED[cell.structure]
    with jax.enable_x64(True):
        start = jnp.zeros((3, 4)).at[0].set(jnp.linspace(0, 1, 4))  # what `inputs` takes off the first row
        peephole = fill((2, 4), 0.5, 0.6) if cell.peepholes else None
        w = ParaWeights(fill((3, 4), 0.1, 0.8), peephole, fill((2, 2, 3, 2), 0.2, 0.7), fill((3, 4), 0.3, 0.5) + start)
        x, h0 = fill((5, 4), 0.4), jax.tree.map(lambda a: a.astype(jnp.float64), cell.zeros())
        run = partial(solve, cell.step, structure=cell.structure, method="newton")

        @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def total(w, x):
            h, _ = run(cell.recurrent(w), cell.inputs(w, x), h0, tol=1e-14)
            return jnp.sum(cell.output(h) ** 2) / 2, h

        @jax.jit
        def all_of_it(w, x):
            (value, h), grads = total(w, x)
            u = cell.inputs(w, x)
            kept = dict(adaptive=False, fallback=False)
            iterates = [run(cell.recurrent(w), u, h0, iterations=k, **kept)[0] for k in range(4)]
            before = jax.tree.map(lambda a: a[3], h)
            return value, h, grads, iterates, probe(lambda h: cell.step(w, h, u[4]), before, cell.structure)[1]

        value, h, (to_w, to_x), iterates, J = jax.device_get(all_of_it(w, x))
    near = partial(np.testing.assert_allclose, atol=2e-6, rtol=0)
    for at, name in ((0, "first"), (4, "last")):
        near([leaf[at] for leaf in jax.tree.leaves(h)], want[name])
    near(value, want["loss"])
    near(to_w.peephole if cell.peepholes else to_w.recurrent[:1], want["of weights"])
    near(to_x[0], want["of x"])
    near([leaf[0] for leaf in jax.tree.leaves(J)] if cell.peepholes else J, want["jacobian"])
    errors = [apart(iterate, h) for iterate in iterates]
    np.testing.assert_allclose(errors[:3], want["errors"][:3], rtol=5e-3)
    assert errors[3] < 4e-13


def test_the_filter_has_the_published_means():
    with jax.enable_x64(True):
        f, b, y = (fill((4,), c, s) for c, s in ((0.1, 0.9), (0.2, 1), (0.3, 1)))
        means = jax.jit(filtered)(f, b, y, jnp.asarray(0.5), jnp.asarray(0.25))
        np.testing.assert_allclose(means, [0.265173, 1.131854, 0.578827, -1.076071], atol=2e-6)


# Values and gradients.

WAYS = {
    "newton": dict(method="newton", window=None),
    "windows": dict(method="newton", window=16),  # the last is not full
    "sequential": dict(method="sequential", window=16),
}


@pytest.mark.parametrize(
    ("structure", "ways"), [("diagonal", WAYS), ("block", list(WAYS)[:2]), ("dense", list(WAYS)[1:])]
)
def test_every_way_is_the_loop_in_values_and_gradients(structure, ways):
    args = case(structure)
    want = loop(structure, *args)
    grads = jax.jit(jax.grad(loss(partial(scanned, structure)), argnums=(0, 1, 2)))(*args)
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(grads))
    for name in ways:

        def total(*args, options=WAYS[name]):
            h, info = solve(CELLS[structure], *args, structure=structure, **options)
            return loss(lambda: h)(), (h, info)

        mine, (got, info) = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*args)
        assert apart(got, want) < 1e-5, name
        assert float(info.residual) < 1e-5 and int(info.fell_back) == 0
        assert int(info.iterations) == 0 if name == "sequential" else 2 <= int(info.iterations) <= 6
        assert apart(mine, grads) < 1e-5 * size, name


def test_a_part_of_the_jacobian_solves_the_same_with_more_iterations():
    args = case("dense", gain=0.5)
    want = loop("dense", *args)
    counts = {}
    for method in ("newton", "quasi", "damped", "jacobi"):
        got, info = solved("dense", *args, method=method, tol=3e-6, damping=0.1)
        assert apart(got, want) < 3e-5 and int(info.fell_back) == 0, method
        counts[method] = int(info.iterations)
    assert counts["newton"] < counts["quasi"] < counts["damped"] < counts["jacobi"], counts


def test_on_a_diagonal_cell_quasi_and_undamped_are_newton():
    args, once = case("diagonal"), dict(iterations=2, adaptive=False, fallback=False)
    newton = solved("diagonal", *args, method="newton", **once)[0]
    assert apart(newton, solved("diagonal", *args, method="quasi", **once)[0]) == 0
    assert apart(newton, solved("diagonal", *args, method="damped", damping=1e-8, **once)[0]) < 1e-5
    assert apart(newton, solved("diagonal", *args, method="damped", damping=1.0, **once)[0]) > 1e-2


def test_the_gradient_of_quasi_has_the_whole_jacobian():
    """With the diagonal alone it would be off by more than a tenth."""
    args = case("dense", gain=0.5)
    want = jax.jit(jax.grad(loss(partial(scanned, "dense")), argnums=1))(*args)
    run = lambda *args: solved("dense", *args, method="quasi", tol=1e-6, window=16)[0]
    got = jax.jit(jax.grad(loss(run), argnums=1))(*args)
    assert apart(got, want) < 1e-5 * float(jnp.max(jnp.abs(want)))


def test_a_gradient_of_a_gradient():
    step = lambda w, h, u: jnp.tanh(w * h + u)
    x, h0 = jnp.linspace(-1, 1, 6)[:, None], jnp.ones(1) / 2
    norm = lambda run: jax.jit(jax.grad(lambda w: jnp.sum(jax.grad(loss(lambda x: run(w, x)))(x) ** 2)))
    got = norm(lambda w, x: solve(step, w, x, h0, method="newton", window=4, tol=1e-7)[0])(jnp.float32(0.9))
    want = norm(lambda w, x: jax.lax.scan(lambda h, u: (new := step(w, h, u), new), h0, x)[1])(jnp.float32(0.9))
    np.testing.assert_allclose(got, want, rtol=1e-5)


# What is known of the iterates.


@pytest.mark.parametrize("method", ["newton", "jacobi"])
def test_after_k_iterations_the_first_states_are_exact_whatever_the_rest(method):
    args = case("diagonal", gain=40.0)
    want = loop("diagonal", *args)
    for k in (0, 1, 4):
        got, info = solved("diagonal", *args, method=method, iterations=k, adaptive=False, fallback=False)
        assert apart(got[: k + 1], want[: k + 1]) < 1e-5
        assert apart(got, want) > 0.1 and float(info.residual) > 0.1 and int(info.iterations) == k
        assert int(info.fell_back) == 0


def test_no_iteration_leaves_the_step_on_zeros():
    w, x, h0 = case("diagonal")
    got, _ = solved("diagonal", w, x, h0, method="newton", iterations=0, fallback=False, window=None)
    np.testing.assert_array_equal(got[0], GRU.step(w, h0, x[0]))
    np.testing.assert_allclose(got[1:], jax.vmap(GRU.step, (None, None, 0))(w, jnp.zeros_like(h0), x[1:]), atol=1e-6)


@pytest.mark.parametrize(("structure", "needed"), [("diagonal", 1), ("block", 2)])
def test_without_recurrent_weights_the_gru_is_affine_and_the_lstm_nearly(structure, needed):
    args = case(structure, gain=0.0)
    want = loop(structure, *args)
    errors = [
        apart(solved(structure, *args, method="newton", iterations=k, adaptive=False, fallback=False)[0], want)
        for k in range(needed + 1)
    ]
    assert errors[-1] < 1e-6 < 1e-3 < errors[-2], errors


# Where it does not converge.


def test_divergence_is_computed_step_by_step_and_said():
    """Weights 40 times as large: no window converges. The residual is at rounding level, the values are the loop's."""
    args = case("diagonal", gain=40.0)
    got, info = solved("diagonal", *args, method="newton", window=25, iterations=8)
    assert int(info.fell_back) == 2 and int(info.iterations) == 8 and float(info.residual) < 1e-5
    assert apart(got, loop("diagonal", *args)) < 1e-4
    raw, info = solved("diagonal", *args, method="newton", window=25, iterations=8, fallback=False)
    assert not float(info.residual) < 1e-3 and int(info.fell_back) == 0 and not apart(got, raw) < 0.1


def test_three_iterations_are_not_enough_for_large_weights_and_more_are():
    args = case("diagonal", gain=6.0)
    want = loop("diagonal", *args)
    three, info = solved("diagonal", *args, method="newton", iterations=3, adaptive=False, fallback=False)
    assert apart(three, want) > 0.1 and float(info.residual) > 1e-3
    more, info = solved("diagonal", *args, method="newton")
    assert apart(more, want) < 1e-4 and int(info.iterations) > 3


def test_only_the_window_that_needs_it_falls_back():
    """NaN in the inputs of the third of three windows: nothing before it is touched, and it is said."""
    w, x, h0 = case("diagonal", steps=48)
    x = x.at[40].set(jnp.nan)
    got, info = solved("diagonal", w, x, h0, method="newton", window=16)
    assert int(info.fell_back) == 1 and np.isnan(info.residual)
    assert apart(got[:40], loop("diagonal", w, x[:40], h0)) < 1e-5 and np.isnan(got[40:]).all()
    _, info = solved("diagonal", w, x, h0, method="sequential")
    assert np.isnan(info.residual)


# Masks, sizes, types.


def test_segments_are_solves_of_their_own_and_padding_is_no_step():
    """The second row has one step of padding more."""
    w, x, h0 = case("block", steps=20)
    segment = jnp.asarray([0] * 7 + [1] * 13)[:, None] * jnp.ones((1, B), jnp.int32)
    valid = jnp.ones((20, B), bool).at[3:5].set(False).at[15, 0].set(False).at[15:17, 1].set(False)
    first = np.asarray([0, 1, 2, 5, 6])
    rest = [np.asarray([*range(7, 15), *range(start, 20)]) for start in (16, 17)]
    zeros = jax.tree.map(jnp.zeros_like, h0)
    for method in ("newton", "sequential"):

        def total(x, method=method):
            h, info = solve(
                LSTM.step, w, x, h0, structure="block", method=method, window=6, segment=segment, valid=valid
            )  # fmt: skip
            return loss(lambda: h)(), (h, info)

        to_x, (got, info) = jax.jit(jax.grad(total, has_aux=True))(x)
        assert float(info.residual) <= 1e-5
        for b in range(B):
            for steps, start in ((first, h0), (rest[b], zeros)):
                alone = jax.tree.map(lambda h, b=b: h[:, b], loop("block", w, x[steps], start))
                mine = jax.tree.map(lambda h, b=b, steps=steps: h[steps, b], got)
                assert apart(mine, alone) < 1e-5
        assert all(np.array_equal(h[4], h[2]) for h in got)
        assert not np.any(to_x[3:5]) and np.any(to_x[:3] != 0, axis=(1, 2, 3)).all()


def test_lengths_of_nothing_and_of_one():
    w, x, h0 = case("block", steps=1)
    assert apart(solved("block", w, x, h0, method="newton")[0], loop("block", w, x, h0)) < 1e-6
    (c, h), info = solved("block", w, x[:0], h0, method="newton")
    assert c.shape == h.shape == (0, B, N) and float(info.residual) == 0
    to_w, to_h0 = jax.grad(lambda w, h0: jnp.sum(solved("block", w, x[:0], h0)[0][0]), argnums=(0, 1))(w, h0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((to_w, to_h0)))


def test_narrow_weights_and_inputs_are_solved_in_float32():
    """And a cell that takes a scalar for its state needs no h0."""
    step = lambda w, h, u: jnp.tanh(w[None] * h + u)
    w, x = jnp.linspace(-1, 1, N, dtype=jnp.bfloat16), case("diagonal")[1][:, :, 0].astype(jnp.bfloat16)
    run = jax.jit(partial(solve, step, method="newton", window=16))
    (got, _), pull = jax.vjp(run, w, x)
    want, pull_wide = jax.vjp(run, w.astype(jnp.float32), x.astype(jnp.float32), jnp.zeros((B, N)))
    assert got.dtype == jnp.float32 and apart(got, want[0]) == 0
    ones = jax.tree.map(
        lambda a: np.zeros(a.shape, jax.dtypes.float0) if a.dtype == jnp.int32 else jnp.ones_like(a), want
    )
    (to_w, to_x), (wide_w, *_) = pull(ones), pull_wide(ones)
    assert to_w.dtype == to_x.dtype == jnp.bfloat16
    assert apart(to_w.astype(jnp.float32), wide_w) < 0.01 * float(jnp.max(jnp.abs(wide_w)))


def test_inputs_may_hold_whole_numbers():
    step = lambda w, h, x: jnp.tanh(w[x["token"]] + h * x["scale"])
    x = {"token": jnp.arange(12).reshape(6, 2) % 5, "scale": jnp.ones((6, 2, 1)) / 2}
    table = jnp.linspace(-1, 1, 15).reshape(5, 3)
    run = lambda method: loss(lambda w: solve(step, w, x, jnp.zeros((2, 3)), method=method, window=4)[0])
    newton, loop = jax.jit(lambda w: (jax.grad(run("newton"))(w), jax.grad(run("sequential"))(w)))(table)
    assert apart(newton, loop) < 1e-5 and np.any(newton != 0, axis=1).all()


def test_the_steps_that_fill_the_last_window_have_finite_gradients():
    """At zeros this cell has none."""
    step = lambda w, h, u: h / 2 + jnp.sqrt(w * u)
    run = loss(lambda w: solve(step, w, jnp.ones((5, 1)), jnp.zeros(1), method="newton", window=4)[0])
    assert np.isfinite(jax.jit(jax.grad(run))(jnp.float32(2)))


def test_auto_is_the_loop_on_a_cpu_and_newton_on_a_tpu():
    args = case("diagonal")
    lowered = lambda platform: solved.trace("diagonal", *args).lower(lowering_platforms=(platform,)).as_text()
    loops = [lowered(platform).count("stablehlo.while") for platform in ("cpu", "tpu")]
    assert loops[0] == 1 < loops[1], loops


def test_the_memory_of_a_gradient_is_that_of_a_window():
    """Beyond inputs and states, of which a few copies are needed: not the Jacobians of all steps, N times as large."""
    args = case("dense", steps=1024)
    grad = lambda window: jax.jit(
        jax.grad(loss(lambda *a: solve(dense, *a, structure="dense", method="newton", window=window)[0]))
    )  # fmt: skip
    temp = lambda window: grad(window).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert temp(64) < temp(None) / 2
