"""The kinds of layers that a `RecurrentLM` can have, by the names that configurations give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from paradec.models.attention_mixer import Attention
from paradec.models.mixer import Mixer
from paradec.ops.rope import Rope


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """What a kind of layer may ask for. `head_dim` and `theta` are those of attention."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10_000.0


KINDS: Mapping[str, Callable[[LayerSizes], Mixer]] = {
    "attention": lambda s: Attention(s.heads, s.kv_heads, s.head_dim, Rope(theta=s.theta)),
}
"""A mixer of each kind, of these sizes."""

CLASSES: Mapping[str, type] = {c.__name__: c for c in (Attention, Rope)}
"""What mixers are and are made of, by the names of the classes, as files of models hold them."""
