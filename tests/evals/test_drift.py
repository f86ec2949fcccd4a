"""Drift: exact caches have none, approximate ones have some, and none of it outlives an opening call."""

import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.errors import InputError
from paradec.evals.drift import drift, turn
from tests.decode.canvases import LENGTHS, LIMITS, SLOTS, decode, denoiser, prompts, same


def begun(method, params):
    args = jnp.asarray(LIMITS, jnp.int32), row_keys(0, range(len(LENGTHS))), sampling(len(LENGTHS))
    return loop.start(method, params, prompts(), *args, slots=SLOTS, chunk=16)


@pytest.mark.parametrize(
    ("layers", "block", "cache", "exact"),
    [
        (1, 0, "dual", True), (3, 0, "dual", False), (3, 0, "prefix", False), (3, 8, "block", True),
        (3, 8, "sub_block", False),
    ],
)  # fmt: skip
def test_drift_is_what_approximation_costs(layers, block, cache, exact):
    target, params = denoiser(layers, block=block)
    size = 4 if cache == "sub_block" else 8
    method = compose(target, "threshold", {"tau": 0.4}, block=size, cache=cache)
    found = drift(method, params, begun(method, params))
    assert found.opening < 1e-3, "an opening call recomputes all that it keeps, so no block inherits another's errors"
    if exact:
        assert found.largest < 1e-3 and found.same == 1.0
    else:
        assert found.largest > 0.1 and 0.3 < found.same < 1.0 and 0 < found.mean < found.largest
    assert found.positions > (LIMITS - LENGTHS).sum(), "fewer positions were compared than were committed"


def test_drift_follows_the_uncached_decode():
    target, params = denoiser(3)
    method = compose(target, "threshold", {"tau": 0.4}, block=8, cache="dual")
    state = begun(method, params)
    while not bool(state.done.all()):
        state, seen = turn(method, params, state)
        assert (np.asarray(seen.same) <= np.asarray(seen.count)).all()
    right = decode(compose(target, "threshold", {"tau": 0.4}, block=8), params)
    same(right, state)
    assert not bool(seen.count[np.asarray(right.calls).argmin()]), "a row that is done was compared"


def test_without_a_cache_there_is_nothing_to_compare():
    target, params = denoiser(1)
    method = compose(target, "threshold", block=8)
    with pytest.raises(InputError, match="give the method one"):
        drift(method, params, begun(method, params))
