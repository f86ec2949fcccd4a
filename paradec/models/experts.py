"""A mixture of experts in an MLP's place: a router gives every token to a few of many small MLPs.

Sources: 1701.06538; scores by sigmoid, groups of experts and a bias that steers the choice alone as in DeepSeek-V3
(2412.19437), which LLaDA2 (2512.15745) follows. No expert has a capacity and no token is dropped, so what a token gets
does not depend on the others in its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from paradec import struct
from paradec.errors import InputError
from paradec.models import lora
from paradec.types import Spec


@struct.dataclass
class ExpertWeights:
    """The experts of L layers and their routers, which are float32 in every model. X counts experts, R is their width.

    The pair of `gate_up` leads, as it does in the plain MLP.
    """

    router: Float[Array, "L D X"]
    bias: Float[Array, "L X"] | None
    gate_up: Float[Array, "L 2 X D R"]  # gate, then up
    down: Float[Array, "L X R D"]
    gain: Float[Array, "L X"] | None = None  # multiplies each expert's weight once it is chosen (Gemma 4)


@dataclasses.dataclass(frozen=True)
class Experts:
    """How tokens find their experts. Numbers and choices only; the weights are an `ExpertWeights` that is passed along.

    A token goes to the `top_k` experts of highest score plus bias, in the `top_groups` groups whose two best have the
    highest sum. Each is weighted with its own score, without the bias; `normalise` makes the weights sum to 1 before
    they are multiplied by `scale`.
    """

    count: int
    width: int  # of one expert's MLP
    top_k: int
    score: str = "softmax"  # or "sigmoid"
    normalise: bool = False
    scale: float = 1.0
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    shared: int = 0  # width of one more MLP that all tokens pass; 0: none
    leading: int = 0  # layers before the first with experts; their MLPs are plain, of the model's `mlp_width`
    gain: bool = False

    def __post_init__(self) -> None:
        """Raise `InputError` for what no router can do."""
        if self.score not in ("softmax", "sigmoid"):
            raise InputError(f"The score of a router must be softmax or sigmoid; {self.score!r} was given.")
        if self.groups < 1 or self.count % self.groups:
            raise InputError(f"{self.count} experts do not divide into {self.groups} groups of one size.")
        if not 1 <= self.top_groups <= self.groups:
            raise InputError(f"A token can choose 1 to {self.groups} groups, not {self.top_groups}.")
        if self.groups > 1 and self.count < 2 * self.groups:
            raise InputError(f"Groups are ranked by their two best experts, and {self.groups} groups of 1 have one.")
        choice = self.count // self.groups * self.top_groups
        if not 1 <= self.top_k <= choice:
            raise InputError(f"A token can go to 1 to {choice} of the {self.count} experts here, not {self.top_k}.")

    def specs(self, layers: int, width: int, dtype: str, residual: float) -> ExpertWeights:
        """The weights of `layers` layers of a model of this width; `residual` scales the matrices that end there."""
        X, D, R = self.count, width, self.width
        return ExpertWeights(
            router=Spec((layers, D, X), ("layers", "embed", None), D**-0.5, "float32", (1, 1)),
            bias=Spec((layers, X), ("layers", None), "zeros", "float32") if self.bias else None,
            gate_up=Spec((layers, 2, X, D, R), ("layers", None, None, "embed", "mlp"), D**-0.5, dtype, (3, 1)),
            down=Spec((layers, X, R, D), ("layers", None, "mlp", "embed"), R**-0.5 * residual, dtype, (2, 1)),
            gain=Spec((layers, X), ("layers", None), "ones", "float32") if self.gain else None,
        )

    def route(self, w: ExpertWeights, x: Float[Array, "T D"]) -> tuple[Int[Array, "T A"], Float[Array, "T A"]]:
        """Each token's experts in one layer, best first, and their weights, in float32 whatever the model computes in.

        Of equal experts the first is taken.
        """
        wide = x.astype(jnp.float32), lora.merged(w.router).astype(jnp.float32)
        logits = jnp.einsum("td,dx->tx", *wide, precision=lax.Precision.HIGHEST)
        score = jax.nn.softmax(logits) if self.score == "softmax" else jax.nn.sigmoid(logits)
        merit = score if w.bias is None else score + w.bias.astype(jnp.float32)[None]
        chosen = lax.top_k(merit if self.groups == 1 else self._in_top_groups(merit), self.top_k)[1]
        weight = jnp.take_along_axis(score, chosen, axis=1)
        if self.normalise:
            weight = weight / (jnp.sum(weight, axis=1, keepdims=True) + 1e-20)
        if w.gain is not None:
            weight = weight * w.gain.astype(jnp.float32)[chosen]
        return chosen, weight * self.scale

    def mix(
        self,
        w: ExpertWeights,
        x: Float[Array, "B T D"],
        activation: Callable[[Array], Array],
        by: Float[Array, "B T D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The weighted sum of every token's experts, of one layer. Under `vmap` over `x` it is one of a wider batch.

        `by` is what the router reads where that is not what the experts read.
        """
        return _mix(self, activation, w, x, x if by is None else by)

    def _plain_mix(self, activation: Callable[[Array], Array], w: ExpertWeights, x: Array, by: Array) -> Array:
        tokens = x.reshape(-1, x.shape[-1])
        chosen, weight = self.route(w, by.reshape(tokens.shape))
        # Sorted by expert, the rows of each lie together, and one ragged product does what a loop over experts would.
        order = jnp.argsort(chosen.reshape(-1))
        size = jnp.bincount(chosen.reshape(-1), length=self.count).astype(jnp.int32)
        rows = tokens[order // self.top_k]
        gate, up = (_ragged(rows, w.gate_up[i], size) for i in (0, 1))
        out = _ragged(activation(gate) * up, w.down, size)
        back = out[jnp.argsort(order)].reshape(*chosen.shape, -1)
        return jnp.einsum("ta,tad->td", weight, back.astype(jnp.float32)).astype(x.dtype).reshape(x.shape)

    def _in_top_groups(self, merit: Float[Array, "T X"]) -> Float[Array, "T X"]:
        """`merit` with minus infinity outside the best groups."""
        grouped = merit.reshape(len(merit), self.groups, -1)
        best = lax.top_k(jnp.sum(lax.top_k(grouped, 2)[0], axis=-1), self.top_groups)[1]
        kept = jnp.any(best[:, :, None] == jnp.arange(self.groups)[None, None], axis=1)
        return jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(merit.shape)


def _ragged(rows: Array, w: Array | lora.Adapted, size: Array) -> Array:
    low = lambda a, b: lax.ragged_dot(lax.ragged_dot(rows, a, size), b, size)
    return lora.changed(w, lambda matrices: lax.ragged_dot(rows, matrices, size), low)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(experts: Experts, activation: Callable[[Array], Array], w: ExpertWeights, x: Array, by: Array) -> Array:
    """A ragged product cannot be mapped over, and need not be: no token depends on another."""

    @custom_vmap
    def mix(w: ExpertWeights, x: Array, by: Array) -> Array:
        return experts._plain_mix(activation, w, x, by)

    @mix.def_vmap
    def fold(size: int, mapped: list, w: ExpertWeights, x: Array, by: Array) -> tuple[Array, bool]:
        if any(jax.tree.leaves(mapped[0])):
            raise NotImplementedError("Experts are mapped over tokens, not over their weights.")
        rows = lambda a: a.reshape(-1, *a.shape[2:])
        return mix(w, rows(x), rows(by)).reshape(x.shape), True

    return mix(w, x, by)


def _forward(experts: Experts, activation: Callable, w: ExpertWeights, x: Array, by: Array) -> tuple[Array, Callable]:
    return jax.vjp(partial(experts._plain_mix, activation), w, x, by)  # what is mapped has no derivative of its own


_mix.defvjp(_forward, lambda experts, activation, back, out: back(out))
