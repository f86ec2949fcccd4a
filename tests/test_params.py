"""Spec trees: numbers by name, places, counts, and taking trees apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, Float

from paradec import params
from paradec.errors import InputError
from paradec.mesh import FSDP, TENSOR, make_mesh
from paradec.types import Spec


@struct.dataclass
class Weights:
    embed: Float[Array, "V D"]
    layers: dict
    head: Float[Array, "V D"] | None = None


SPECS = Weights(
    embed=Spec((64, 16), ("vocab", "embed"), 0.5),
    layers={
        "norm": Spec((3, 16), ("layers", "embed"), "ones"),
        "bias": Spec((3, 32), ("layers", "mlp"), "zeros"),
        "up": Spec((3, 16, 32), ("layers", "embed", "mlp"), 0.02),
        "gate": Spec((3, 16, 32), ("layers", "embed", "mlp"), 0.02),
    },
)
KEY = jax.random.key(0)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))


def test_init_follows_the_specs():
    w = params.init(SPECS, KEY)
    assert isinstance(w, Weights) and w.head is None
    assert float(w.embed.std()) == pytest.approx(0.5, rel=0.1)
    assert float(w.layers["up"].std()) == pytest.approx(0.02, rel=0.1)
    assert bool((w.layers["norm"] == 1).all()) and not w.layers["bias"].any()
    assert not equal(w.layers["up"], w.layers["gate"])  # equal shapes, other names
    assert equal(w, params.init(SPECS, KEY)) and not equal(w, params.init(SPECS, jax.random.key(1)))


def test_a_leaf_depends_on_its_name_alone():
    w = params.init(SPECS, KEY)
    more = SPECS.replace(head=SPECS.embed, layers=SPECS.layers | {"a_new_one": Spec((2,), (None,))})
    grown = params.init(more, KEY)
    assert equal(w.embed, grown.embed) and not equal(w.embed, grown.head)
    assert equal(w.layers, {k: v for k, v in grown.layers.items() if k != "a_new_one"})
    # a fixed value: other processes, machines and versions must draw the same
    assert float(params.init({"w": Spec((1,), (None,), 1.0)}, KEY)["w"][0]) == pytest.approx(0.5028652, abs=1e-6)


def test_init_compiles_once_for_equal_specs():
    params.init(SPECS, KEY)
    before = params._maker.cache_info().misses
    params.init(jax.tree.map(lambda s: Spec(*s), SPECS, is_leaf=params.is_spec), jax.random.key(3))
    assert params._maker.cache_info().misses == before


def test_bfloat16_starts_as_the_rounded_float32():
    half = params.init(params.cast(SPECS, jnp.bfloat16), KEY)
    assert equal(half, params.cast(params.init(SPECS, KEY), "bfloat16"))


@pytest.mark.parametrize("rules", [TENSOR, FSDP], ids=["tensor", "fsdp"])
def test_init_in_place_on_a_mesh(rules):
    mesh = make_mesh(4, 2)
    places = params.shardings(SPECS, mesh, rules)
    w = params.init(SPECS, KEY, places)
    jax.tree.map(lambda x, place: place.is_equivalent_to(x.sharding, x.ndim) or pytest.fail(str(place)), w, places)
    part = 3 * 16 * 32 // (2 if rules is TENSOR else 8)
    assert {s.data.size for s in w.layers["up"].addressable_shards} == {part}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), w, params.init(SPECS, KEY))


def test_abstract_is_the_shape_of_init():
    shapes = params.abstract(SPECS)
    assert shapes == jax.eval_shape(lambda: params.init(SPECS, KEY))
    places = params.shardings(SPECS, make_mesh(2, 2))
    placed = params.abstract(SPECS, places)
    assert placed.embed.sharding == places.embed and placed.head is None


def test_count_and_bytes():
    n = 64 * 16 + 3 * 16 + 3 * 32 + 2 * 3 * 16 * 32
    for tree in (SPECS, params.abstract(SPECS), params.init(SPECS, KEY)):
        assert params.count(tree) == n and params.nbytes(tree) == 4 * n
        assert params.nbytes(params.cast(tree, jnp.bfloat16)) == 2 * n


def test_cast_leaves_integers():
    tree = {"w": jnp.ones(2), "i": jnp.ones(2, jnp.int32), "s": Spec((2,), (None,), "zeros", np.int32)}
    half = params.cast(tree, "bfloat16")
    assert half["w"].dtype == jnp.bfloat16 and half["i"].dtype == jnp.int32 and half["s"].dtype == np.int32


def test_unknown_initialiser_names_the_leaf():
    with pytest.raises(InputError, match="'a/b' is 'one'"):
        params.init({"a": {"b": Spec((1,), (None,), "one")}}, KEY)


@given(st.sets(st.sampled_from(["embed", "layers/norm", "layers/bias", "layers/up", "layers/gate"])))
@settings(max_examples=20, deadline=None)
def test_partition_and_merge_are_inverse(names):
    picked, rest = params.partition(SPECS, names.__contains__)
    assert len(jax.tree.leaves(picked, is_leaf=params.is_spec)) == len(names)
    assert params.count(picked) + params.count(rest) == params.count(SPECS)
    assert params.merge(picked, rest) == params.merge(rest, picked) == SPECS


@pytest.mark.mixed_dtypes
def test_frozen_leaves_cost_the_optimiser_nothing():
    trained, frozen = params.partition(params.init(SPECS, KEY), lambda name: name.startswith("layers/u"))

    @jax.jit
    def step(trained, state, frozen):
        def loss(trained):
            w = params.merge(trained, frozen)
            return jnp.sum(w.layers["up"] ** 2) + jnp.sum(w.embed)

        grad = jax.grad(loss)(trained)
        update, state = tx.update(grad, state, trained)
        return optax.apply_updates(trained, update), state

    tx = optax.adam(1e-3)
    state = tx.init(trained)
    assert len(jax.tree.leaves(state)) == 3  # mu and nu of one leaf, and the count
    after, state = step(trained, state, frozen)
    assert after.embed is None and not equal(after.layers["up"], trained.layers["up"])


def test_merge_refuses_two_claims():
    with pytest.raises(InputError, match="'a'"):
        params.merge({"a": jnp.ones(1)}, {"a": jnp.ones(1)})
