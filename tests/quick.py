"""How the programs of most tests are compiled: quickly, for they are tiny and run for a moment."""

from __future__ import annotations

import functools
import os
import sys

import jax

PLAIN = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""XLA's older way to emit loops (jaxlib 0.10), and one LLVM module a program: half the time to compile."""


@functools.cache
def plain() -> dict[str, bool | int]:
    """Those of `PLAIN` that this jaxlib knows."""
    return {name: value for name, value in PLAIN.items() if _known({name: value})}


def _known(options: dict[str, bool | int]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def quick_environment(devices: int = 1) -> dict[str, str]:
    """For a program that a test starts: it imports what this process does, has CPU devices, and compiles quickly."""
    flags = {"xla_force_host_platform_device_count": devices} | plain()
    quick = {
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items()),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    return os.environ | quick
