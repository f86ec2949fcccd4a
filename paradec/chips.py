"""Published peaks of accelerators: what a step is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip, and the memory a program may use. `names` are jax's own for the kind."""

    kind: str
    hbm: int  # bytes; of TPUs less what the runtime keeps, as read from the compiler's refusals
    flops: float  # bfloat16 without sparsity, per second
    bandwidth: float  # bytes per second
    links: float | None = None  # bytes per second that a chip sends to its neighbours, all links together
    names: tuple[str, ...] = ()


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("TPU v5e", int(15.75 * 2**30), 197e12, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip("TPU v5p", int(95.73 * 2**30), 459e12, 2765e9, 600e9, ("TPU v5", "TPU v5p")),
    "v6e": Chip("TPU v6e", int(31.24 * 2**30), 918e12, 1640e9, 448e9, ("TPU v6 lite", "TPU v6e")),
}
GPUS: tuple[Chip, ...] = (
    Chip("H200", int(141e9), 989e12, 4800e9, 450e9, ("NVIDIA H200",)),
    Chip("H100 SXM", int(80e9), 989e12, 3350e9, 450e9, ("NVIDIA H100 80GB HBM3",)),
    Chip("H100 PCIe", int(80e9), 756e12, 2000e9, None, ("NVIDIA H100 PCIe",)),
    Chip("A100 80 GB", int(80e9), 312e12, 2039e9, 300e9, ("NVIDIA A100-SXM4-80GB",)),
)


def here() -> Chip | None:
    """The chip that jax runs on; None where its peak is not known, as on a CPU."""
    name = jax.devices()[0].device_kind
    return next((chip for chip in (*CHIPS.values(), *GPUS) if name in chip.names), None)
