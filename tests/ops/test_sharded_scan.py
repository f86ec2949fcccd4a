"""The affine scan of a sequence that is split over devices, against the plain loop on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from paradec.errors import InputError, UnknownName
from paradec.ops.scan import affine_scan
from paradec.ops.sharded_scan import sharded_scan
from tests.ops.affine_cases import assert_close, inputs, loop, with_gradients

P = PartitionSpec
EXCHANGES = ("all_gather", "ppermute")


def mesh(*sizes):
    """The last axis splits time."""
    names = ("data", "time")[-len(sizes) :]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def sharded(on, *, batch=None, time=P("time"), check_vma=True, **form):
    """`affine_scan` with the same arguments, computed by all devices; `segment` and `valid` are split like `b`."""

    def scan(a, b, h0, segment=None, valid=None):
        run = lambda a, b, h0, *given: sharded_scan(a, b, h0, "time", **form, **dict(zip(names, given, strict=True)))
        given = {name: x for name, x in (("segment", segment), ("valid", valid)) if x is not None}
        names, parts = list(given), P("time", batch)
        specs = (parts, parts, P(batch), *(parts for _ in names))
        return jax.shard_map(run, mesh=on, in_specs=specs, out_specs=parts, check_vma=check_vma)(
            a, b, h0, *given.values()
        )

    return scan


@pytest.mark.parametrize(
    ("exchange", "kind", "reverse", "sizes", "options"),
    [
        ("all_gather", "diagonal", False, (8,), {"implementation": "lanes", "chunk": 2}),
        ("ppermute", "diagonal", False, (8,), {}),
        ("ppermute", "diagonal", True, (2, 3), {"check_vma": False}),
        ("ppermute", "block", True, (3,), {}),
        ("all_gather", "dense", True, (2, 3), {"implementation": "lanes", "chunk": 3}),
    ],
)
def test_a_split_sequence_equals_a_whole_one_in_values_and_gradients(exchange, kind, reverse, sizes, options):
    """Also where another mesh axis splits the batch, and with a number of devices that is no power of two."""
    args = inputs(kind, T=24)
    form = dict(kind=kind, reverse=reverse)
    scan = sharded(mesh(*sizes), batch="data" if len(sizes) > 1 else None, exchange=exchange, **form, **options)
    got = jax.jit(lambda *args: with_gradients(scan, args))(*args)
    assert_close(got, jax.jit(lambda *args: with_gradients(functools.partial(loop, *form.values()), args))(*args))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_segments_and_padding_across_devices(reverse):
    """A document goes over a whole device of padding, one ends with a device, one inside it."""
    args = inputs("diagonal", T=12)
    segment = jnp.asarray([[0, 0, 0, 1, 1, 9, 9, 9, 1, 1, 2, 2], [5, 5, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6]]).T
    valid = jnp.asarray([[1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]], bool).T
    for given in ({"segment": segment, "valid": valid}, {"segment": segment})[: 1 if reverse else 2]:
        scan = sharded(mesh(4), reverse=reverse)
        want = affine_scan(*args, reverse=reverse, implementation="sequential", **given)
        assert_close(jax.jit(functools.partial(scan, **given))(*args), want)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_maps_that_overflow_between_devices_fall_back_to_one_after_the_other(exchange):
    """One of two rows of devices alone has factors of 1e6 that meet a state of zero, first forward, then backwards."""
    tame = jnp.full(32, 0.5)
    wild = jnp.concatenate([jnp.full(8, 0.5), jnp.full(15, 1e6), jnp.zeros(1), jnp.full(8, 0.5)])
    late = jnp.where(jnp.arange(32) > 23, 1.0, 0.0)
    one = functools.partial(sharded, mesh(2, 4), batch="data", exchange=exchange, chunk=4)

    def both(scan, a, b):
        h, pull = jax.vjp(scan, a, b, jnp.zeros(2))
        return h, pull(b)

    checked, unchecked = (jax.jit(functools.partial(both, one(checked=x))) for x in (True, False))
    for order in (1, -1):
        a, b = jnp.stack([tame, wild], 1)[::order], jnp.stack([late, late], 1)[::order]
        assert_close(checked(a, b), both(functools.partial(loop, "diagonal", False), a, b))
        h, (_, adjoint, _) = unchecked(a, b)
        assert not np.isfinite(h if order == 1 else adjoint).all()


@pytest.mark.parametrize(("exchange", "collectives"), [("all_gather", (2, 0)), ("ppermute", (0, 6))])
def test_what_is_sent(exchange, collectives):
    """Of 8 devices: both parts of a map once to all, or in two rounds, one part in a third, and then the state."""
    args = inputs("diagonal", T=8)
    text = jax.jit(sharded(mesh(8), exchange=exchange, checked=False)).lower(*args).as_text()
    assert (text.count("stablehlo.all_gather"), text.count("stablehlo.collective_permute")) == collectives


def test_mistakes_are_sentences():
    a, b, h0 = inputs("diagonal", T=8)
    with pytest.raises(InputError, match="inside jax.shard_map over a mesh axis 'time'; here are none"):
        sharded_scan(a, b, h0, "time")
    with pytest.raises(UnknownName, match="Did you mean 'all_gather'"):
        sharded_scan(a, b, h0, "time", exchange="gather")
    with pytest.raises(InputError, match="check_vma=False"):
        jax.eval_shape(sharded(mesh(4), implementation="kernel"), a, b, h0)
