"""The vocabulary of paradec: every type that crosses a file border, and the letters of its sizes.

| letter | size |
| --- | --- |
| B | rows of a batch |
| S | slots of the token canvas (prompt + generated + padding) |
| T | tokens of one training or prefill call |
| M | rows of one `extend` call |
| N | nodes of a draft tree (layers, inside model files, are `L`) |
| P | longest path through a tree: draft depth + 1 |
| W | positions of a canvas that one call predicts |
| V, D, H, K, F | vocabulary, width, heads, head size, MLP width |

Structure is static and compared by value; numbers are leaves. Everything here is a pytree, and everything decided at
run time is a mask or a length, so shapes never depend on data.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct

OPEN = np.int32(np.iinfo(np.int32).max)
"""`committed_at` of a position that is not decided yet: the largest int32, so "committed by call t" is a comparison."""


class Spec(NamedTuple):
    """One leaf of an abstract parameter tree: what `paradec.params` needs to make, shard, restore and count it.

    `axes` names each dimension logically ("vocab", "embed", "kv_heads", "mlp", …; None is never sharded).
    `init` is a scale: the standard deviation of a normal draw, or "ones" or "zeros". `dense` is set where the leaf is a
    stack of matrices: how many dimensions stack them, and how many after those are one side of the matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: float | str = 0.02
    dtype: Any = np.float32
    dense: tuple[int, int] | None = None


@struct.dataclass
class Output:
    """What one model call yields for its M rows. Leaves that nobody reads cost nothing under jit."""

    logits: Float[Array, "B M V"]  # of the token after each row
    hidden: Float[Array, "B M D"]  # after the final norm: what the vocabulary head reads
    taps: tuple[Float[Array, "B M D"], ...] = ()  # residual stream after the layers that were asked for
    info: PyTree | None = None  # of a model that solves for its states: what its solver says, an entry a layer


@struct.dataclass
class Place:
    """Where the rows of an `extend` stand on a canvas, whose cache slots are positions.

    A row sees keys at positions below `sees`: of the call's fresh rows, and of the cache where no fresh row stands.
    A shadow stands beside the canvas: no canvas row sees it, and it sees neither the row nor the slot at its own
    position. A row that is not `fresh` only asks; its keys are those the cache has.

    Of a model with a causal cache, rows before `block_start` belong to the causal pass, whose keys are kept, and each
    sees no position behind its own; those from there on are the open block.
    """

    position: Int[Array, "B M"]
    sees: Int[Array, "B M"]
    fresh: Bool[Array, "B M"]
    shadow: Bool[Array, "B M"] | None = None
    block_start: Int[Array, "B"] | None = None  # where the open block begins; only of a model with a causal cache

    @property
    def causal(self) -> Bool[Array, "B M"]:
        """Which rows belong to the causal pass; none where the model has no such pass."""
        if self.block_start is None:
            return jnp.zeros(self.position.shape, bool)
        return self.position < self.block_start[:, None]


@struct.dataclass
class Rows:
    """What an `extend` is asked to compute: M rows, of a delta that holds N >= M rows.

    A row's position is `cache.length + depth`; its slot in the delta is `start + index`. `parent` covers all N rows of
    the delta (earlier pending ones too): a row sees the cache, its ancestors and itself. A row that is its own parent
    hangs directly on the cache. `parent=None` is a chain: row i sees pending rows and rows 0..i.

    With `place` the rows stand on a canvas instead; depth, parent and start say nothing then. `read` names the rows
    whose output is wanted, so that a vocabulary head is not applied to the others.
    """

    token: Int[Array, "B M"]
    depth: Int[Array, "B M"]
    parent: Int[Array, "B N"] | None = None
    embed: Float[Array, "B M D"] | None = None  # takes the place of the token's embedding where `aux`
    aux: Bool[Array, "B M"] | None = None
    start: Int[Array, ""] | int = 0
    place: Place | None = None
    read: Int[Array, "B R"] | None = None  # None: all
    condition: Float[Array, "B M D"] | None = None  # `Denoiser.soften` of the call before; None: 0

    @classmethod
    def canvas(
        cls,
        token: Int[Array, "B M"],
        place: Place,
        read: Int[Array, "B R"] | None = None,
        condition: Float[Array, "B M D"] | None = None,
    ) -> Rows:
        """Rows on a canvas, masks and committed tokens alike."""
        return cls(token=token, depth=place.position, place=place, read=read, condition=condition)

    @classmethod
    def chain(cls, token: Int[Array, "B M"]) -> Rows:
        """Rows that continue the cached text one after the other."""
        depth = jax.lax.broadcasted_iota(np.int32, token.shape, 1)
        return cls(token=token, depth=depth)


@struct.dataclass
class Tree:
    """A rooted draft. Node 0 is the last committed token (certain, not yet in the cache); parents precede children.

    Root and unused nodes are their own parent. `walk=False` marks auxiliary nodes (lookahead window, prompt tokens):
    they are computed but never accepted. Siblings carry distinct tokens.
    """

    token: Int[Array, "B N"]
    parent: Int[Array, "B N"]
    depth: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    walk: Bool[Array, "B N"]
    embed: Float[Array, "B N D"] | None = None  # read where `~walk`, if given
    logq: Float[Array, "B N V"] | None = None  # log law each node was drawn from; None means a deterministic draft


@struct.dataclass
class Scored:
    """The target's view of a tree: its own next token after every node, and what the rules and drafters may read."""

    choice: Int32[Array, "B N"]
    logits: Float[Array, "B N V"] | None  # penalised, before temperature; only where the accept rule asks for them
    hidden: Float[Array, "B N D"] | None
    taps: tuple[Float[Array, "B N D"], ...] = ()
    raw: Float[Array, "B N V"] | None = None  # as the model gave them; only where log-probabilities are noted


@struct.dataclass
class Verdict:
    """What a verification keeps: nodes `path[:count]` go to the cache, tokens `token[:count]` to the text.

    `path[0]` is the root. `token[i]` is the text's token after node `path[i]`: the drafted child that was accepted,
    or, last, the target's own. `count` is 0 for finished rows and already cut by end-of-text and limit.
    """

    path: Int32[Array, "B P"]
    token: Int32[Array, "B P"]
    count: Int32[Array, "B"]


@struct.dataclass
class Sampling:
    """How a row turns logits into a token; one value per row, so rows of a batch may differ and no value retraces.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition` 1 switch each transform off.
    """

    temperature: Float[Array, "B"]
    top_k: Int32[Array, "B"]
    top_p: Float[Array, "B"]
    min_p: Float[Array, "B"]
    repetition: Float[Array, "B"]


@struct.dataclass
class Stats:
    """Cost of a decode, counted per row. Depth d of `offered`/`accepted` is index d - 1."""

    offered: Int32[Array, "B P"]  # calls in which the draft reached depth d
    accepted: Int32[Array, "B P"]  # calls in which the token at depth d was kept
    queries: Int32[Array, "B"]  # target rows computed for this row, prompt excluded
    drafts: Int32[Array, "B"]  # calls of a draft model
    refreshes: Int32[Array, "B"]  # calls that recomputed what a cache held


@struct.dataclass
class Logprobs:
    """Natural logarithms of probabilities, of every committed token and of the K likeliest in its place.

    They are the model's own, before penalty, temperature and filters, as it gave them in the call that committed the
    token. Of an autoregressive model that is its law given the text before; of a denoiser, given the canvas that the
    call read, among the tokens that may be written.
    """

    token: Float[Array, "B S"]
    best: Int32[Array, "B S K"]  # token ids, the likeliest first
    value: Float[Array, "B S K"]  # theirs


@struct.dataclass
class DecodeState:
    """The whole state of a decode, and its trace.

    `tokens[b, :length[b]]` is text. `committed_at[b, s]` is the number of the row's own model call that committed
    position s: 0 for the prompt, `OPEN` while undecided. The cache covers `length - 1` tokens: the last committed
    token is always the first input of the next call.
    """

    tokens: Int32[Array, "B S"]
    committed_at: Int32[Array, "B S"]
    prompt: Int32[Array, "B"]  # length of the prompt
    length: Int32[Array, "B"]
    limit: Int32[Array, "B"]  # length at which the row stops
    calls: Int32[Array, "B"]  # target calls in which the row took part
    done: Bool[Array, "B"]
    key: jax.Array  # "B" threefry keys; folded with position and purpose, never consumed
    sampling: Sampling
    cache: PyTree
    carry: PyTree  # the method's own
    stats: Stats
    logprobs: Logprobs | None = None  # noted where there is room for them (`decode.logprobs`)


@struct.dataclass
class TextBatch:
    """Rows of training text. `learn[b, t]` says whether token t is a target; `segment` separates packed documents."""

    token: Int32[Array, "B T"]
    learn: Bool[Array, "B T"]
    segment: Int32[Array, "B T"] | None = None
    position: Int32[Array, "B T"] | None = None


@struct.dataclass
class Prompt:
    """Token ids of a ragged batch, padded on the right with any id; `length` alone says what is text."""

    token: Int32[Array, "B T"]
    length: Int32[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers that formulas need. Those of attention are 0 in a model without it."""

    vocab_size: int
    width: int = 0  # of `Output.hidden`, which the vocabulary head reads; 0: not said
    num_layers: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0  # of the MLP that all tokens pass in the last layer stack; 0: none, or experts alone
    dtype: str = "float32"  # of weights, activations and cache

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head; 0 without attention."""
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0


@dataclasses.dataclass(frozen=True)
class Stacks:
    """What the fields of a model's parameter tree are, by their names.

    `layers` are the subtrees whose leaves lead with a layer axis, each with its number of layers; where one runs after
    the other, in that order. `lookup` are tables of which a token reads one row: no matrix product reads them. `norm`
    is the norm before the vocabulary head.
    """

    layers: tuple[tuple[str, int], ...] = ()
    lookup: tuple[str, ...] = ()
    norm: str | None = None


class Model:
    """An architecture that continues a text: a frozen dataclass, registered static and compared by value, whose methods
    are functions of a parameter tree. Its attributes are facts with the value that holds where a model says nothing; a
    field of that name without a default is written `max_length: int = dataclasses.field()`."""

    vocab_size: int
    kinds: tuple[str, ...] = ("prefix",)
    """The engines that can decode it, the usual one first: "prefix", "canvas"."""
    max_length: int | None = None
    """Tokens of a text at most; None: no limit of its own."""
    dtype: str = "float32"
    """In which it computes."""
    usual: str = ""
    """The method that it was published with, where plain decoding of its engine says nothing to it."""
    lays_out: bool = False
    """Whether it has `laid_out(weights)`, which gives the weights as the steps of a decode on one CPU want them."""

    def specs(self) -> PyTree:
        """The parameter tree, with a `Spec` at every leaf."""
        raise NotImplementedError

    def sizes(self) -> Sizes:
        """The numbers that formulas need."""
        return Sizes(self.vocab_size, dtype=self.dtype)

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are. The default says nothing of them."""
        return Stacks()

    def first_layers(self, count: int) -> Model:
        """The structure of the first `count` layers alone, of a model with one stack of layers."""
        return dataclasses.replace(cast(Any, self), num_layers=count)

    def forward(self, params: PyTree, token: Int[Array, "B T"], **facts: Any) -> Output:
        """The training pass over whole sequences, and the truth every law compares with."""
        raise NotImplementedError

    def init_cache(self, batch: int, slots: int) -> PyTree:
        """An empty cache (with `.length`, zeros "B") with room for at least `slots` tokens a row."""
        raise NotImplementedError

    def init_delta(self, batch: int, rows: int) -> PyTree:
        """An empty delta of `rows` rows, to be filled by several `extend` calls."""
        raise NotImplementedError

    def extend(
        self,
        params: PyTree,
        cache: PyTree,
        rows: Rows,
        pending: PyTree | None = None,
        taps: tuple[int, ...] = (),
        live: Bool[Array, "B"] | None = None,
    ) -> tuple[Output, PyTree]:
        """Read the cache, compute `rows`, and return the delta that `commit` may write. Rows not `live` are junk."""
        raise NotImplementedError

    def commit(self, cache: PyTree, delta: PyTree, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> PyTree:
        """Append delta rows `path[:count]` (None: 0, 1, 2, …) to the cache. A count of 0 changes nothing.

        What counts has room in the cache. The rest of the path may be longer than what is left.
        """
        raise NotImplementedError


class Denoiser:
    """A model that predicts every position of a canvas at once, from what is committed on both sides of it. Static as a
    `Model` is.

    With `shift` the row at position p predicts position p + 1. Tokens at masked positions are `mask_id`; None: whatever
    stands there (noise).
    """

    vocab_size: int
    mask_id: int | None
    kinds: tuple[str, ...] = ("canvas",)
    """The engines that can decode it, as of a `Model`."""
    max_length: int | None = None
    """Positions of a canvas at most; None: no limit of its own."""
    dtype: str = "float32"
    """In which it computes."""
    block: int = 0
    """A position sees its own block of so many and those before; 0: the whole canvas."""
    grid: str = "prompt"
    """Where blocks are counted from: "text" (position 0) or "prompt" (its end)."""
    shift: bool = False
    shadow_rows: bool = False
    """Whether `extend` computes rows of `Place.shadow`."""
    usual: str = ""
    """The rule that it was published with, where plain decoding of its engine says nothing to it."""
    causal_cache: bool = False
    """Whether text before the open block is read causally: see `canvas_cache.CausalCache`."""
    conditioned: int = 0
    """Width of what a call is told of the one before it, by `soften`; 0: nothing."""

    def sizes(self) -> Sizes:
        """The numbers that formulas need."""
        return Sizes(self.vocab_size, dtype=self.dtype)

    def stacks(self) -> Stacks:
        """What the fields of the parameter tree are. The default says nothing of them."""
        return Stacks()

    def init_cache(self, batch: int, slots: int) -> PyTree:
        """An empty cache with `.length`; `slots` 0: none is kept."""
        raise NotImplementedError

    def extend(
        self, params: PyTree, cache: PyTree, rows: Rows, *, live: Bool[Array, "B"] | None = None
    ) -> tuple[Output, PyTree]:
        """The output of `rows.read`, and the delta of all rows. `live`: rows that read the cache at all."""
        raise NotImplementedError

    def store(
        self, cache: PyTree, delta: PyTree, start: Int[Array, "B"], count: Int[Array, "B"], length: Int[Array, "B"]
    ) -> PyTree:
        """The cache with delta rows `:count` at slots `start` on, of which the first `length` are in use then."""
        raise NotImplementedError
