"""A stack taken apart: the same outputs, the same tokens, from the same memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec import composition
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.seams import Method
from paradec.decoder import Decoder, step_weights
from paradec.models import lora
from paradec.models.dit import DiT
from paradec.models.experts import Experts
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope
from paradec.testing import ragged_prompts, tiny_transformer
from paradec.testing.tiny import drawn
from paradec.types import Rows

KINDS = {
    "plain": {},
    "everything": dict(
        qkv_bias=True, qk_norm=True, post_norms=True, tied=True, window=5, sliding=(True, False),
        local_rope=Rope(theta=100.0),
    ),
    "experts": dict(num_layers=3, experts=Experts(6, 12, 2, shared=20, leading=1)),
}  # fmt: skip


def same_outputs(model, weights):
    """Logits, taps and delta of rows on a half-full cache, from the stack and laid out."""
    rows = Rows.chain(jnp.asarray(np.random.default_rng(0).integers(90, size=(2, 7)), jnp.int32))
    cache = model.init_cache(2, 100)
    cache = cache.replace(k=cache.k + 0.5, v=cache.v - 0.25, length=jnp.asarray([70, 3], jnp.int32))
    call = jax.jit(model.extend, static_argnames="taps")
    want, got = (call(w, cache, rows, taps=(0, 1)) for w in (weights, model.laid_out(weights)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), want, got)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_outputs_are_those_of_the_stack(options):
    same_outputs(*tiny_transformer(**options))


def test_of_a_diffusion_transformer_too():
    model = DiT(
        vocab_size=97, width=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, mlp_width=48, level_width=16
    )
    rng, weights = np.random.default_rng(0), drawn(model.specs(), 0)
    same_outputs(model, jax.tree.map(lambda x: x + rng.normal(scale=0.2, size=x.shape).astype(np.float32), weights))


def test_of_adapted_weights_too():
    model, weights = tiny_transformer()
    adapted = lora.adapt(weights, model.specs(), jax.random.key(0), 3, pick=lambda name: name[-2:] in ("ut", "up"))
    grown = lambda x: x.replace(b=x.b + 0.1) if lora.is_adapted(x) else x
    same_outputs(model, jax.tree.map(grown, adapted, is_leaf=lora.is_adapted))


def test_laid_out_weights_are_the_same_memory_and_kept_as_long_as_they_are_used():
    model = Transformer(64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48)
    method, kept = composition.build("ar", model, ()), {}
    weights = {"target": drawn(model.specs(), 0)}
    laid = step_weights(method, weights, kept)["target"]
    place = lambda x: x.unsafe_buffer_pointer()
    stack, pairs = weights["target"].blocks.gate_up, [g for w in laid.blocks for g in w.gate_up]
    assert place(laid.embed) == place(weights["target"].embed)
    assert [place(g) - place(stack) for g in pairs] == [i * stack.nbytes // 4 for i in range(4)]
    assert step_weights(method, dict(weights), kept)["target"] is laid
    other = {"target": jax.tree.map(lambda x: x + 1, weights["target"])}
    assert step_weights(method, other, kept)["target"].embed[0, 0] == other["target"].embed[0, 0]
    # Weights that are handed over while a view of them is alive are copied, not overwritten.
    new = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(weights["target"])
    assert not np.asarray(new.embed).any() and np.asarray(laid.embed).any()


def test_weights_on_several_devices_and_canvases_stay_stacks():
    model, weights = tiny_transformer()
    spread = jax.device_put(weights, jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P()))
    ar = composition.build("ar", model, ())
    assert step_weights(ar, {"target": spread}, {})["target"] is spread
    assert step_weights(Method(), {"target": weights}, {})["target"] is weights


def test_decoded_tokens_are_those_of_the_stack(monkeypatch):
    model, weights = tiny_transformer()
    prompt, key, law = ragged_prompts(0, 97), row_keys(0, range(5)), sampling(5)
    texts = []
    for laid in (True, False):
        decoder = Decoder("ar", composition.build("ar", model, ()), {"target": weights})
        if not laid:
            monkeypatch.setattr("paradec.decoder.step_weights", lambda method, params, kept: params)
        state = decoder.start(prompt, np.asarray(prompt.length) + 20, key, law, 48, 16)
        texts.append(loop.snapshot(decoder.run(state)).tokens)
        assert bool(decoder.layouts) is laid
    np.testing.assert_array_equal(*texts)
