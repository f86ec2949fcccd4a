"""The seams of both engines: what a drafter, an accept rule, an unmasking rule, a cache policy and a method are.

Each is a small base class. Its attributes are facts that an engine asks for, with the value that holds where a subclass
says nothing; its methods are what an engine calls. Subclasses are pytrees (`struct.dataclass`): numbers and weights are
leaves, everything else is structure. A method file imports its seam and nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.types import DecodeState, Denoiser, Model, Prompt, Sampling, Scored, Tree, Verdict

NONE: Mapping[str, Any] = MappingProxyType({})


class Part:
    """A part of a method: what fills one slot of an engine (`system.SLOTS`)."""

    slot: ClassVar[str]


class Drafter(Part):
    """Where drafts come from, in the prefix engine. `params` is the whole dict, of which a drafter reads its own entry.

    Heads that borrow the target's vocabulary head also need `target.unembed(params) -> "V D"`, which a table has not.
    """

    slot = "draft"
    depth: int
    """The longest accepted path below the root."""
    span: int
    """The deepest node, auxiliary ones included: how far noise is needed."""
    nodes: int
    """N, the nodes of a tree."""
    taps: tuple[int, ...] = ()
    """Layers of the target whose residual stream `observe` reads."""
    widths: tuple[int, ...] = ()
    """Numbers of nodes below N, rising: a call is as narrow as the longest valid draft of its step allows."""
    calls: int = 0
    """Calls of a draft model in a step."""
    models: Mapping[str, Model] = NONE
    """The models that it runs, by the names of their weights in `params`."""
    chain: bool = False
    """Whether it drafts one chain, never a tree."""

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        """The carry of an empty batch. `slots` is the canvas length S."""
        return ()

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        """A tree under each row's last token, and scratch that only this step's `observe` will see."""
        raise NotImplementedError

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        """The next carry; `state` is the one before the commit. Rows with `verdict.count == 0` must stay as they are.

        Without a `tree` it is a chunk of the prompt, whose "verdict" is the prompt's own next tokens.
        """
        return state.carry


class ChainDrafter(Drafter):
    """A drafter of one chain, which only says how long it is."""

    chain = True

    @property
    def span(self) -> int:
        return self.depth

    @property
    def nodes(self) -> int:
        return self.depth + 1


class Accept(Part):
    """Which drafted nodes are kept, in the prefix engine."""

    slot = "accept"
    needs_logits: bool = False
    """Whether it reads the target's logits, and not its choices alone."""
    chains: bool = False
    """Whether it can judge chains alone."""
    own_noise: bool = False
    """Whether a draft model should draw with noise of its own, and hand its law on."""

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        """The longest accepted path from the root, before end-of-text and limits are applied."""
        raise NotImplementedError


@struct.dataclass
class Choice:
    """What a select rule decides: positions to commit, committed ones to mask again, and its next carry.

    `token`, if given, is written instead of the proposal; where a position is committed already, that is an edit.
    `noise`, if given, is what the next call is shown at positions of the block that stay masked.
    """

    accept: Bool[Array, "B W"]
    carry: PyTree = ()
    remask: Bool[Array, "B W"] | None = None
    token: Int32[Array, "B W"] | None = None
    noise: Int32[Array, "B W"] | None = None


class Select(Part):
    """Which eligible positions a call of the canvas engine commits. A rule that wraps another hands its facts on."""

    slot = "select"
    reads: int = 0
    """The only block length that it can judge; 0: any."""
    shadows: bool = False
    """Whether it reads `View.shadow`."""
    revocable: bool = False
    """Whether it may mask committed positions again."""
    idles: bool = False
    """Whether it may commit nothing in a call and end all the same: each block after its own number of calls."""
    temper_confidence: bool = False
    """Whether its published code judges by the law after temperature and filters."""
    remembers: bool = False
    """Whether what it keeps of a position counts in later blocks too, where the model sees the whole canvas."""

    noisy: bool = False
    """Whether masked positions show noise, which `noise` draws, and not a mask token."""
    heated: bool = False
    """Whether a model that conditions itself hears of its logits divided by `heat`."""

    def noise(self, key: jax.Array, position: Int[Array, "B M"], vocab: int) -> Int32[Array, "B M"]:
        """The tokens that masked positions begin with, of a rule that is `noisy`."""
        raise NotImplementedError

    def heat(self, carry: PyTree, fresh: Bool[Array, "B"]) -> Float[Array, "B"]:
        """What the logits of the next call are divided by, of a rule that is `heated`."""
        raise NotImplementedError

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Its carry before the first call."""
        return ()

    def __call__(self, view: Any, carry: PyTree) -> Choice:
        """The choice of one call; `view` is a `decode.view.View`."""
        raise NotImplementedError

    def most_calls(self, positions: int, blocks: int) -> int:
        """The budget: how many calls a row of so many open positions in so many blocks takes at most."""
        return positions


class SelectAround(Select):
    """A select rule around another one, `rule`, that says of itself what that one says."""

    rule: Select

    @property
    def reads(self) -> int:
        return self.rule.reads

    @property
    def shadows(self) -> bool:
        return self.rule.shadows

    @property
    def revocable(self) -> bool:
        return self.rule.revocable

    @property
    def idles(self) -> bool:
        return self.rule.idles

    @property
    def temper_confidence(self) -> bool:
        return self.rule.temper_confidence

    @property
    def remembers(self) -> bool:
        return self.rule.remembers

    @property
    def noisy(self) -> bool:
        return self.rule.noisy

    @property
    def heated(self) -> bool:
        return self.rule.heated

    def noise(self, key: jax.Array, position: Int[Array, "B M"], vocab: int) -> Int32[Array, "B M"]:
        return self.rule.noise(key, position, vocab)

    def heat(self, carry: PyTree, fresh: Bool[Array, "B"]) -> Float[Array, "B"]:
        return self.rule.heat(carry, fresh)

    def most_calls(self, positions: int, blocks: int) -> int:
        return self.rule.most_calls(positions, blocks)


FACTS = tuple(Select.__annotations__)
"""The facts of a select rule by name."""


class Rewrite(Part):
    """Changes logits before anything is chosen."""

    slot = "rewrite"

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Its carry before the first call."""
        return ()

    def __call__(self, view: Any, carry: PyTree) -> tuple[Float[Array, "B W V"], PyTree]:
        """The logits that count, and the next carry."""
        raise NotImplementedError


class Region(Part):
    """Where a block ends that begins at `view.block_start`; asked at its first call, with the logits as the model gave
    them."""

    slot = "region"
    reach: int = 0
    """Positions from the block's start that it may take, or reads; 0: the whole canvas."""
    fixed: bool = False
    """Whether all of its blocks are `reach` long, but for those that a limit or a prompt cuts."""

    def __call__(self, view: Any) -> Int[Array, "B"]:
        """The first position behind the block, in each row."""
        raise NotImplementedError


class Stop(Part):
    """Which rows commit every masked position with this call's tokens. Needs the whole canvas in the window."""

    slot = "stop"

    def __call__(self, view: Any) -> Bool[Array, "B"]:
        raise NotImplementedError


class Cut(Part):
    """Where a row's text will end, given what this call commits; only ever earlier than before."""

    slot = "cut"

    def __call__(self, view: Any, accept: Bool[Array, "B W"]) -> Int[Array, "B"]:
        raise NotImplementedError


@struct.dataclass
class Reply:
    """What a call says of W positions from the block's start on: row w predicts `position[w]`, whatever the model's
    alignment."""

    logits: Float[Array, "B W V"]
    position: Int32[Array, "B W"]
    shadow: Float[Array, "B W V"] | None = None
    told: Float[Array, "B W D"] | None = None  # of a model that conditions itself: what the next call hears of it


class CallCost(NamedTuple):
    """Rows computed for each row of the batch, and whether the call was an opening one for it."""

    queries: Int32[Array, "B"]
    refreshed: Bool[Array, "B"]


class CachePolicy:
    """What a call of the canvas engine recomputes and what it reads from a cache. Static: a frozen dataclass."""

    name: str
    keeps: bool = False
    """Whether anything is kept, so that calls see a part of the canvas only."""

    def init(self, target: Denoiser, batch: int, slots: int) -> PyTree:
        """An empty cache."""
        raise NotImplementedError

    def prefill(self, target: Denoiser, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """The state after what of the prompt can be kept for good was read, `chunk` tokens a call."""
        return state

    def call(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, shadows: bool
    ) -> tuple[Reply, PyTree, Bool[Array, "B"], CallCost]:
        """The reply, the cache after it, the rows that took part, and what it cost."""
        raise NotImplementedError

    def width(self, target: Denoiser, state: DecodeState, window: int) -> Int32[Array, ""]:
        """Which of the widths of a call that stores nothing is enough for this state."""
        raise NotImplementedError

    def peek(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, live: Bool[Array, "B"],
        width: Int[Array, ""],
    ) -> tuple[Reply, Int32[Array, "B"]]:  # fmt: skip
        """A call that stores nothing, for blocks that are open already, and its cost in rows. Rows that are not `live`
        may read none of the cache."""
        raise NotImplementedError

    def check(self, target: Denoiser, region: Region) -> str | None:
        """Why this policy cannot serve a model or a region, or None."""
        return None


class Method:
    """A way to decode: how a state starts, how a prompt is read, and one step. `decode.run` and `stream` drive it."""

    kind: str
    """Its engine: "prefix" or "canvas"."""
    name: str = ""
    """What results call it; empty: what its row says."""
    target: Any
    """The model whose text it decodes."""
    eos: Int[Array, "E"]
    """Token ids that end a text."""
    models: Mapping[str, Model] = NONE
    """The models whose weights a step reads and that may be laid out for it, by the names of their weights."""
    parts: Mapping[str, Part] = NONE
    """What it is put together of and promises by, by slot: of the prefix engine the drafter and the accept rule."""
    drafts: int = 1
    """How many canvases of a row a call reads, one beside the other."""

    def init(
        self, params: PyTree, prompt: Prompt, limit: Int[Array, "B"], key: jax.Array, sampling: Sampling, slots: int
    ) -> DecodeState:
        """The state before any call: `slots` is the canvas length S, `limit` the text length at which a row stops."""
        raise NotImplementedError

    def prefill(self, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """The state after the prompt was read, `chunk` tokens a call."""
        raise NotImplementedError

    def step(self, params: PyTree, state: DecodeState) -> DecodeState:
        """The state after one step of every row that is not done."""
        raise NotImplementedError
