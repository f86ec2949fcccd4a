"""A small random DiffusionGemma of transformers, saved by it and loaded by us: the same logits and the same decodes.

Its generation draws from torch; here torch is handed the draws of our keys, so that canvases and texts must be equal.
Only the dynamic cache is compared: the static one of 5.24 overwrites keys behind prompts as long as the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.composition import compose
from paradec.decode import loop
from paradec.decode.sampling import NEXT, NOISE, gumbel, integers, row_keys, sampling
from paradec.io.diffusion_gemma import read_denoising
from paradec.io.generation_config import read_ends
from paradec.io.hf import load_hf
from paradec.models.diffusion_gemma import DiffusionGemma
from paradec.types import Prompt
from tests.models.test_diffusion_gemma import Passes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "DiffusionGemmaConfig"):
    pytest.skip("needs a transformers that has DiffusionGemma", allow_module_level=True)

pytestmark = pytest.mark.oracle

BLOCK, VOCAB = 6, 64
ASK = {
    "max_denoising_steps": 7, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1, "confidence_threshold": 1.5,
    "pad_token_id": 0,
}  # fmt: skip


def reference(calm: float) -> Any:
    """Six layers of both kinds; `calm` above 1 makes what the layers add small beside the tokens themselves."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, num_global_key_value_heads=1, layer_types=kinds,
        sliding_window=5, num_experts=4, top_k_experts=2, moe_intermediate_size=16,
    )  # fmt: skip
    vision = transformers.AutoConfig.for_model(
        "gemma4_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, position_embedding_size=16,
    )  # fmt: skip
    config = transformers.DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=BLOCK)
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, x in model.named_parameters():
            drawn = torch.randn(x.shape, generator=draw)
            x.copy_(1 + 0.25 * drawn if x.ndim == 1 else 0.2 * drawn)
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                x /= calm
        for name, x in model.named_buffers():
            if name.endswith("layer_scalar"):
                x.copy_(0.7 + 0.4 * torch.rand(x.shape, generator=draw))
        model.model.decoder.norm.weight *= calm
        model.model.decoder.self_conditioning.down_proj.weight /= calm
    return model


def loaded(model: Any, folder: Path) -> tuple[DiffusionGemma, Any]:
    model.save_pretrained(folder)
    found, weights = load_hf(folder)
    assert isinstance(found, DiffusionGemma)
    return found, jax.device_put(weights)


def test_logits_of_both_passes(tmp_path: Path) -> None:
    theirs = reference(1.0)
    model, weights = loaded(theirs, tmp_path)
    draw = np.random.default_rng(0)
    text, canvas = draw.integers(VOCAB, size=17), draw.integers(VOCAB, size=(3, BLOCK))
    passes, cache = Passes(model, weights), None
    with torch.no_grad():
        cache = transformers.DynamicCache(config=theirs.config.get_text_config(decoder=True))
        for piece, x in zip((text[:11], text[11:]), canvas[:2], strict=True):
            ids = torch.tensor(piece[None])
            hidden = theirs.model.encoder(input_ids=ids, cache=cache).last_hidden_state
            wanted = 30 * torch.tanh(theirs.lm_head(hidden) / 30)
            np.testing.assert_allclose(passes.read(piece.tolist()), wanted, atol=1e-4, rtol=1e-4)
            first = theirs(cache=cache, decoder_input_ids=torch.tensor(x[None])).logits
            np.testing.assert_allclose(passes.canvas(x), first, atol=1e-4, rtol=1e-4)
            told = theirs(
                cache=cache, decoder_input_ids=torch.tensor(canvas[2:]), self_conditioning_logits=first / 0.7
            ).logits
            heard = passes.canvas(canvas[2], model.soften(weights, jnp.asarray(first.numpy()) / 0.7))
            np.testing.assert_allclose(heard, told, atol=1e-4, rtol=1e-4)
    assert told.std() > 0.3, "a flat model would hide mistakes"
    whole = model.forward(weights, jnp.asarray(text[None])).logits
    np.testing.assert_allclose(whole[:, 11:], wanted, atol=1e-4, rtol=1e-4)


class Draws:
    """What torch draws for one row, in the order in which the published loop asks."""

    def __init__(self, key: jax.Array, length: int):
        self.key, self.calls, self.start, self.drew = key, 0, length - BLOCK, False

    @property
    def at(self) -> Any:
        return jnp.arange(self.start, self.start + BLOCK)[None]

    @property
    def keyed(self) -> Any:
        return jax.vmap(jax.random.fold_in)(self.key, jnp.asarray([self.calls]))

    def randint(self, low: int = 0, high: int = 0, size: Any = (), device: Any = None) -> Any:
        """A new canvas, or after a draw of tokens, the noise of a step."""
        assert (low, high, tuple(size)) == (0, VOCAB, (1, BLOCK))
        if not self.drew:
            self.start += BLOCK
        key, self.drew = self.keyed if self.drew else self.key, False
        return torch.tensor(np.asarray(integers(key, self.at, VOCAB, NOISE)))

    def multinomial(self, probs: Any, num_samples: int = 1) -> Any:
        self.calls, self.drew = self.calls + 1, True
        noise = np.asarray(gumbel(self.keyed, self.at, VOCAB, NEXT))[0]
        return torch.tensor((np.log(probs.numpy()) + noise).argmax(-1)[:, None])


@pytest.fixture(scope="module")
def decodes(tmp_path_factory: Any) -> Iterator[Any]:
    yield reference(3.0), tmp_path_factory.mktemp("gemma")


def published(theirs: Any, prompt: np.ndarray, key: jax.Array, ask: dict[str, Any]) -> tuple[list[int], list[Any]]:
    """The text of transformers' own generation for one prompt, and the canvas of each of its calls."""
    shown, plain, draws = [], type(theirs).forward, Draws(key, len(prompt))

    def forward(*args: Any, **facts: Any) -> Any:
        shown.append(facts["decoder_input_ids"][0].tolist())
        return plain(theirs, *args, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", draws.randint)
        patch.setattr(torch, "multinomial", draws.multinomial)
        patch.setattr(theirs, "forward", forward, raising=False)
        out = theirs.generate(torch.tensor(prompt[None]), **ask)
    return out.sequences[0].tolist(), shown


@pytest.mark.parametrize("bound", [0.5, 4.0])
def test_a_whole_generation(decodes: Any, bound: float) -> None:
    theirs, folder = decodes
    sampler = transformers.models.diffusion_gemma.generation_diffusion_gemma.EntropyBoundSamplerConfig(bound)
    draw, blocks, lengths = np.random.default_rng(1), 3, (9, 4)
    prompts, keys = [draw.integers(2, VOCAB, size=n) for n in lengths], row_keys(0, range(2))
    ask = ASK | {"sampler_config": sampler, "max_new_tokens": blocks * BLOCK, "eos_token_id": None}
    first, _ = published(theirs, prompts[0], keys[:1], ask)
    canvas, later = first[lengths[0] : lengths[0] + BLOCK], first[lengths[0] + BLOCK : lengths[0] + 2 * BLOCK]
    ask["eos_token_id"] = [next(t for t in later if t not in canvas)]  # the first row ends inside its second canvas
    wanted = [published(theirs, p, keys[b : b + 1], ask) for b, p in enumerate(prompts)]

    theirs.generation_config.update(**ask)
    model, weights = loaded(theirs, folder)
    options, eos = read_denoising(folder), read_ends(folder, VOCAB)
    assert options["steps"] == 7 and options["gamma"] == bound and list(eos) == ask["eos_token_id"]
    method = compose(model, "renoise", options, eos=eos)
    token = np.zeros((2, 16), np.int32)
    for b, p in enumerate(prompts):
        token[b, : len(p)] = p
    state = loop.start(
        method, {"target": weights}, Prompt(token=jnp.asarray(token), length=jnp.asarray(lengths)),
        jnp.asarray(lengths) + blocks * BLOCK, keys, sampling(2), slots=32, chunk=16,
    )  # fmt: skip
    shown: list[list[Any]] = [[], []]
    while not loop.finished(state):
        before = state
        state = loop.run(method, {"target": weights}, jax.tree.map(jnp.copy, before), 1)
        for b in np.flatnonzero(np.asarray(state.calls) > np.asarray(before.calls)):
            lo = int(before.carry.block_start[b])
            shown[b].append(before.tokens[b, lo : lo + BLOCK].tolist())
    for b, (text, canvases) in enumerate(wanted):
        assert shown[b] == canvases, "the canvas of every call, and so the call in which each block ends"
        n = int(state.length[b])
        assert state.tokens[b, :n].tolist() == text[:n] and not any(text[n:])
    assert BLOCK < int(state.length[0]) - lengths[0] <= 2 * BLOCK
    if bound > 1:
        assert any(len(c) % 7 for _, c in wanted), "some block stopped before its last step"
