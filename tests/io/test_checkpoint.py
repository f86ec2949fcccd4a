"""Checkpoints: whole ones come back bit for bit, damaged ones are named and passed over."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paradec import mesh
from paradec.errors import InputError, ResourceError
from paradec.io.checkpoint import Checkpoints, digests

CONFIG = {"plan": {"steps": 5}}


def state(seed: int = 0, size: int = 64) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(size, 48)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(8, 3)), jnp.bfloat16),
        "flag": jnp.asarray(rng.random(5) < 0.5),
        "step": jnp.int32(seed),
        "gap": None,
        "key": jax.random.key(seed),
    }


def abstract(tree: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def raw(tree: dict) -> list[bytes]:
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(x)).tobytes() for x in jax.tree.leaves(tree)]


def saved(folder: Path, steps: int = 2) -> dict:
    with Checkpoints(folder) as kept:
        for step in range(1, steps + 1):
            kept.save(step, state(step), {"next": step}, CONFIG)
    return abstract(state())


def restored(folder: Path, like: dict):
    with Checkpoints(folder) as kept:
        return kept.restore(like)


def test_a_step_comes_back_bit_for_bit(tmp_path):
    found = restored(tmp_path, saved(tmp_path))
    assert (found.step, found.positions, found.config) == (2, [{"next": 2}], CONFIG)
    assert raw(found.state) == raw(state(2)) and found.state["gap"] is None
    assert restored(tmp_path / "other", abstract(state())) is None


def test_an_option_that_a_model_gained_since_does_not_matter(tmp_path):
    like = saved(tmp_path)
    found = restored(tmp_path, like | {"experts": None})
    assert found.step == 2 and found.state["experts"] is None and raw(found.state) == raw(state(2))


def test_nothing_but_damage_is_no_new_beginning(tmp_path):
    like = saved(tmp_path)
    for step in ("1", "2"):
        data = max((p for p in (tmp_path / step).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data.write_bytes(b"")
    with pytest.raises(ResourceError, match=r"Every checkpoint in .* was damaged and is moved aside"):
        restored(tmp_path, like)
    assert restored(tmp_path, like) is None, "and once more is one"


def test_every_flipped_bit_is_seen_or_harmless(tmp_path, caplog):
    """A byte in each quarter of every file of the newest step. What comes back is that step or the one before it."""
    like, whole, caught = saved(tmp_path / "kept"), raw(state(2)), 0
    files = [path for path in sorted((tmp_path / "kept" / "2").rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        for quarter in (0.13, 0.38, 0.63, 0.88):
            here = tmp_path / "copy"
            shutil.copytree(tmp_path / "kept", here)
            target = here / path.relative_to(tmp_path / "kept")
            content = bytearray(target.read_bytes())
            content[int(len(content) * quarter)] ^= 0x10
            target.write_bytes(content)
            caplog.clear()
            found = restored(here, like)
            if found.step == 2:
                assert raw(found.state) == whole and found.positions == [{"next": 2}]
            else:
                caught += 1
                assert found.step == 1 and raw(found.state) == raw(state(1))
                assert "step 2" in caplog.text and "damaged" in caplog.text and (here / "2.damaged").is_dir()
            shutil.rmtree(here)
    assert caught >= 8


def test_a_flip_in_array_data_is_named_by_its_leaf(tmp_path, caplog):
    like = saved(tmp_path)
    data = max((p for p in (tmp_path / "2" / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert restored(tmp_path, like).step == 1
    assert "the numbers of w have changed" in caplog.text or "cannot be read" in caplog.text


@pytest.mark.parametrize("harm", ["truncate", "delete", "empty"])
def test_lost_data(tmp_path, harm):
    like = saved(tmp_path)
    data = max((p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2] if harm == "truncate" else b"")
    if harm == "delete":
        data.unlink()
    with Checkpoints(tmp_path) as kept:
        assert kept.restore(like).step == 1
        kept.save(2, state(7), {"next": 7}, CONFIG)  # the name is free again
    assert raw(restored(tmp_path, like).state) == raw(state(7))


def test_a_torn_save_does_not_count_and_is_cleared(tmp_path):
    like = saved(tmp_path)
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    assert restored(tmp_path, like).step == 2
    assert not (tmp_path / "3.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"w": jnp.zeros((64, 49))}, r"w is float32\[64, 48\] there and float32\[64, 49\]"),
        (lambda s: s | {"w": s["w"].astype(jnp.bfloat16)}, r"float32\[64, 48\] there and bfloat16"),
        (lambda s: s | {"more": jnp.zeros(2)}, "more is missing there"),
        (lambda s: {k: v for k, v in s.items() if k != "half"}, r"half is bfloat16\[8, 3\] there and missing here"),
    ],
)
def test_another_state_is_refused_and_nothing_moved(tmp_path, change, words):
    saved(tmp_path)
    with pytest.raises(InputError, match=words):
        restored(tmp_path, abstract(change(state())))
    assert restored(tmp_path, abstract(state())).step == 2


def test_the_configuration_is_checked_before_anything_is_read(tmp_path):
    like = saved(tmp_path)

    def refuse(config):
        raise InputError(f"steps were {config['plan']['steps']}")

    with Checkpoints(tmp_path) as kept, pytest.raises(InputError, match="steps were 5"):
        kept.restore(like, refuse)


def test_the_last_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as kept:
        for step, loss in enumerate((3.0, 1.0, 2.0, None, 4.0, None), 1):
            kept.save(step, state(step), step, CONFIG, loss)
    with Checkpoints(tmp_path) as kept:
        assert kept.steps() == [6, 5, 2]


def test_an_evaluation_that_is_no_number_is_not_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as kept:
        for step, loss in enumerate((3.0, 1.0, float("nan"), 2.0, 2.5), 1):
            kept.save(step, state(step), step, CONFIG, loss)
    with Checkpoints(tmp_path) as kept:
        assert kept.steps() == [5, 4, 2]


def test_the_state_may_be_donated_at_once(tmp_path):
    change = jax.jit(lambda x: x * 0, donate_argnums=0)
    with Checkpoints(tmp_path) as kept:
        tree = {"w": jnp.arange(4096.0).reshape(64, 64)}
        like = abstract(tree)
        for step in range(1, 4):
            kept.save(step, tree, step, CONFIG)
            tree = {"w": change(tree["w"]) + step}
    np.testing.assert_array_equal(restored(tmp_path, like).state["w"], np.full((64, 64), 2.0))


def test_another_mesh(tmp_path):
    tree = {"w": jnp.arange(64.0 * 48).reshape(64, 48), "key": jax.random.key(3)}
    with Checkpoints(tmp_path) as kept:
        kept.save(1, tree, 0, CONFIG)
    grid = mesh.make_mesh(4, 2)
    spread, everywhere = NamedSharding(grid, PartitionSpec("data", "model")), NamedSharding(grid, PartitionSpec())
    like = {
        "w": jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=spread),
        "key": jax.ShapeDtypeStruct((), tree["key"].dtype, sharding=everywhere),
    }
    found = restored(tmp_path, like)
    assert raw(found.state) == raw(tree) and found.state["w"].sharding.is_equivalent_to(spread, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_digest_sees_every_bit_and_every_exchange(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.integers(0, 2, (6, 7)) if dtype == "bool" else rng.normal(size=(6, 7)) * 90, dtype))
    seen = {tuple(np.asarray(digests(jnp.asarray(x))).tolist())}
    count = 1
    for place in range(x.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            raw_ = bytearray(x.tobytes())
            raw_[place] ^= 1 << bit
            seen.add(tuple(np.asarray(digests(jnp.asarray(np.frombuffer(raw_, x.dtype).reshape(6, 7)))).tolist()))
            count += 1
    assert len(seen) == count
    y = np.arange(42).reshape(6, 7).astype(np.float32)
    swapped = y.copy()
    swapped[0, 0], swapped[5, 6] = y[5, 6], y[0, 0]
    assert not np.array_equal(digests(jnp.asarray(y)), digests(jnp.asarray(swapped)))


def test_a_full_disk_says_so_and_leaves_the_last_step_whole(tmp_path, caplog):
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.name == "posix" and shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", place]).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        big = lambda seed: {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(1024, 512)), jnp.float32)}
        kept = Checkpoints(place / "run")
        kept.save(1, big(1), 1, CONFIG)
        kept.wait()
        with pytest.raises(ResourceError, match="The disk is full"):
            for step in range(2, 8):
                kept.save(step, big(step), step, CONFIG)
            kept.wait()
        assert "No space left" not in caplog.text, "our sentence, and no tracebacks of a library before it"
        found = restored(place / "run", abstract(big(0)))
        assert found.step >= 1 and raw(found.state) == raw(big(found.step))
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_an_interrupt_while_a_save_is_awaited_is_no_error_in_the_log(tmp_path, monkeypatch, caplog):
    """Orbax logs it, with a traceback, before it hands it on."""
    join = threading.Thread.join

    def interrupted(thread, timeout=None):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        join(thread, timeout)

    with Checkpoints(tmp_path) as kept:
        kept.save(1, state(), None, CONFIG)
        with monkeypatch.context() as here:
            here.setattr(threading.Thread, "join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                kept.wait()
    assert not [record for record in caplog.records if record.exc_info]
