"""What the TPU compiler makes of affine scans over 8,192 steps of 2,048 states: memory, as JSON.

For tests/test_explain.py, which starts it with the variables of `paradec.explain.child.environment` and names programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

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
    "unchecked": scan("lanes", False),
    "gradient": gradient(scan("lanes", True)),
    "associative": scan("associative", False),
    "blocks": gradient(lambda a, b, h: scan("lanes", True, "block")(((a, b), (b, a)), (a, b), (h, h))[0]),
}


def main(names: list[str]) -> None:
    device = topology("v5e:1x1")[0]
    place = partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=SingleDeviceSharding(device))
    for name in names:
        compiled = jax.jit(PROGRAMS[name]).lower(place((T, N)), place((T, N)), place((N,))).compile()
        memory = compiled.memory_analysis()
        accessed = compiled.cost_analysis()["bytes accessed"]
        print(json.dumps({"name": name, "temporaries": memory.temp_size_in_bytes, "accessed": accessed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
