"""Meshes, rules and start-up, on eight forced CPU devices."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from paradec import mesh as meshes
from paradec import params
from paradec.errors import InputError, ResourceError, UnknownName
from paradec.mesh import FSDP, REPLICATED, TENSOR, Rules, current, layout, make_mesh, use
from paradec.types import Spec
from tests.quick import quick_environment

P = PartitionSpec


@pytest.fixture
def mesh():
    return make_mesh(4, 2)


def test_make_mesh(mesh):
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert make_mesh().size == 1
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "model": 2}
    assert make_mesh(2, devices=jax.devices()[4:]).devices.ravel().tolist() == jax.devices()[4:6]


@pytest.mark.parametrize(("data", "model"), [(9, 1), (0, 1), (-1, 9), (1, 0)])
def test_a_mesh_that_does_not_fit_says_so(data, model):
    with pytest.raises(ResourceError, match="does not fit the 8 device"):
        make_mesh(data, model)


@pytest.mark.parametrize(
    ("rules", "axes", "shape", "expected"),
    [
        (TENSOR, ("vocab", "embed"), (64, 32), P("model", None)),
        (FSDP, ("vocab", "embed"), (64, 32), P("model", "data")),
        (REPLICATED, ("vocab", "embed"), (64, 32), P(None, None)),
        (TENSOR, ("layers", "batch", "kv_heads", None, None), (3, 8, 4, 16, 8), P(None, "data", "model", None, None)),
        (REPLICATED, ("batch", None), (8, 5), P("data", None)),
        (TENSOR, ("layers", "embed", "kv_heads", None, None), (3, 32, 3, 5, 8), P(None, None, None, None, None)),
        (FSDP, ("mlp", "embed"), (64, 30), P("model", None)),  # 30 is not a multiple of 4, 3 heads not of 2
        (TENSOR | {"batch": ("data", "model")}, ("batch",), (16,), P(("data", "model"))),
        (TENSOR | {"batch": ("data", "model")}, ("batch",), (12,), P(None)),
        (TENSOR | {"mlp": "expert"}, ("mlp",), (8,), P(None)),  # an axis this mesh does not have
    ],
)
def test_layout(mesh, rules, axes, shape, expected):
    assert layout(axes, shape, mesh, rules) == expected


def test_two_axes_on_one_mesh_axis_are_an_error_even_on_one_device():
    with pytest.raises(InputError, match=r"'vocab' and 'mlp' .* mesh axis 'model'"):
        layout(("vocab", "mlp"), (8, 8), make_mesh(), TENSOR)


def test_misspelt_and_missing_axes_are_errors(mesh):
    with pytest.raises(UnknownName, match=r"'kv_head'.*Did you mean 'kv_heads'"):
        layout(("kv_head",), (8,), mesh, TENSOR)
    with pytest.raises(InputError, match="name every dimension"):
        layout(("vocab",), (8, 8), mesh, TENSOR)


def test_rules_are_values():
    assert TENSOR == Rules(dict(TENSOR)) and hash(TENSOR) == hash(Rules(dict(TENSOR)))
    assert FSDP != TENSOR and FSDP["embed"] == "data" and TENSOR["embed"] is None
    assert meshes.batch_axes(TENSOR) == ("data",) and meshes.batch_axes(TENSOR | {"batch": None}) == ()


def test_current_is_what_use_says(mesh):
    assert current() is None
    with use(mesh, FSDP) as placement:
        assert current() == placement and placement.rules == FSDP
        assert current().spec(("batch", None), (8, 3)) == P("data", None)
        assert jax.sharding.get_mesh() == mesh
        with use(make_mesh(), {"batch": None}):  # any mapping will do
            assert current().mesh.size == 1
        assert current() == placement

        def body(x):
            assert current() is None
            return x

        jax.jit(jax.shard_map(body, in_specs=P("data"), out_specs=P("data")))(jnp.ones(8))
    assert current() is None


def test_other_rules_trace_again_and_equal_ones_do_not(mesh):
    seen = []

    @jax.jit
    def step(x):
        seen.append(current() and current().rules)
        return x

    x = jnp.ones(8)
    for rules in (TENSOR, FSDP, Rules(dict(TENSOR)), FSDP):
        with use(mesh, rules):
            step(x)
    step(x)
    assert seen == [TENSOR, FSDP, None]


@pytest.mark.parametrize("rules", [REPLICATED, TENSOR, FSDP], ids=["replicated", "tensor", "fsdp"])
def test_eight_devices_equal_one(mesh, rules):
    specs = {"up": Spec((16, 64), ("embed", "mlp"), 0.1), "down": Spec((64, 16), ("mlp", "embed"), 0.1)}
    weights = params.init(specs, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 16))
    loss = jax.jit(jax.value_and_grad(lambda w, x: jnp.sum(jnp.tanh(x @ w["up"]) @ w["down"])))
    alone = loss(weights, x)
    with use(mesh, rules):
        placed = jax.device_put(weights, params.shardings(specs, mesh, rules))
        together = loss(placed, jax.device_put(x, meshes.batch_sharding(mesh, rules)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, together)


def test_start_alone_does_nothing():
    meshes.start()
    meshes.start(num_processes=1)
    assert jax.process_count() == 1 and not jax.distributed.is_initialized()


def test_start_too_late_says_so():
    jax.devices()
    with pytest.raises(InputError, match="first"):
        meshes.start("localhost:1", 2, 0)


def as_process(monkeypatch, index, devices):
    """As if each process had so many of the devices, in their order."""
    monkeypatch.setattr(meshes, "_process", lambda device: device.id // devices)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    meshes._holders.cache_clear()


@pytest.fixture
def clean_holders():
    meshes._holders.cache_clear()
    yield
    meshes._holders.cache_clear()


@pytest.mark.usefixtures("clean_holders")
@pytest.mark.parametrize(
    ("shape", "devices", "rows", "lanes"),
    [
        ((8, 1), 2, [[0, 1], [2, 3], [4, 5], [6, 7]], 4),
        ((4, 2), 2, [[0, 1], [2, 3], [4, 5], [6, 7]], 4),
        ((2, 4), 2, [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2, 2),  # a data row on two processes
        ((1, 8), 2, [[*range(8)]] * 4, 1),
        ((2, 3), 2, [[0, 1, 2, 3], [*range(8)], [4, 5, 6, 7]], 1),  # the second has a part of both
        ((8, 1), 8, [[*range(8)]], 1),
    ],
)
def test_rows_belong_to_data_rows(monkeypatch, shape, devices, rows, lanes):
    with use(make_mesh(*shape)):
        for index, mine in enumerate(rows):
            as_process(monkeypatch, index, devices)
            assert meshes.held(8).tolist() == mine
            number, of, together = meshes.lane(8)
            assert of == lanes and set(mine) <= set(together.tolist())
            assert len(together) == 8 // lanes and number == together[0] * lanes // 8


@pytest.mark.usefixtures("clean_holders")
def test_rows_that_cannot_be_dealt_out(monkeypatch):
    assert meshes.held(3).tolist() == [0, 1, 2] and meshes.lane(3)[:2] == (0, 1)  # no mesh: all of them
    with use(make_mesh(4, 2)):
        with pytest.raises(InputError, match="6 rows does not split over the 4 data rows"):
            meshes.held(6)
    with use(make_mesh(2, 1)):
        as_process(monkeypatch, 1, 4)
        with pytest.raises(InputError, match="Process 1 has no device in the mesh of 2"):
            meshes.held(4)


WORKER = """
import sys, numpy as np
from paradec import mesh
mesh.start(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
mesh.start()  # a second call is harmless
import jax, jax.numpy as jnp
batch = np.arange(4.0, dtype=np.float32)
for shape in ((2, 1), (1, 2)):
    with mesh.use(mesh.make_mesh(*shape)):
        mine = mesh.held(4)
        x = mesh.whole(batch[mine])
        total = jax.jit(lambda x: jnp.sum(x * jnp.arange(4.0)))(x)
    print("total", jax.process_count(), x.shape, float(total), len(mine))
"""


@pytest.mark.multiprocess
def test_start_joins_two_processes():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    command, env = [sys.executable, "-c", WORKER, port], quick_environment()
    both = [subprocess.Popen([*command, str(i)], env=env, stdout=-1, stderr=-2, text=True) for i in (0, 1)]
    try:
        for process in both:
            printed, _ = process.communicate(timeout=90)
            assert "total 2 (4,) 14.0 2" in printed and "total 2 (4,) 14.0 4" in printed, printed
    finally:
        for process in both:
            process.kill()
