"""Compiled programs are kept between runs of a program."""

from __future__ import annotations

import os


def cache_compilations() -> None:
    """Keep compiled programs between runs, unless the user has chosen a place or switched it off (empty string)."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    from paradec.io.wheels import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
