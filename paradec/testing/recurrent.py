"""A small recurrent language model: the second kind of target that every decoding law must hold on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from paradec import struct
from paradec.ops.norm import rms_norm
from paradec.ops.scan import tree_scan
from paradec.types import Model, Output, Rows, Sizes, Spec, Stacks


@struct.dataclass
class State:
    """All that a recurrence remembers: one vector per layer, whatever the length."""

    h: Float[Array, "L B D"]
    length: Int32[Array, "B"]

    def axes(self) -> State:
        """The logical axes of each leaf."""
        return State(h=("layers", "batch", None), length=("batch",))


@struct.dataclass
class StateDelta:
    """The state after every row of a call, so that any of them can be kept."""

    h: Float[Array, "L B N D"]


@struct.dataclass
class Layers:
    """The layer stack: every leaf has a leading layer axis L."""

    norm: Float[Array, "L D"]
    mix: Float[Array, "L D 3 D"]  # decay, input and output gate
    out: Float[Array, "L D D"]
    mlp_norm: Float[Array, "L D"]
    up: Float[Array, "L D F"]
    down: Float[Array, "L F D"]


@struct.dataclass
class RecurrenceWeights:
    """The parameter tree of a `GatedRecurrence`. `head` is None where it is tied to `embed`."""

    embed: Float[Array, "V D"]
    layers: Layers
    norm: Float[Array, "D"]
    head: Float[Array, "V D"] | None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GatedRecurrence(Model):
    """A gated diagonal linear recurrence: `h = a * h_before + (1 - a) * input` in every layer, then an MLP.

    The simplest member of the family of HGRN (2311.04823) and minGRU (2410.01201). Its delta holds the state after
    every row; committing is choosing one, so rejected drafts leave no trace, and trees work through `tree_scan`.
    """

    vocab_size: int
    width: int
    num_layers: int
    mlp_width: int
    tied: bool = True

    def specs(self) -> RecurrenceWeights:
        """The parameter tree, a `Spec` at every leaf."""
        L, D, F, V = self.num_layers, self.width, self.mlp_width, self.vocab_size
        branch = (2 * L) ** -0.5  # keeps the residual stream's variance independent of depth
        layers = Layers(
            norm=Spec((L, D), ("layers", None), "ones"),
            mix=Spec((L, D, 3, D), ("layers", "embed", None, None), D**-0.5),
            out=Spec((L, D, D), ("layers", None, "embed"), branch * D**-0.5),
            mlp_norm=Spec((L, D), ("layers", None), "ones"),
            up=Spec((L, D, F), ("layers", "embed", "mlp"), D**-0.5),
            down=Spec((L, F, D), ("layers", "mlp", "embed"), branch * F**-0.5),
        )
        table = Spec((V, D), ("vocab", "embed"), D**-0.5)
        return RecurrenceWeights(
            embed=table, layers=layers, norm=Spec((D,), (None,), "ones"), head=None if self.tied else table
        )

    def sizes(self) -> Sizes:
        """The numbers that formulas need."""
        return Sizes(self.vocab_size, width=self.width, num_layers=self.num_layers, mlp_width=self.mlp_width)

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""
        lookup = () if self.tied else ("embed",)
        return Stacks(layers=(("layers", self.num_layers),), lookup=lookup, norm="norm")

    def forward(
        self, params: RecurrenceWeights, token: Int[Array, "B T"], *, taps: tuple[int, ...] = (), **facts: Any
    ) -> Output:
        """Whole sequences at once. There is no mask to choose: a recurrence is causal, so other facts are refused."""
        if facts:
            raise TypeError(f"A recurrence has no use for {', '.join(facts)}: it reads from left to right.")
        return self.extend(params, self.init_cache(token.shape[0], 0), Rows.chain(token), taps=taps)[0]

    def init_cache(self, batch: int, slots: int) -> State:
        """The state before any token. It does not grow, so `slots` is not needed."""
        return State(h=jnp.zeros((self.num_layers, batch, self.width)), length=jnp.zeros(batch, jnp.int32))

    def init_delta(self, batch: int, rows: int) -> StateDelta:
        """A delta of `rows` rows that several `extend` calls may fill."""
        return StateDelta(h=jnp.zeros((self.num_layers, batch, rows, self.width)))

    def extend(
        self,
        params: RecurrenceWeights,
        cache: State,
        rows: Rows,
        pending: StateDelta | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, StateDelta]:
        """Compute `rows` on top of the state (and of pending rows); see `types.Model`."""
        x = params.embed[rows.token]
        if rows.embed is not None:
            x = jnp.where(rows.aux[..., None], rows.embed.astype(x.dtype), x)

        def layer(x: Array, scanned: tuple[Layers, Array, Array | None]) -> tuple[Array, tuple[Array, Array]]:
            w, h0, old = scanned
            a, b, gate = self._gates(w, x)
            if old is not None:  # earlier rows are known: constant maps
                a = lax.dynamic_update_slice_in_dim(jnp.zeros_like(old), a, rows.start, axis=1)
                b = lax.dynamic_update_slice_in_dim(old, b, rows.start, axis=1)
            h = tree_scan(a, b, rows.parent, h0)
            mine = lax.dynamic_slice_in_dim(h, rows.start, x.shape[1], axis=1)
            x = x + (mine * gate) @ w.out
            x = x + jax.nn.gelu(rms_norm(x, w.mlp_norm, 1e-5) @ w.up) @ w.down
            return x, (h, x)

        x, (h, every) = lax.scan(layer, x, (params.layers, cache.h, None if pending is None else pending.h))
        hidden = rms_norm(x, params.norm, 1e-5)
        logits = hidden @ self.unembed(params).T
        return Output(logits=logits, hidden=hidden, taps=tuple(every[i] for i in taps)), StateDelta(h=h)

    def unembed(self, params: RecurrenceWeights) -> Float[Array, "V D"]:
        """The vocabulary head: what `Output.hidden` is multiplied with."""
        return params.embed if params.head is None else params.head

    def _gates(self, w: Layers, x: Array) -> tuple[Array, Array, Array]:
        mixed = jnp.einsum("btd,dce->btce", rms_norm(x, w.norm, 1e-5), w.mix)
        a = jax.nn.sigmoid(mixed[:, :, 0] + 1.0)  # remembers a few tokens, not just the last
        return a, (1 - a) * mixed[:, :, 1], jax.nn.silu(mixed[:, :, 2])

    def commit(self, cache: State, delta: StateDelta, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> State:
        """The state after the last kept row; a count of 0 keeps the old one."""
        last = jnp.maximum(count - 1, 0)[:, None]
        node = last if path is None else jnp.take_along_axis(path, last, axis=1)
        h = jnp.take_along_axis(delta.h, node[None, :, :, None], axis=2)[:, :, 0]
        return State(h=jnp.where((count > 0)[None, :, None], h, cache.h), length=cache.length + count)
