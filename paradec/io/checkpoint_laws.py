"""What a loaded diffusion checkpoint owes its config.json: its attention reaches as far as declared, its rows align.

Both faults are silent: a causal model, or one read without its shift, still writes fluent text. They raise
`WeightsError` rather than fail an assertion, since it is a user's checkpoint that is tried.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from paradec.errors import InputError, WeightsError
from paradec.models.block_diffusion import BlockDiffusion


class Alignment(NamedTuple):
    """Mean log-probability that row p gives to the token at its own position, and to the one later."""

    own: float
    later: float

    @property
    def shift(self) -> bool:
        """Whether the rows fit the later token better, as those of a shifted model do."""
        return self.later > self.own


@partial(jax.jit, static_argnums=0)
def _logits(model: Any, params: Any, token: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    return model.forward(params, token).logits


def reach_of(model: Any, params: Any, length: int, seed: int = 0) -> Bool[np.ndarray, "T T"]:
    """`[t, s]`: whether another token at position s changes the logits at position t of a random text.

    It takes `length` + 1 forwards of one text each. They are one compiled program, so a token out of reach changes no
    bit; a token in reach may change none either where attention to it underflows, so keep the text short.
    """
    rng = np.random.default_rng(seed)
    token = rng.integers(model.vocab_size, size=(1, length))
    other = (token + rng.integers(1, model.vocab_size, size=(1, length))) % model.vocab_size
    read = lambda text: _logits(model, params, jnp.asarray(text, jnp.int32))[0]
    before, at = read(token), np.arange(length)
    changed = [np.asarray(jnp.any(read(np.where(at[None] == s, other, token)) != before, axis=1)) for s in at]
    return np.stack(changed, axis=1)


def check_reach(model: BlockDiffusion, params: Any, length: int | None = None, seed: int = 0) -> None:
    """Raise `WeightsError` unless logits depend on just the tokens that `model.block` declares to be seen.

    `length` None takes two blocks and a half; with fewer than two nothing could be out of reach.
    """
    if length is None:
        length = 2 * model.block + max(model.block // 2, 1) if model.block else 8
    reach = reach_of(model, params, length, seed)
    block = np.arange(length) // (model.block or length)
    declared = block[None, :] <= block[:, None]
    if (reach == declared).all():
        return
    attention = f"attention in blocks of {model.block}" if model.block else "full attention"
    if not np.triu(reach, 1).any():
        raise WeightsError(
            f"The model is causal, and its config declares {attention}: no later token changes earlier logits. "
            "Run its forward with the mask that its config declares."
        )
    t, s = np.argwhere(reach != declared)[0]
    raise WeightsError(
        f"The model's config declares {attention}, but the logits at position {t} {'do not ' * bool(declared[t, s])}"
        f"change with the token at position {s}. Check the block of the checkpoint and pass block= when loading it."
    )


def alignment_of(model: Any, params: Any, token: Int[Array, "B T"]) -> Alignment:
    """Which token an unmasked text's rows predict: the one at their position, or the next.

    The text must be of a kind that the model was trained on, without the mask token. Raises `InputError` for a text
    of one token.
    """
    if token.shape[1] < 2:
        raise InputError("A text of one token has no later one; give at least two.")
    log_p = jax.nn.log_softmax(_logits(model, params, token)[:, :-1].astype(jnp.float32), axis=-1)
    of = lambda target: float(jnp.take_along_axis(log_p, target[..., None], axis=-1).mean())
    return Alignment(own=of(token[:, :-1]), later=of(token[:, 1:]))


def check_shift(model: BlockDiffusion, params: Any, token: Int[Array, "B T"]) -> None:
    """Raise `WeightsError` where the rows of a text that the model knows do not align as `model.shift` says."""
    found = alignment_of(model, params, token)
    if found.shift != model.shift:
        better, worse = ("later", "own") if found.shift else ("own", "later")
        raise WeightsError(
            f"The model is declared {'' if model.shift else 'not '}shifted, but on this text its rows fit the token at "
            f"their {better} position better ({getattr(found, better):.3g} against {getattr(found, worse):.3g} nats). "
            "If the text is of a kind it was trained on, use dataclasses.replace(model, shift=...) with the other one."
        )
