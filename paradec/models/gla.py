"""Gated linear attention as a mixer (GLA, arXiv 2312.06635): linear attention whose matrix state decays by gates."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from paradec import struct
from paradec.errors import InputError, check_fields
from paradec.models import lora
from paradec.models.mixer import Call, Mixer
from paradec.models.short_conv import conv_commit, conv_rows, short_conv
from paradec.ops.gla import IMPLEMENTATIONS, gla
from paradec.ops.gla_rows import gla_commit, gla_rows
from paradec.ops.mask import Facts
from paradec.ops.norm import rms_norm
from paradec.types import Spec

PAIRS = 64
"""Rows of a chain up to which each reads every other one, and the state once; longer ones are computed in chunks."""


@struct.dataclass
class GLAWeights:
    """Of H key heads with G queries each, of sizes K and V. What an option leaves out is None. Leaves lead with L."""

    q: Float[Array, "L D H G K"]
    k: Float[Array, "L D H K"]
    v: Float[Array, "L D H V"]
    gate_down: Float[Array, "L D R"]
    gate_up: Float[Array, "L R H K"]
    gate_bias: Float[Array, "L H K"]
    q_conv: Float[Array, "L W H G K"] | None
    k_conv: Float[Array, "L W H K"] | None
    v_conv: Float[Array, "L W H V"] | None
    out_gate: Float[Array, "L D H G V"] | None
    head_norm: Float[Array, "L V"] | None
    out: Float[Array, "L H G V D"]


@struct.dataclass
class GLAState:
    """The matrix of every key head, and of a convolution the last W - 1 inputs, C channels: queries, keys, values."""

    matrix: Float[Array, "L B H K V"]
    tail: Float[Array, "L B W-1 C"] | None


@struct.dataclass
class GLADelta:
    """The factors of N rows: what they add to the matrix and how it decays, and the inputs of their convolution."""

    k: Float[Array, "L B N H K"]
    v: Float[Array, "L B N H V"]
    g: Float[Array, "L B N H K"]
    conv: Float[Array, "L B N C"] | None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GLA(Mixer):
    """The layer of GLA: `out(rms_norm(o) * silu(x out_gate))`, of the outputs o of `ops.gla` on x's projections.

    Queries and keys of all heads are `expand_k` times as wide as the stream, values `expand_v` times. Heads share keys
    and values, and their gates, where `num_kv_heads` are fewer. A gate is `log_sigmoid(x gate_down gate_up + gate_bias)
    / gate_normaliser`, not below `clamp_min`, through `gate_rank` numbers. With `conv_size` W queries, keys and values
    pass through a depthwise convolution over W positions and SiLU. `implementation`, `chunk` and `sub_chunk` are those
    of `ops.gla.gla`, for whole sequences. The state is float32, of one size for any length; a delta holds factors.
    """

    num_heads: int
    num_kv_heads: int | None = None
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    gate_normaliser: float = 16.0
    clamp_min: float | None = None
    conv_size: int = 0
    output_gate: bool = True
    norm_weight: bool = True
    norm_eps: float = 1e-6
    implementation: str = "auto"
    chunk: int = 64
    sub_chunk: int = 16

    def __post_init__(self) -> None:
        """Raise `InputError` for heads that do not group, and for sizes that are none."""
        shares = self.num_heads >= 1 and self.key_heads >= 1 and self.num_heads % self.key_heads == 0
        check_fields(self, {
            "num_heads": (shares, f"a multiple of num_kv_heads ({self.key_heads})"),
            "expand_k": (self.expand_k > 0, "above 0"),
            "expand_v": (self.expand_v > 0, "above 0"),
            "gate_rank": (self.gate_rank >= 1, "at least 1"),
            "gate_normaliser": (self.gate_normaliser > 0, "above 0"),
            "clamp_min": (self.clamp_min is None or self.clamp_min <= 0, "at most 0: gates are logarithms of decays"),
            "conv_size": (self.conv_size == 0 or self.conv_size >= 2, "0 (none) or at least 2"),
            "implementation": (self.implementation in IMPLEMENTATIONS, f"one of {', '.join(IMPLEMENTATIONS)}"),
            "sub_chunk": (self.sub_chunk >= 1, "at least 1"),
            "chunk": (self.chunk >= 1 and self.chunk % max(self.sub_chunk, 1) == 0, f"a multiple of {self.sub_chunk}"),
        })  # fmt: skip

    @property
    def key_heads(self) -> int:
        """Heads that have keys, values and a state of their own."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def head_sizes(self, width: int) -> tuple[int, int]:
        """The sizes K and V of a head in a stream of this width. Raises `InputError` where heads do not divide it."""
        found = []
        for name, factor in (("expand_k", self.expand_k), ("expand_v", self.expand_v)):
            size = int(width * factor)
            if size < 1 or size % self.num_heads:
                raise InputError(
                    f"{name} = {factor} makes {size} of a width of {width}, which {self.num_heads} heads do not divide."
                )
            found.append(size // self.num_heads)
        return found[0], found[1]

    def letters(self, width: int) -> dict[str, int]:
        """The sizes that the table of `io.gla` names, E being V."""
        (K, E), H = self.head_sizes(width), self.key_heads
        return {"H": H, "G": self.num_heads // H, "K": K, "E": E, "R": self.gate_rank, "W": self.conv_size, "U": 1}

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> GLAWeights:
        """The weights, a `Spec` at every leaf."""
        (K, V), H, G = self.head_sizes(width), self.key_heads, self.num_heads // self.key_heads
        L, D, R, W = layers, width, self.gate_rank, self.conv_size

        def spec(lead: str | None, size: int, heads: tuple[int, ...], init: float | str) -> Spec:
            axes = ("layers", lead, "kv_heads") + (None,) * (len(heads) - 1)
            return Spec((L, size, *heads), axes, init, dtype, None if lead is None and size == W else (1, 1))

        conv = lambda *heads: spec(None, W, heads, W**-0.5) if W else None
        back = ("layers", "kv_heads", None, None, "embed")
        return GLAWeights(
            q=spec("embed", D, (H, G, K), D**-0.5), k=spec("embed", D, (H, K), D**-0.5),
            v=spec("embed", D, (H, V), D**-0.5),
            gate_down=Spec((L, D, R), ("layers", "embed", None), D**-0.5, dtype, (1, 1)),
            gate_up=Spec((L, R, H, K), ("layers", None, "kv_heads", None), R**-0.5, dtype, (1, 1)),
            gate_bias=Spec((L, H, K), ("layers", "kv_heads", None), "zeros", dtype),
            q_conv=conv(H, G, K), k_conv=conv(H, K), v_conv=conv(H, V),
            out_gate=spec("embed", D, (H, G, V), D**-0.5) if self.output_gate else None,
            head_norm=Spec((L, V), ("layers", None), "ones", dtype) if self.norm_weight else None,
            out=Spec((L, H, G, V, D), back, (H * G * V) ** -0.5 * branch, dtype, (1, 3)),
        )  # fmt: skip

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> GLAState:
        """The state before any token: zeros."""
        (K, V), H = self.head_sizes(width), self.key_heads
        tail = jnp.zeros((layers, batch, self.conv_size - 1, self._channels(width)), dtype) if self.conv_size else None
        return GLAState(jnp.zeros((layers, batch, H, K, V), jnp.float32), tail)

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> GLADelta:
        """The factors of `rows` rows: zeros."""
        (K, V), H = self.head_sizes(width), self.key_heads
        zeros = lambda *shape, dtype=dtype: jnp.zeros((layers, batch, rows, *shape), dtype)
        conv = zeros(self._channels(width)) if self.conv_size else None
        return GLADelta(zeros(H, K), zeros(H, V), zeros(H, K, dtype=jnp.float32), conv)

    def _channels(self, width: int) -> int:
        K, V = self.head_sizes(width)
        return self.num_heads * K + self.key_heads * (K + V)

    def axes(self, state: GLAState) -> GLAState:
        """The logical axes of the state: heads are split as their weights are."""
        tail = None if state.tail is None else ("layers", "batch", None, None)
        return GLAState(("layers", "batch", "kv_heads", None, None), tail)

    def forward(self, w: GLAWeights, x: Float[Array, "B T D"], facts: Facts) -> tuple[Float[Array, "B T D"], None]:
        """Whole sequences, as `implementation` says."""
        parts = self._projected(w, x)
        if self.conv_size:
            parts = self._parts(w, short_conv(_joined(parts), self._kernel(w), facts), x)
        q, k, v = parts
        o, _ = gla(
            q, k, v, self._gates(w, x), implementation=self.implementation, chunk=self.chunk, sub_chunk=self.sub_chunk,
            segment=facts.segment, valid=facts.valid,
        )  # fmt: skip
        return self._out(w, o, x), None

    def extend(
        self, w: GLAWeights, x: Float[Array, "B M D"], state: GLAState, call: Call, pending: GLADelta | None
    ) -> tuple[Float[Array, "B M D"], GLADelta]:
        """Rows on top of the state, chain or tree; the factors of all N rows."""
        parts, conv = self._projected(w, x), None
        if self.conv_size:
            conv = call.written(_joined(parts), None if pending is None else pending.conv)
            parts = self._parts(w, conv_rows(conv, self._kernel(w), state.tail, call, x.shape[1]), x)
        q, k, v = parts
        own = GLADelta(k, v, self._gates(w, x), None)
        delta = call.written(own, None if pending is None else pending.replace(conv=None))
        return self._out(w, self._read(q, own, delta, state.matrix, call), x), delta.replace(conv=conv)

    def _read(
        self, q: Float[Array, "B M Q K"], own: GLADelta, delta: GLADelta, matrix: Float[Array, "B H K V"], call: Call
    ) -> Float[Array, "B M Q V"]:
        """What the call's rows read. `own` are the factors of these M rows, `delta` those of all N."""
        B, N = delta.k.shape[:2]
        if call.see is None and N > PAIRS:  # a prompt: on top of the rows before it, as one sequence
            start = jnp.full(B, call.rows.start, jnp.int32)
            before = gla_commit(matrix, delta.k, delta.v, delta.g, None, start)
            return gla(
                q, own.k, own.v, own.g, before, implementation=self.implementation, chunk=self.chunk,
                sub_chunk=self.sub_chunk,
            )[0]  # fmt: skip
        see = jnp.broadcast_to(jnp.tri(N, dtype=bool)[None], (B, N, N)) if call.see is None else call.see
        return gla_rows(q, delta.k, delta.v, delta.g, matrix, see, start=call.rows.start)

    def commit(
        self,
        state: GLAState,
        delta: GLADelta,
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int32[Array, "B"],
    ) -> GLAState:
        """The matrices after the kept rows: one product of their factors; and the last inputs of the convolution."""
        kept = lambda matrix, k, v, g: gla_commit(matrix, k, v, g, path, count)
        matrix = jax.vmap(kept)(state.matrix, delta.k, delta.v, delta.g)
        return GLAState(matrix, None if state.tail is None else conv_commit(state.tail, delta.conv, path, count))

    # The pieces. Queries, keys and values are "B T heads size", and together "B T C" where they are convolved.

    def _projected(self, w: GLAWeights, x: Array) -> tuple[Array, Array, Array]:
        q = lora.product("btd,dhgk->bthgk", x, w.q)
        k, v = lora.product("btd,dhk->bthk", x, w.k), lora.product("btd,dhv->bthv", x, w.v)
        return q.reshape(*q.shape[:2], -1, q.shape[-1]), k, v

    def _kernel(self, w: GLAWeights) -> Float[Array, "W C"]:
        flat = lambda x: x.reshape(x.shape[0], -1)
        return jnp.concatenate([flat(w.q_conv), flat(w.k_conv), flat(w.v_conv)], axis=1)

    def _parts(self, w: GLAWeights, y: Float[Array, "B T C"], x: Array) -> tuple[Array, Array, Array]:
        """What the convolution found, after SiLU, as queries, keys and values in x's type."""
        y = jax.nn.silu(y).astype(x.dtype)
        K, V = w.k_conv.shape[-1], w.v_conv.shape[-1]
        queries, keys = self.num_heads * K, self.key_heads * K
        heads = lambda part, size: part.reshape(*part.shape[:2], -1, size)
        q, k, v = jnp.split(y, (queries, queries + keys), axis=-1)
        return heads(q, K), heads(k, K), heads(v, V)

    def _gates(self, w: GLAWeights, x: Array) -> Float[Array, "B T H K"]:
        """Logarithms of the decays, float32."""
        low = lora.product("btd,dr->btr", x, w.gate_down)
        raw = lora.product("btr,rhk->bthk", low, w.gate_up).astype(jnp.float32)
        g = jax.nn.log_sigmoid(raw + w.gate_bias.astype(jnp.float32)[None, None]) / self.gate_normaliser
        return g if self.clamp_min is None else jnp.maximum(g, self.clamp_min)

    def _out(self, w: GLAWeights, o: Float[Array, "B T Q V"], x: Array) -> Float[Array, "B T D"]:
        """The norm of every head, then the gate, then the way back."""
        weight = jnp.ones(o.shape[-1], jnp.float32) if w.head_norm is None else w.head_norm
        o = rms_norm(o.astype(jnp.float32), weight, self.norm_eps)
        heads = o.reshape(*o.shape[:2], self.key_heads, -1, o.shape[-1])
        if w.out_gate is not None:
            heads = heads * jax.nn.silu(lora.product("btd,dhgv->bthgv", x, w.out_gate).astype(jnp.float32))
        return lora.product("bthgv,hgvd->btd", heads.astype(x.dtype), w.out)


def _joined(parts: tuple[Array, ...]) -> Float[Array, "B T C"]:
    """Queries, keys and values as channels."""
    return jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in parts], axis=-1)
