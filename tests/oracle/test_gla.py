"""Gated linear attention against torch: a loop under torch's autograd, and flash-linear-attention if it is installed.

That package imports on a machine without a GPU if `triton` is installed too, but its kernels do not run there. Its
reference recurrence is plain torch; its models run here with that and with plain torch in the place of their kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.io.hf import load_hf, save_gla
from paradec.ops.gla import gla
from paradec.types import Rows

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

NORMALISERS = (16.0, 1.0, 0.3, 0.1)


def of_fla(name: str) -> Any:
    """A module of flash-linear-attention."""
    return pytest.importorskip(name, exc_type=ImportError)


def loop(q, k, v, g, initial_state, output_final_state):
    """The recurrence, heads second to last."""
    state, outs = initial_state, []
    for t in range(q.shape[1]):
        state = g[:, t].exp()[..., None] * state + k[:, t][..., None] * v[:, t][:, :, None]
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * q.shape[-1] ** -0.5, state))
    return torch.stack(outs, 1), state


@pytest.mark.parametrize("reference", ["torch", "fla"])
@pytest.mark.parametrize("T", [1, 63, 100])
def test_same_outputs_states_and_gradients(reference, T):
    theirs = loop if reference == "torch" else of_fla("fla.ops.gla.naive").naive_recurrent_gla
    rng, B, H, K, V = np.random.default_rng(0), len(NORMALISERS), 2, 16, 24
    q, k, v, x, state = (
        rng.normal(size=(B, *s)).astype(np.float32) for s in ((T, H, K), (T, H, K), (T, H, V), (T, H, K), (H, K, V))
    )
    g = -np.log1p(np.exp(-x)) / np.asarray(NORMALISERS, np.float32)[:, None, None, None]
    push = [np.cos(np.arange(np.prod(s)), dtype=np.float32).reshape(s) for s in ((B, T, H, V), (B, H, K, V))]

    given = [torch.tensor(a, requires_grad=True) for a in (q, k, v, g, state)]
    out = theirs(*given[:4], initial_state=given[4], output_final_state=True)
    wanted = torch.autograd.grad(sum((a * torch.tensor(b)).sum() for a, b in zip(out, push, strict=True)), given)
    for form in ("recurrent", "chunk"):
        run = lambda *a, form=form: gla(*a, implementation=form)
        got, pull = jax.vjp(jax.jit(run), q, k, v, g, state)
        near(got, [a.detach().numpy() for a in out], 1e-5)
        near(pull(tuple(map(jnp.asarray, push))), [a.numpy() for a in wanted], 5e-5)


def near(got: Any, want: Any, rtol: float) -> None:
    """Each row of the batch against its own largest value: gates are of another strength in each."""
    for a, b in zip(got, want, strict=True):
        apart = np.abs(np.asarray(a) - b).reshape(len(b), -1).max(-1)
        assert (apart < rtol * np.abs(b).reshape(len(b), -1).max(-1)).all(), apart


# Whole models of theirs.

MODELS = {
    "plain": dict(num_heads=2),
    "tied": dict(num_heads=4, tie_word_embeddings=True, hidden_ratio=2, intermediate_size=None),
    "all options": dict(
        num_heads=4, num_kv_heads=2, use_short_conv=True, conv_size=3, clamp_min=-0.03, expand_k=1.0, expand_v=2.0,
        norm_eps=1e-3,
    ),
    "bare": dict(num_heads=2, use_output_gate=False, elementwise_affine=False, expand_v=0.5),
    "not fused": dict(num_heads=2, fuse_norm=False),
}  # fmt: skip


@pytest.fixture
def theirs(monkeypatch):
    """Their package, with plain torch where it would start a kernel."""
    models, layer, naive = (of_fla(f"fla.{name}") for name in ("models", "layers.gla", "ops.gla.naive"))
    modules, mlp = of_fla("fla.modules"), of_fla("fla.modules.mlp")

    def recurrent(q, k, v, gk, initial_state, output_final_state, state_v_first, cu_seqlens):
        return naive.naive_recurrent_gla(q, k, v, gk, initial_state, output_final_state)

    def norm(self, x, residual=None, prenorm=False):
        x = x if residual is None else x + residual
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        y = y if self.weight is None else y * self.weight
        return (y, x) if prenorm else y

    def gated(self, x, g, *rest, **options):
        return norm(self, x) * torch.nn.functional.silu(g)

    def conv(self, x, **options):
        y = torch.nn.functional.conv1d(
            torch.nn.functional.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0)), self.weight, groups=x.shape[-1]
        )
        return torch.nn.functional.silu(y.transpose(1, 2)), None

    monkeypatch.setattr(layer, "fused_recurrent_gla", recurrent)
    monkeypatch.setattr(modules.RMSNorm, "forward", norm)
    monkeypatch.setattr(modules.FusedRMSNormGated, "forward", gated)
    monkeypatch.setattr(modules.ShortConvolution, "forward", conv)
    monkeypatch.setattr(mlp, "swiglu", lambda x, y: torch.nn.functional.silu(x) * y)
    return models


def built(theirs: Any, options: dict[str, Any]) -> Any:
    """A random model whose gates, and all else, are far from what they begin with."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, vocab_size=61, intermediate_size=48)
    model = theirs.GLAForCausalLM(theirs.GLAConfig(**(sizes | options)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(mean=float(p.ndim == 1), std=0.3 if p.ndim == 1 or "embed" in name else 1.5 * p.shape[1] ** -0.5)
            if name.endswith("gk_proj.1.bias"):
                p.normal_(std=2.0)
    return plain(model)


def plain(model: Any) -> Any:
    """The model without the kernels that its layers hold on to."""
    for each in model.model.layers:
        each.mlp.fuse_swiglu = False
        each.attn.gate_fn = torch.nn.functional.silu
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_same_logits_of_their_folders(name: str, theirs: Any, tmp_path: Path) -> None:
    """Read whole, and in two pieces on a cache; and what we write is read there."""
    reference = built(theirs, MODELS[name])
    reference.save_pretrained(tmp_path / "theirs")
    model, weights = load_hf(tmp_path / "theirs")
    token = np.random.default_rng(1).integers(61, size=(2, 20))
    with torch.no_grad():
        wanted = reference(torch.tensor(token)).logits.numpy()
    assert wanted.std() > 0.3, "a flat model would hide mistakes"
    weights = jax.device_put(weights)
    np.testing.assert_allclose(jax.jit(model.forward)(weights, token).logits, wanted, atol=2e-4, rtol=1e-4)

    cache, found = model.init_cache(2, 20), []
    for piece in np.split(token, [13], axis=1):
        out, delta = jax.jit(model.extend)(weights, cache, Rows.chain(jnp.asarray(piece, jnp.int32)))
        cache = model.commit(cache, delta, None, jnp.full(2, piece.shape[1], jnp.int32))
        found.append(out.logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, atol=2e-4, rtol=1e-4)

    save_gla(tmp_path / "ours", model, weights)
    again, info = theirs.GLAForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(plain(again)(torch.tensor(token)).logits.numpy(), wanted, atol=1e-5, rtol=1e-5)
