"""A pattern of mixers is one model: its cached, tree-shaped, ragged passes are its `forward`, whatever was refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.errors import InputError
from paradec.models.attention_mixer import Attention
from paradec.models.cells.gru import GRU
from paradec.models.cells.slstm import SLSTM
from paradec.models.flash_rnn import FlashRNN
from paradec.models.recurrent import RecurrentLM
from paradec.models.transformer import Transformer
from paradec.testing import model_laws as laws
from paradec.testing.tiny import drawn

PATTERNS = {
    "attention": (Attention(4, 2, 8),),
    "slstm": (FlashRNN(SLSTM(2, 8)),),
    "mixed": (FlashRNN(GRU(2, 8)), Attention(4, 2, 8)),
    "two kinds": (Attention(4, 2, 8), Attention(2, 1, 8, window=3)),
}


def made(name: str) -> tuple[RecurrentLM, object]:
    model = RecurrentLM(97, 32, PATTERNS[name], repeats=2, mlp_width=48, tied=False)
    return model, drawn(model.specs(), 0)


@pytest.mark.parametrize("name", PATTERNS)
def test_laws(name):
    model, weights = made(name)
    token = jnp.asarray(np.random.default_rng(1).integers(97, size=(3, 24)))
    plan = laws.plan(0, 4, 3, 3, 7)
    for chain in (True, False):
        laws.cache(model, weights, token, plan, chain=chain)
    laws.untouched(model, weights, token)
    laws.pending(model, weights, token, None)
    laws.pending(model, weights, token, plan.parent[0])


def test_attention_alone_is_a_transformer():
    """The same weights in the transformer's tree: the same logits."""
    model, weights = made("attention")
    sizes = dict(vocab_size=97, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48)
    other = Transformer(**sizes, tied=False, norm_eps=model.norm_eps)
    (mine,) = weights.layers
    theirs = drawn(other.specs(), 0)
    blocks = theirs.blocks.replace(
        attn_norm=mine.norm, qkv=mine.mixer.qkv, out=mine.mixer.out, mlp_norm=mine.mlp_norm, gate_up=mine.gate_up,
        down=mine.down,
    )  # fmt: skip
    theirs = theirs.replace(embed=weights.embed, blocks=blocks, norm=weights.norm, head=weights.head)
    token = jax.random.randint(jax.random.key(2), (2, 13), 0, 97)
    np.testing.assert_allclose(
        model.forward(weights, token).logits, other.forward(theirs, token).logits, atol=2e-5
    )  # fmt: skip


def test_packed_documents_are_apart():
    model, weights = made("two kinds")
    token = jax.random.randint(jax.random.key(3), (1, 12), 0, 97)
    segment = jnp.asarray([[0] * 5 + [1] * 7])
    position = jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None]
    packed = model.forward(weights, token, segment=segment, position=position).logits
    alone = [model.forward(weights, part).logits for part in (token[:, :5], token[:, 5:])]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=2e-5)


def test_what_makes_no_model():
    with pytest.raises(InputError, match="pattern must be at least one mixer"):
        RecurrentLM(97, 32, (), 2, 48)
    with pytest.raises(InputError, match="num_heads must be a multiple of num_kv_heads"):
        Attention(4, 3, 8)
