"""The in-place window write against the scatter, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.mesh import REPLICATED, TENSOR, make_mesh, use
from paradec.ops.cache_write import cache_write

L, B, H, S, P, K = 2, 8, 4, 16, 5, 3
RANDOM = np.random.default_rng(0)  # jax would compile the draw of each shape
BUFFER = jnp.asarray(RANDOM.standard_normal((L, B, H, S, K), np.float32))
NEW = jnp.asarray(RANDOM.standard_normal((L, B, H, P, K), np.float32))
STARTS = {
    "ragged": ([0, 3, 7, 11, 1, 2, 9, 4], [5, 0, 1, 4, 3, 2, 5, 0]),
    "at the very end": ([11] * 8, [5, 4, 3, 2, 1, 0, 5, 5]),
    "nothing, from anywhere": ([0, 5, 15, 16, 40, 11, 12, 13], [0] * 8),
    "a window that sticks out": ([12, 13, 14, 15, 16, 11, 15, 0], [4, 3, 1, 1, 0, 5, 0, 5]),
}


def by_hand(start, count):
    out = np.array(BUFFER)
    for b in range(B):
        out[:, b, :, start[b] : start[b] + count[b]] = np.asarray(NEW)[:, b, :, : count[b]]
    return out


@pytest.mark.parametrize("implementation", ["window", "scatter"])
@pytest.mark.parametrize(("start", "count"), STARTS.values(), ids=STARTS)
def test_each_row_is_written_where_it_ends_and_nowhere_else(start, count, implementation):
    write = jax.jit(lambda *x: cache_write(*x, implementation=implementation))
    got = write(BUFFER, NEW, jnp.asarray(start), jnp.asarray(count))
    np.testing.assert_array_equal(got, by_hand(start, count))


@pytest.mark.parametrize("start", [0, 3, 6])
def test_a_window_longer_than_the_buffer(start):
    """As of a prompt read in one chunk that is longer than the cache: what counts fits, the rest is padding."""
    room = BUFFER[:, :, :, : P + 2]
    long = jnp.concatenate([NEW, NEW], axis=3)
    starts, counts = jnp.full(B, start), jnp.full(B, P + 2 - start)
    got, want = (cache_write(room, long, starts, counts, implementation=i) for i in ("window", "scatter"))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_any_type_of_cache(dtype):
    start, count = (jnp.asarray(x) for x in STARTS["ragged"])
    buffer, new = ((20 * x).astype(dtype) for x in (BUFFER, NEW))
    got, want = (cache_write(buffer, new, start, count, implementation=i) for i in (None, "scatter"))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("rules", [TENSOR, REPLICATED], ids=["rows and heads", "rows"])
@pytest.mark.parametrize("heads", [4, 3])  # 3 heads stay whole on two devices
def test_on_a_mesh_every_device_writes_its_own_rows_and_heads(rules, heads):
    start, count = (jnp.asarray(x) for x in STARTS["ragged"])
    want = by_hand(*STARTS["ragged"])[:, :, :heads]
    buffer, new = BUFFER[:, :, :heads], NEW[:, :, :heads]
    with use(make_mesh(4, 2), rules) as place:
        where = place.sharding(("layers", "batch", "kv_heads", None, None), buffer.shape)
        buffer, new = (jax.device_put(x, where) for x in (buffer, new))
        program = jax.jit(cache_write, donate_argnums=0).lower(buffer, new, start, count).compile()
        got = program(buffer, new, start, count)
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(where, 5)
    assert not any(op in program.as_text() for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_a_donated_cache_is_written_in_place():
    start, count = (jnp.asarray(x) for x in STARTS["ragged"])
    big = jnp.zeros((L, B, H, 4096, K))
    used = jax.jit(cache_write, donate_argnums=0).lower(big, NEW, start, count).compile().memory_analysis()
    assert used.alias_size_in_bytes == big.nbytes and used.temp_size_in_bytes < big.nbytes / 20
