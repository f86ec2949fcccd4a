"""Pytree dataclasses: what flax's are, and that two of them are never taken for each other."""

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import paradec
from paradec import struct
from paradec.errors import ResourceError


def twins():
    """Two classes that differ in nothing but being two."""

    def make():
        @struct.dataclass
        class Rule:
            bar: float = 0.5
            kind: str = struct.field(pytree_node=False, default="a")

        return Rule

    return make(), make()


def test_equal_fields_do_not_make_equal_structures():
    one, two = twins()
    assert jax.tree.structure(one()) == jax.tree.structure(one(bar=0.7))
    assert jax.tree.structure(one()) != jax.tree.structure(two())
    assert jax.tree.structure(one()) != jax.tree.structure(one(kind="b"))
    assert jax.tree.structure((1, one())) != jax.tree.structure((1, two()))


def test_jit_tells_twins_apart():
    """flax's are mixed up about once in a hundred pairs; which ones depends on addresses."""
    for _ in range(400):
        one, two = twins()
        shape = jax.jit(lambda rule, one=one: jnp.zeros(1 if type(rule) is one else 2)).eval_shape
        assert (shape(one()).shape, shape(two()).shape) == ((1,), (2,))


def test_no_class_of_paradec_is_registered_the_dangerous_way():
    for module in pkgutil.walk_packages(paradec.__path__, "paradec."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ResourceError:  # needs an extra that is not installed
            continue
        for name, value in vars(loaded).items():
            assert not hasattr(value, "_flax_dataclass"), f"{module.name}.{name}: take `struct` from paradec, not flax"


def test_an_object_is_rebuilt_whatever_its_leaves_become():
    @struct.dataclass
    class Pair:
        left: jax.Array
        right: jax.Array | None = None
        size: int = struct.field(pytree_node=False, default=3)

        def __post_init__(self):
            assert hasattr(self.left, "shape"), "only for users"

    pair = Pair(jnp.ones(2), jnp.zeros(2), size=4)
    shapes = jax.tree.map(lambda x: x.shape, pair)
    assert (shapes.left, shapes.right, shapes.size) == ((2,), (2,), 4)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path({"p": pair})
    ]
    assert names == ["p/left", "p/right"]
    doubled = jax.jit(jax.vmap(lambda p: p.replace(left=2 * p.left)))(pair)
    assert (doubled.left == 2).all() and doubled.size == 4
    assert jax.tree.leaves(pair.replace(right=None)) == [pair.left]
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.left = 1


def test_fields_are_inherited():
    @struct.dataclass
    class Base:
        size: int = struct.field(pytree_node=False)
        name: str = struct.field(pytree_node=False, default="")

    @struct.dataclass
    class Derived(Base):
        text: jax.Array = struct.field(kw_only=True)

    made = Derived(3, text=jnp.ones(1))
    assert jax.tree.structure(made) != jax.tree.structure(Derived(4, text=jnp.ones(1)))
    assert jax.tree.map(lambda x: x + 1, made).text == 2 and isinstance(made, Base)
