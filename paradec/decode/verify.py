"""Which drafted nodes are kept. One walk serves chains and trees; each rule is a small pytree.

Exactness rests on one fact: for a draft that is a function of the past, sampling *once* from the target's law at each
node and following the child that equals the sample is identical in law to sequential rejection, and, because noise is
keyed by position, identical token for token to plain decoding. Greedy is its temperature-0 case.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped

from paradec import struct
from paradec.decode.sampling import ACCEPT, RESIDUAL, gumbel, uniform, warp
from paradec.decode.seams import Accept
from paradec.ops.argmax import argmax
from paradec.ops.mask import ancestors
from paradec.system import ExactTo, System
from paradec.types import DecodeState, Scored, Tree, Verdict


def at_path(x: Shaped[Array, "B N"], path: Int[Array, "B P"]) -> Shaped[Array, "B P"]:
    """`x` of every node along a path."""
    return jnp.take_along_axis(x, path, axis=1)


@struct.dataclass
class Match(Accept):
    """Keep the child that equals the target's own token: exact for greedy and, token for token, for sampling.

    Example: node 0 has the children 1 (x) and 2 (y), node 2 the child 3 (z). Choices after the nodes are (y, u, z, w).
    At depth 1 the child of 0 that is y is node 2, at depth 2 the child of 2 that is z is node 3: path (0, 2, 3), tokens
    (y, z, w). Were the choice after node 2 a v, the walk would end there: path (0, 2), tokens (y, v).
    """

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        B, N = tree.token.shape
        index = lax.broadcasted_iota(jnp.int32, (B, N), 1)
        usable = tree.valid & tree.walk

        def down(d: Array | int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            path, count, here, alive = carry
            wanted = at_path(scored.choice, here[:, None])
            # A root is its own parent, so a child must also come after its parent.
            hit = usable & (tree.parent == here[:, None]) & (index > here[:, None]) & (tree.token == wanted)
            alive = alive & hit.any(-1)
            here = jnp.where(alive, jnp.argmax(hit, -1).astype(jnp.int32), here)
            return path.at[:, d].set(here), count + alive.astype(jnp.int32), here, alive

        zero = jnp.zeros(B, jnp.int32)
        start = (jnp.zeros((B, depth + 1), jnp.int32), zero + 1, zero, jnp.ones(B, bool))
        path, count, _, _ = lax.fori_loop(1, depth + 1, down, start)
        return Verdict(path=path, token=at_path(scored.choice, path), count=count)


@struct.dataclass
class Rejection(Accept):
    """Speculative sampling by rejection, for chains: exact in law for drafts drawn from `tree.logq`.

    Accept drafted x with probability min(1, p(x)/q(x)); at the first refusal draw from max(p - q, 0), renormalised;
    after a full chain draw from p. A chain without `logq` is deterministic: q is one-hot. Temperature 0 is greedy.
    Uses the ACCEPT and RESIDUAL noise of the positions. Source: 2211.17192 algorithm 1, 2302.01318 algorithm 2.
    """

    needs_logits = True
    chains = True
    own_noise = True

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        B, N = tree.token.shape
        logp = jax.nn.log_softmax(warp(scored.logits, state.sampling), axis=-1)  # row i: law of the token after node i
        V = logp.shape[-1]
        logq = tree.logq if tree.logq is not None else _onehot(tree.token, V)
        child, childq = tree.token[:, 1:], logq[:, 1:]
        # Log probabilities of child i + 1 under node i, the target's and the draft's; u q < p is u < p / q.
        p = jnp.take_along_axis(logp[:, :-1], child[:, :, None], axis=-1)[..., 0]
        q = jnp.take_along_axis(childq, child[:, :, None], axis=-1)[..., 0]
        position = state.length[:, None] + lax.iota(jnp.int32, N)[None]
        u = uniform(state.key, position[:, :-1], ACCEPT)
        accept = (u * jnp.exp(q) < jnp.exp(p)) & tree.valid[:, 1:] & tree.walk[:, 1:]
        # The leading accepted ones: (1, 1, 0, 1) keeps 2.
        kept = jnp.sum(jnp.cumprod(accept, axis=-1), axis=-1).astype(jnp.int32)

        # The law of the last token: p behind the last kept node, less the draft's q if its draft there was refused.
        last = kept[:, None, None]
        law = jnp.exp(jnp.take_along_axis(logp, last, axis=1)[:, 0])
        offered = jnp.pad(tree.valid[:, 1:] & tree.walk[:, 1:], ((0, 0), (0, 1)))
        refused = at_path(offered, kept[:, None])  # a real draft stood there, and was refused
        used = jnp.exp(jnp.take_along_axis(jnp.pad(childq, ((0, 0), (0, 1), (0, 0))), last, axis=1)[:, 0])
        rest = jnp.maximum(law - jnp.where(refused, used, 0.0), 0.0)
        # p == q up to rounding leaves nothing: the refusal was rounding too, so draw from p.
        rest = jnp.where(rest.sum(-1, keepdims=True) > 1e-9, rest, law)
        noise = gumbel(state.key, at_path(position, kept[:, None]), V, RESIDUAL)[:, 0]
        final = argmax(jnp.log(rest) + noise)

        path = lax.broadcasted_iota(jnp.int32, (B, depth + 1), 1)
        token = jnp.where(path < kept[:, None], jnp.pad(child, ((0, 0), (0, 1))), final[:, None])
        return Verdict(path=path, token=token, count=kept + 1)


@struct.dataclass
class Typical(Accept):
    """Keep the longest path of plausible tokens: lossy above temperature 0, where it equals `Match`.

    A drafted x under node n passes where p(x) > min(epsilon, delta * exp(-entropy(p))), p the target's warped law at n.
    The deepest node whose whole path passes wins (the first drafted one of equals). Source: Medusa (2401.10774) eq. 1.
    """

    needs_logits = True

    epsilon: Float[Array, ""]
    delta: Float[Array, ""]

    @classmethod
    def of(cls, epsilon: float = 0.09, delta: float = 0.3) -> Typical:
        """The rule with the published thresholds."""
        return cls(epsilon=jnp.float32(epsilon), delta=jnp.float32(delta))

    def __call__(self, tree: Tree, scored: Scored, state: DecodeState, depth: int) -> Verdict:
        logp = jax.nn.log_softmax(warp(scored.logits, state.sampling), axis=-1)
        entropy = -jnp.sum(jnp.where(jnp.isfinite(logp), jnp.exp(logp) * logp, 0.0), axis=-1)
        threshold = jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))
        # A node's token is judged by the law at its parent.
        mine = jnp.take_along_axis(logp, tree.parent[:, :, None], axis=1)
        p = jnp.exp(jnp.take_along_axis(mine, tree.token[:, :, None], axis=2)[..., 0])
        root = lax.broadcasted_iota(jnp.int32, tree.token.shape, 1) == 0
        passes = root | (tree.valid & tree.walk & (p > at_path(threshold, tree.parent)))
        # A node's path counts where all that the node sees (its ancestors and itself) pass, and node 0 is among them.
        see = ancestors(tree.parent)
        alive = jnp.all(passes[:, None] | ~see, axis=-1) & see[:, :, 0]
        end = jnp.argmax(jnp.where(alive, tree.depth, -1), axis=-1).astype(jnp.int32)[:, None]
        return _path_to(tree, scored, see, end, depth)


def _path_to(tree: Tree, scored: Scored, see: Bool[Array, "B N N"], end: Int[Array, "B 1"], depth: int) -> Verdict:
    """The verdict that keeps every node from the root down to `end`.

    The nodes that `end` sees are its ancestors and itself, one at every depth up to its own: `path[d]` is the one at
    depth d. Tokens are the drafted ones of path[1:], and last the target's own after `end`.
    """
    on = jnp.take_along_axis(see, end[:, :, None], axis=1)[:, 0]
    level = lax.iota(jnp.int32, depth + 1)
    here = on[:, None] & (tree.depth[:, None] == level[None, :, None])
    path = jnp.where(here.any(-1), jnp.argmax(here, axis=-1).astype(jnp.int32), end)
    kept = at_path(tree.depth, end)
    drafted = jnp.pad(at_path(tree.token, path)[:, 1:], ((0, 0), (0, 1)))
    token = jnp.where(level[None] < kept, drafted, at_path(scored.choice, end))
    return Verdict(path=path, token=token, count=kept[:, 0] + 1)


def _onehot(token: Int[Array, "B N"], vocab: int) -> Float[Array, "B N V"]:
    return jnp.where(token[..., None] == lax.iota(jnp.int32, vocab)[None, None], 0.0, -jnp.inf)


def cut(verdict: Verdict, state: DecodeState, eos: Int[Array, "E"]) -> tuple[Verdict, Bool[Array, "B"]]:
    """The verdict shortened to end-of-text, limit and finished rows, and which rows are done after it.

    End-of-text counts only where it is committed; the token itself stays in the text. Tokens (x, end, y) with count 3
    and room for 5 more give count 2, and the row is done; with room for 1, count 1, and it is done by its limit.
    """
    i = lax.iota(jnp.int32, verdict.token.shape[1])[None]
    count: Int32[Array, "B"] = jnp.minimum(verdict.count, state.limit - state.length)
    end = (verdict.token[:, :, None] == eos[None, None]).any(-1) & (i < count[:, None])
    ended = end.any(-1)
    count = jnp.where(ended, jnp.argmax(end, axis=-1).astype(jnp.int32) + 1, count)
    count = jnp.where(state.done, 0, count)
    return verdict.replace(count=count), state.done | ended | (state.length + count >= state.limit)


SYSTEMS = (
    System(
        name="match", title="Verification by equality", slot="accept", family="accept", make=Match,
        exact_to=ExactTo("ar", "ar"), laws=("exact", "rows", "loops", "law"),
        cost="None.", proof="pytest tests/decode/test_rules.py -k match",
    ),
    System(
        name="rejection", title="Speculative sampling by rejection", slot="accept", arxiv="2211.17192",
        family="accept", make=Rejection, exact_to=ExactTo("ar", None), laws=("greedy", "rows", "loops", "law"),
        cost="The target's law and the draft's at every node.", proof="pytest tests/decode/test_rules.py -k rejection",
    ),
    System(
        name="typical", title="Typical acceptance", slot="accept", arxiv="2401.10774", family="accept",
        make=Typical.of, exact_to=ExactTo("ar", None), laws=("greedy", "rows", "loops"),
        meanings={
            "epsilon": "a probability that is always enough",
            "delta": "share of exp(-entropy) that is enough where the law is flat",
        },
        cost="The target's law and its entropy at every node.", proof="pytest tests/decode/test_rules.py -k typical",
    ),
)  # fmt: skip
