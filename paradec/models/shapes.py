"""Shapes of well-known decoders, without weights: what `explain` compiles and tests build. Sources: their configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paradec.errors import UnknownName
from paradec.models.block_diffusion import BlockDiffusion
from paradec.models.experts import Experts
from paradec.models.transformer import Transformer
from paradec.ops.rope import Rope


def tiny() -> Transformer:
    """Two layers that compile in seconds; its heads and widths split over four devices."""
    return Transformer(
        vocab_size=96, width=32, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=8, mlp_width=64, tied=False
    )


def smollm2_135m() -> Transformer:
    """SmolLM2-135M (2502.02737)."""
    return Transformer(
        vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, mlp_width=1536,
        max_length=8192, rope=Rope(theta=100_000.0), tied=True,
    )  # fmt: skip


def llama3_2_1b() -> Transformer:
    """Llama 3.2 1B, from its model card; its long-context scaling of the rotation changes no size."""
    return Transformer(
        vocab_size=128_256, width=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, mlp_width=8192,
        max_length=8192, rope=Rope(theta=500_000.0), tied=True,
    )  # fmt: skip


def llama3_8b() -> Transformer:
    """Llama 3 8B (2407.21783)."""
    return Transformer(
        vocab_size=128_256, width=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, mlp_width=14_336,
        max_length=8192, rope=Rope(theta=500_000.0), tied=False,
    )  # fmt: skip


SHAPES: Mapping[str, Callable[[], Transformer]] = {
    "llama3.2-1b": llama3_2_1b,
    "llama3-8b": llama3_8b,
    "smollm2-135m": smollm2_135m,
    "tiny": tiny,
}


def shape(name: str) -> Transformer:
    """The structure of that name."""
    if name not in SHAPES:
        raise UnknownName("model shape", name, SHAPES)
    return SHAPES[name]()


def from_fields(fields: Mapping[str, Any]) -> Transformer:
    """The structure with these fields, as JSON has them: rotations and experts as fields of their own."""
    ropes = {k: Rope(**fields[k]) for k in ("rope", "local_rope") if fields.get(k) is not None}
    parts = ropes | ({"experts": Experts(**fields["experts"])} if fields.get("experts") else {})
    return Transformer(**dict(fields) | parts | {"sliding": tuple(fields.get("sliding", ()))})


def denoiser(base: Any, block: int) -> BlockDiffusion:
    """A block-diffusion denoiser on that structure, whose last token is the mask."""
    return BlockDiffusion(base, mask_id=base.vocab_size - 1, block=block)
