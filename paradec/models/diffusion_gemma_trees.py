"""The trees of a `DiffusionGemma`: its parameters, its cache and its delta, each with a part for each kind of layer."""

from __future__ import annotations

from jaxtyping import Array, Float, Int32

from paradec import struct
from paradec.models.cache import KVCache, KVDelta
from paradec.models.experts import ExpertWeights

KINDS = ("local", "full")
"""Layers that slide, and layers that see everything: two shapes, so two stacks, in every tree of this model."""


@struct.dataclass
class GemmaBlocks:
    """The layers of one kind. H counts key/value heads, G queries per key head, X experts."""

    attn_norm: Float[Array, "L D"]
    q: Float[Array, "L D H G K"]
    k: Float[Array, "L D H K"]
    v: Float[Array, "L D H K"] | None  # None: values are made of the keys, before their norm and rotation
    q_norm: Float[Array, "L K"]
    k_norm: Float[Array, "L K"]
    out: Float[Array, "L H G K D"]
    attn_post_norm: Float[Array, "L D"]
    mlp_norm: Float[Array, "L D"]
    gate_up: Float[Array, "L 2 D F"]
    down: Float[Array, "L F D"]
    mlp_post_norm: Float[Array, "L D"]
    router_scale: Float[Array, "L D"]
    expert_norm: Float[Array, "L D"]
    experts: ExpertWeights
    expert_post_norm: Float[Array, "L D"]
    post_norm: Float[Array, "L D"]  # of the MLP and the experts together
    canvas_scalar: Float[Array, "L 1"]
    causal_scalar: Float[Array, "L 1"]


@struct.dataclass
class SelfConditioning:
    """The MLP through which a canvas' input learns of the call before."""

    norm: Float[Array, "D"]
    gate_up: Float[Array, "2 D F"]
    down: Float[Array, "F D"]


@struct.dataclass
class GemmaWeights:
    """The parameter tree of a `DiffusionGemma`. The vocabulary head is `embed`."""

    embed: Float[Array, "V D"]
    local: GemmaBlocks | None
    full: GemmaBlocks | None
    conditioning: SelfConditioning
    norm: Float[Array, "D"]


@struct.dataclass
class GemmaCache:
    """Keys and values of the causal pass. Both parts have the same slots in use."""

    local: KVCache
    full: KVCache

    @property
    def length(self) -> Int32[Array, "B"]:
        """How many positions are stored."""
        return self.full.length


@struct.dataclass
class GemmaDelta:
    """Keys and values that an `extend` computed."""

    local: KVDelta
    full: KVDelta
