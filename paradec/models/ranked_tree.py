"""Trees of ranked guesses: which guesses of which head a draft combines, chosen from how often each is right."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

Path = tuple[int, ...]
"""A node of a ranked tree: which guess of head 0, then of head 1, and so on, each counted from 0."""


def ranked(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parents, depths and ranks of the nodes of a ranked tree, its root first: all int32 "N".

    Paths keep their order, which must put parents before children (as `best_first` does, or sorting by length).
    Raises `ValueError` for a path whose parent is missing or comes later, an empty or repeated one.
    """
    node, parent, rank = {(): 0}, [0], [0]
    for path in paths:
        if not path or path in node or path[:-1] not in node:
            raise ValueError(f"Path {path} of the tree is empty, repeated, or stands before its parent {path[:-1]}.")
        parent.append(node[path[:-1]])
        rank.append(path[-1])
        node[path] = len(node)
    depth = [0, *(len(path) for path in paths)]
    return np.asarray(parent, np.int32), np.asarray(depth, np.int32), np.asarray(rank, np.int32)


def best_first(accuracy: np.ndarray, nodes: int) -> tuple[Path, ...]:
    """The ranked tree of `nodes` nodes that commits most tokens, if heads are right independently of each other.

    `accuracy[k, r]` is how often guess r of head k is right, falling in r. A node is worth the product along its path;
    the tree grows by its best open node, so the first n paths are the best tree of n nodes. Source: Medusa, 2401.10774,
    section 3.3. Fewer nodes come back where the guesses run out or are worth nothing.
    """
    heads, ranks = accuracy.shape
    open_, paths = [(-float(accuracy[0, 0]), (0,))], []
    while open_ and len(paths) < nodes:
        worth, path = heapq.heappop(open_)
        if not worth:
            break
        paths.append(path)
        above, k, r = worth / accuracy[len(path) - 1, path[-1]], len(path), path[-1]
        if r + 1 < ranks:
            heapq.heappush(open_, (float(above * accuracy[k - 1, r + 1]), (*path[:-1], r + 1)))
        if k < heads:
            heapq.heappush(open_, (float(worth * accuracy[k, 0]), (*path, 0)))
    return tuple(paths)


def expected(accuracy: np.ndarray, paths: Sequence[Path]) -> float:
    """Tokens per call that a ranked tree should commit: 1 + the sum over its nodes of the product of accuracies."""
    return 1.0 + float(sum(math.prod(accuracy[k, r] for k, r in enumerate(path)) for path in paths))


def spread(children: Mapping[Path, int]) -> tuple[Path, ...]:
    """The ranked tree in which each listed node has so many children, shorter paths first."""
    paths = [(*node, rank) for node, many in children.items() for rank in range(many)]
    return tuple(sorted(paths, key=lambda path: (len(path), path)))


MC_SIM_7B_63 = spread(
    {(): 10, (0,): 10, (1,): 7, (2,): 3, (3,): 2, (0, 0): 10, (0, 1): 3, (0, 2): 2, (1, 0): 2, (2, 0): 1, (0, 0, 0): 2}
    | dict.fromkeys([(4,), (5,), (6,), (7,), (8,), (9,), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7)], 1)
)
"""Medusa's published tree for heads whose accuracies are not known, found for Vicuna-7B: 63 nodes, four heads deep."""
