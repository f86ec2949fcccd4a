"""A language model whose layers mix positions in ways that may differ: recurrences, linear attention, attention."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.errors import InputError, check_fields
from paradec.models import layer
from paradec.models.mixer import Call, Mixer, Stacked
from paradec.ops.mask import Facts
from paradec.ops.norm import rms_norm
from paradec.types import Model, Output, Rows, Sizes, Spec, Stacks


@struct.dataclass
class Layers:
    """The layers at one place of the pattern: every leaf leads with the axis L of its repeats."""

    norm: Float[Array, "L D"]
    mixer: PyTree
    skip: Float[Array, "L"] | None  # on the stream that passes by the mixer
    mlp_norm: Float[Array, "L D"] | None
    gate_up: Float[Array, "L 2 D F"] | None
    down: Float[Array, "L F D"] | None


@struct.dataclass
class RecurrentWeights:
    """The parameter tree of a `RecurrentLM`. `head` is None where it is tied to `embed`."""

    embed: Float[Array, "V D"]
    layers: tuple[Layers, ...]
    norm: Float[Array, "D"]
    head: Float[Array, "V D"] | None


@struct.dataclass
class RecurrentCache:
    """The states of every place of the pattern, "L B ...", and how many tokens they have seen."""

    states: tuple[PyTree, ...]
    length: Int32[Array, "B"]
    mixers: tuple[Mixer, ...] = struct.field(pytree_node=False)

    def axes(self) -> RecurrentCache:
        """The logical axes of each leaf."""
        states = tuple(m.axes(s) for m, s in zip(self.mixers, self.states, strict=True))
        return self.replace(states=states, length=("batch",))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RecurrentLM(Model):
    """`repeats` times the layers of `pattern`, each `x = skip x + mixer(norm x)`, then `x + SwiGLU(norm x)`.

    Layers at one place of the pattern are one stack, and the repeats one scan, so a model of a single kind of layer is
    a pattern of one. Layer number `r * len(pattern) + p` stands at place p of repeat r. `mlp_width` 0: no MLPs.
    Matrices are drawn with standard deviation `1 / sqrt(fan in)`, what projects into the stream with
    `1 / sqrt(2 layers)` of that.
    """

    vocab_size: int
    width: int
    pattern: tuple[Mixer, ...]
    repeats: int
    mlp_width: int
    norm_eps: float = 1e-6
    tied: bool = True
    max_length: int | None = None
    dtype: str = "float32"  # of weights and activations; states, gates, norms and logits are float32

    def __post_init__(self) -> None:
        """Raise `InputError` for a model without layers."""
        check_fields(self, {
            "pattern": (bool(self.pattern), "at least one mixer"),
            "repeats": (self.repeats >= 1, "at least 1"),
        })  # fmt: skip

    @property
    def num_layers(self) -> int:
        """Layers in all."""
        return self.repeats * len(self.pattern)

    def specs(self) -> RecurrentWeights:
        """The parameter tree, a `Spec` at every leaf."""
        D, table = (
            self.width,
            Spec((self.vocab_size, self.width), ("vocab", "embed"), self.width**-0.5, self.dtype, (0, 1)),
        )
        return RecurrentWeights(
            embed=table,
            layers=tuple(self._place(mixer) for mixer in self.pattern),
            norm=Spec((D,), (None,), "ones", self.dtype),
            head=None if self.tied else table,
        )

    def _place(self, mixer: Mixer) -> Layers:
        """The specs of the layers at one place of the pattern."""
        L, D, F, branch = self.repeats, self.width, self.mlp_width, (2 * self.num_layers) ** -0.5
        norm = Spec((L, D), ("layers", None), "ones", self.dtype)
        up = Spec((L, 2, D, F), ("layers", None, "embed", "mlp"), D**-0.5, self.dtype, (2, 1))
        down = Spec((L, F, D), ("layers", "mlp", "embed"), max(F, 1) ** -0.5 * branch, self.dtype, (1, 1))
        return Layers(
            norm=norm, mixer=mixer.specs(L, D, self.dtype, branch),
            skip=Spec((L,), ("layers",), "ones", self.dtype) if mixer.skip_scale else None,
            mlp_norm=norm if F else None, gate_up=up if F else None, down=down if F else None,
        )  # fmt: skip

    def sizes(self) -> Sizes:
        """The numbers that formulas need; those of attention are of a place in the pattern that has it."""
        heads = next((m for m in self.pattern if m.reads_stack), None)
        of = lambda name: getattr(heads, name) if heads else 0  # every mixer that reads a stack of keys has them
        return Sizes(
            vocab_size=self.vocab_size, width=self.width, num_layers=self.num_layers, mlp_width=self.mlp_width,
            num_heads=of("num_heads"), num_kv_heads=of("num_kv_heads"), head_dim=of("head_dim"), dtype=self.dtype,
        )  # fmt: skip

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are."""
        return Stacks(layers=(("layers", self.repeats),), lookup=() if self.tied else ("embed",), norm="norm")

    def first_layers(self, count: int) -> RecurrentLM:
        """The structure of the first `count` repeats of the pattern alone."""
        return dataclasses.replace(self, repeats=count)

    # Whole sequences.

    def forward(
        self,
        params: RecurrentWeights,
        token: Int[Array, "B T"],
        *,
        position: Int[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        segment: Int[Array, "B T"] | None = None,
        taps: tuple[int, ...] = (),
        remat: bool = False,
    ) -> Output:
        """Whole sequences from an empty state. There is no mask to choose: every layer is causal.

        `segment` separates packed documents: each begins with an empty state. `valid` marks text among padding.
        `remat` recomputes each repeat of the pattern in the backward pass. `Output.info` is what solvers say of
        themselves, one entry a layer that has one, in the order of the pattern within the order of repeats.
        """
        if position is None:
            position = jnp.broadcast_to(lax.iota(jnp.int32, token.shape[1])[None], token.shape)
        facts = Facts(position=position, valid=valid, segment=segment)

        def repeat(x: Array, layers: tuple[Layers, ...]) -> tuple[Array, tuple]:
            every, infos = [], []
            for mixer, w in zip(self.pattern, layers, strict=True):
                y, info = mixer.forward(w.mixer, rms_norm(x, w.norm, self.norm_eps), facts)
                x = self._rest(w, x, y)
                every, infos = [*every, x], infos if info is None else [*infos, info]
            return x, (tuple(every) if taps else (), tuple(infos))

        body = jax.checkpoint(repeat) if remat else repeat
        x, (every, infos) = lax.scan(body, layer.embedded(params.embed, token), params.layers)
        return self._output(params, x, every, taps, jax.tree.map(_in_order, *infos) if infos else None)

    # Rows on a cache.

    def init_cache(self, batch: int, slots: int) -> RecurrentCache:
        """The states before any token. Only those of attention need `slots`."""
        states = tuple(m.init_state(self.repeats, batch, slots, self.width, self.dtype) for m in self.pattern)
        return RecurrentCache(states=states, length=jnp.zeros(batch, jnp.int32), mixers=self.pattern)

    def init_delta(self, batch: int, rows: int) -> tuple[PyTree, ...]:
        """A delta of `rows` rows that several `extend` calls may fill."""
        return tuple(m.init_delta(self.repeats, batch, rows, self.width, self.dtype) for m in self.pattern)

    def extend(
        self,
        params: RecurrentWeights,
        cache: RecurrentCache,
        rows: Rows,
        pending: tuple[PyTree, ...] | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, tuple[PyTree, ...]]:
        """Compute `rows` on top of the states (and of pending rows); see `types.Model`."""
        if rows.place is not None:
            raise InputError("A recurrence reads from left to right: it fills no canvas.")
        call = Call.of(rows, cache.length, live)
        sliced = tuple(None if m.reads_stack else s for m, s in zip(self.pattern, cache.states, strict=True))

        def repeat(x: Array, scanned: tuple) -> tuple[Array, tuple]:
            layers, states, old, index = scanned
            every, deltas = [], []
            for p, (mixer, w) in enumerate(zip(self.pattern, layers, strict=True)):
                state = Stacked(cache.states[p], index) if mixer.reads_stack else states[p]
                x_norm = rms_norm(x, w.norm, self.norm_eps)
                y, delta = mixer.extend(w.mixer, x_norm, state, call, None if old is None else old[p])
                x = self._rest(w, x, y)
                every, deltas = [*every, x], [*deltas, delta]
            return x, (tuple(every) if taps else (), tuple(deltas))

        x = layer.embedded(params.embed, rows.token, rows.embed, rows.aux)
        each = (params.layers, sliced, pending, lax.iota(jnp.int32, self.repeats))
        x, (every, delta) = lax.scan(repeat, x, each)
        if rows.read is not None:
            pick = lambda x: jnp.take_along_axis(x, rows.read[..., None], axis=1)
            x, every = pick(x), jax.tree.map(jax.vmap(pick), every)
        return self._output(params, x, every, taps, None), delta

    def commit(
        self, cache: RecurrentCache, delta: tuple[PyTree, ...], path: Int[Array, "B P"] | None, count: Int[Array, "B"]
    ) -> RecurrentCache:
        """The states after delta rows `path[:count]`; see `types.Model`."""
        each = zip(self.pattern, cache.states, delta, strict=True)
        states = tuple(m.commit(s, d, path, count, cache.length) for m, s, d in each)
        return cache.replace(states=states, length=cache.length + count)

    def unembed(self, params: RecurrentWeights) -> Float[Array, "V D"]:
        """The vocabulary head: what `Output.hidden` is multiplied with."""
        return params.embed if params.head is None else params.head

    def _rest(self, w: Layers, x: Array, y: Array) -> Array:
        """The stream after a layer whose mixer found `y`."""
        x = layer.residual(x if w.skip is None else x * w.skip.astype(x.dtype), y.astype(x.dtype))
        if w.gate_up is None:
            return x
        return layer.residual(
            x, layer.gated_mlp(rms_norm(x, w.mlp_norm, self.norm_eps), w.gate_up, w.down, jax.nn.silu)
        )

    def _output(
        self, params: RecurrentWeights, x: Array, every: tuple, taps: tuple[int, ...], info: PyTree | None
    ) -> Output:
        hidden = rms_norm(x, params.norm, self.norm_eps)
        logits = layer.vocabulary_logits(hidden, self.unembed(params))
        P = len(self.pattern)
        return Output(logits=logits, hidden=hidden, taps=tuple(every[i % P][i // P] for i in taps), info=info)


def _in_order(*places: Array) -> Array:
    """What the layers of several places say, "L ...", in the order in which they stand."""
    return jnp.stack(places, axis=1).reshape(-1, *places[0].shape[1:])
