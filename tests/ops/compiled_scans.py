"""What the TPU compiler makes of affine scans over 8,192 steps of 2,048 states: temporaries, traffic (bytes), kernels.

For tests/test_explain.py, which starts it with the variables of `paradec.explain.child.environment`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from paradec import mesh
from paradec.explain.compiler import topology
from paradec.ops.scan import affine_scan

T, N = 8192, 2048


def scan(implementation: str, checked: bool, kind: str = "diagonal") -> Callable:
    return partial(affine_scan, kind=kind, implementation=implementation, chunk=128, checked=checked)


def gradient(scan: Callable) -> Callable:
    return lambda *args: jax.vjp(scan, *args)[1](args[1])


PROGRAMS = {
    "auto": scan("auto", True),
    "lanes": scan("lanes", True),
    "gradient": gradient(scan("lanes", True)),
    "associative": scan("associative", False),
    "blocks": gradient(lambda a, b, h: scan("lanes", True, "block")(((a, b), (b, a)), (a, b), (h, h))[0]),
}


def main() -> None:
    devices = topology("v5e:2x4")
    place = partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=SingleDeviceSharding(devices[0]))
    found = {}

    def measure(name: str, program: Callable, rows: jax.ShapeDtypeStruct, start: jax.ShapeDtypeStruct) -> None:
        compiled = jax.jit(program).lower(rows, rows, start).compile()
        temporaries, accessed = (
            compiled.memory_analysis().temp_size_in_bytes,
            compiled.cost_analysis()["bytes accessed"],
        )
        found[name] = temporaries, accessed, compiled.as_text().count("tpu_custom_call")

    for name, program in PROGRAMS.items():
        measure(name, program, place((T, N)), place((N,)))
    for name, number in (("one device", 1), ("eight devices", 8)):  # of a mesh that says what the program is for
        with mesh.use(mesh.make_mesh(number, 1, devices[:number])) as placement:
            lies = lambda shape, *axes: jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=placement.sharding(axes, shape)
            )
            rows, start = lies((T, 8, N // 8), None, "batch", None), lies((8, N // 8), "batch", None)
            measure(name, PROGRAMS["auto"], rows, start)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
