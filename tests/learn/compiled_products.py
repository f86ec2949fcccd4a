"""The types of all matrix products that the TPU compiler leaves in a training step, printed as JSON; a program of its
own, because that compiler serves one process at a time:

    python -m tests.learn.compiled_products medusa2 moe block
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import jax

from paradec.explain import hlo
from paradec.explain.compiler import topology
from paradec.learn.step import Plan, accumulate
from tests.learn.test_objectives import heads_alone, recipe


def products(name: str) -> Counter[str]:
    """How many there are of each type of operands, the router's apart. A CPU cannot be asked: XLA makes every product
    float32 there."""
    (objective, trainable, frozen), batch = heads_alone() if name == "medusa1" else recipe(name)
    step = lambda t, f, b: accumulate(Plan(compute="bfloat16"), objective, t, f, b, jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(topology("v5e:1x1")[0])
    shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    compiled = jax.jit(step).lower(*jax.tree.map(shaped, (trainable, frozen, batch))).compile()
    found = Counter()
    for instructions in hlo.Module(compiled.as_text()).computations.values():
        types = {i.name: i.arrays[0][0] for i in instructions if i.arrays}
        for i in instructions:
            if i.opcode in ("dot", "convolution"):  # the TPU compiler writes most products as convolutions
                operands, _, rest = i.rest.partition(")")
                kind = " ".join(sorted({types[x] for x in re.findall(r"%([\w.\-]+)", operands)}))
                found[f"router {kind}" if "(td,dx->tx)" in rest else kind] += 1
    return found


if __name__ == "__main__":
    print(json.dumps({name: products(name) for name in sys.argv[1:]}))
