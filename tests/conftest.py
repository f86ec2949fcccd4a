"""One process setting for all tests: eight CPU devices, strict numerics, signatures checked.

What must be known before `import jax` goes into the environment, where programs that tests start inherit it; a test
that starts JAX processes of its own sets XLA_FLAGS itself. Anything the caller has set is kept.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# No size limit for that cache: with one, an entry that a killed run left half-written stops all later writes for good.

import jax
import pytest
from jax._src import compiler  # jax has no public option for all compiles of a process

from tests.quick import plain

pytest_plugins = ["tests.times"]  # marks slow tests

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


# A bare accelerator machine may lack beartype. PARADEC_CHECKS=0 leaves out the checks of signatures and of keys, which
# take up to a quarter of the time: to look at a traceback, or where more cases of the quick tests run (`make slow`).
CHECKED = bool(importlib.util.find_spec("beartype")) and os.environ.get("PARADEC_CHECKS", "1") != "0"

# On a CI machine random cases are the same in every run: a change is not judged by another's luck.
if os.environ.get("CI") and importlib.util.find_spec("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("ci", derandomize=True)
    hypothesis.settings.load_profile("ci")


# Every function of paradec is checked against its jaxtyping signature, but no `__init__` is: jaxtyping's hook as it
# comes also checks the fields of dataclasses, and jax rebuilds a tree through `__init__` with whatever the leaves have
# become (Spec, None, bool, NamedSharding, ShapeDtypeStruct, arrays with one axis more or less under vmap and scan).
# With it, `jax.tree.map(lambda x: None, state)` is a type error.


def check_signature(function: Any) -> Any:
    """beartype, but not for `__init__`, and blind to single annotations that cannot be asked at run time (a Protocol
    that is not `runtime_checkable`) where beartype alone would refuse the module."""
    from beartype import BeartypeConf, beartype
    from beartype.roar import BeartypeDecorHintException

    if function.__name__ == "__init__":
        return function
    check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for static checkers
    try:
        return check(function)
    except BeartypeDecorHintException:
        function.__annotations__ = {k: v if _askable(v) else Any for k, v in function.__annotations__.items()}
        return check(function)


def _askable(annotation: Any) -> bool:
    from beartype.door import is_bearable
    from beartype.roar import BeartypeException

    try:
        is_bearable(None, annotation)
    except BeartypeException:
        return False
    return True


if CHECKED:
    import jaxtyping

    jaxtyping.install_import_hook("paradec", f"{__name__}.check_signature")


def pytest_collection_finish() -> None:
    """Python's collector looks no more at what was imported (400,000 objects), and comes for every 10,000 new objects
    instead of 700: jax does work of its own each time, and tracing makes many. That took up to a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


OPTIMIZED = (
    "oracle",
    "test_explain.py",
    "test_laid_out.py",
    "test_shipped_lists.py",
    "test_smollm2.py",
)
"""Where real models run, or compiled programs are looked at."""


SPEND_KEYS = (
    "learn",
    "test_conftest.py",
    "test_drafters.py",
    "test_laws.py",
    "test_rules.py",
    "test_sampling.py",
    "test_unmasking.py",
)
"""Where jax checks that no key is used twice: a tenth of the time of other tests, which run the same programs."""


@pytest.fixture(autouse=True, scope="module")
def _checks(request: pytest.FixtureRequest) -> None:
    """Of signatures and of keys, as the module says. Whole language models call what smaller tests have checked."""
    if CHECKED:
        names = {request.path.name, request.path.parent.name}
        jaxtyping.config.update("jaxtyping_disable", bool(names & set(OPTIMIZED)))
        jax.config.update("jax_debug_key_reuse", bool(names & set(SPEND_KEYS)))


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Other tests compile many tiny programs and run each for a moment: optimisations would take most of it."""
    quickly = not {request.path.name, request.path.parent.name} & set(OPTIMIZED)
    if not quickly:
        _forget_programs()  # of what other files compiled quickly
    _compile(quickly)
    yield quickly
    _compile(False)
    if not quickly or _memory_maps() > 20_000:
        _forget_programs()


def _forget_programs() -> None:
    jax.clear_caches()
    gc.collect()  # some hang on a circle of references


def _memory_maps() -> float:
    """How many this process has. Every compiled program keeps some, and with more than 65,530 the compiler crashes."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux
        return float("inf")


@pytest.fixture
def few_programs() -> Iterator[None]:
    """For files of many tests that each compile their own programs: what is compiled goes before there is too much."""
    yield
    if _memory_maps() > 40_000:
        jax.clear_caches()


@pytest.fixture
def compiled_as_users_do(_quick_compilation: bool) -> Iterator[None]:
    """For what one test compiles anew."""
    _compile(False)
    yield
    _compile(_quick_compilation)


def _compile(quickly: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", quickly)
    if _default is not None:
        compiler.get_compile_options = _quick if quickly and plain() else _default


_default: Any = getattr(compiler, "get_compile_options", None)


def _quick(*args: Any, env_options_overrides: Any = None, **rest: Any) -> Any:
    return _default(*args, env_options_overrides=plain() | dict(env_options_overrides or {}), **rest)


@pytest.fixture(autouse=True)
def _mixed_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Standard promotion for the tests that ask for it: optax.adam raises a float to an int32 step."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("mixed_dtypes") else "strict"):
        yield


@pytest.fixture
def no_vast_allocation() -> Iterator[None]:
    """No case of a test may make this process more than 2 GiB larger than it has ever been."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20, "in KiB"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark data that may lie beside the checkout."""
    folder = Path(os.environ.get("PARADEC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout (or PARADEC_SHARED)")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """What `paradec.load("smollm2-135m")` returns: a real language model."""
    import paradec
    from paradec.errors import ResourceError

    try:
        return paradec.load("smollm2-135m")
    except ResourceError as error:
        pytest.skip(f"needs the weights of SmolLM2-135M: {error}")
