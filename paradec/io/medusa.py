"""Trained Medusa heads as files: a safetensors file in the published layout and a small JSON beside it.

The published layout is `medusa_lm_head.safetensors`: `{k}.{r}.linear.weight` and `.bias` for residual layer r of head
k, and for heads with vocabulary heads of their own `{k}.{R}.weight` (whole Medusa-2 models prefix `medusa_head.`). Ours
adds the tensor `short_list`, and in the JSON the tree, the accuracies it came from, and what the heads were trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradec.errors import WeightsError
from paradec.io import names, tensor_file, text_file
from paradec.io.names import Tensor, TensorEntry
from paradec.io.regular_file import read_json
from paradec.models.heads import HeadWeights, MedusaHeads
from paradec.models.ranked_tree import Path as TreePath
from paradec.models.ranked_tree import ranked
from paradec.types import Denoiser, Model

PREFIX = "medusa_head."
SHORT_LIST = "short_list"


@dataclasses.dataclass(frozen=True)
class Trained:
    """Heads as they are stored. `short_list` (token ids) and `tree` are None where the file has none.

    `facts` is the rest of the JSON: base, base_digest, data, command, metrics, accuracy.
    """

    heads: MedusaHeads
    weights: HeadWeights
    short_list: np.ndarray | None = None
    tree: tuple[TreePath, ...] | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def save_medusa(path: Path, trained: Trained) -> None:
    """Write `path` (.safetensors) and the JSON of the same name. Each is replaced whole, the JSON last."""
    tensors = dict(names.store(trained.heads, entries(trained.heads), jax.device_get(trained.weights)))
    if trained.short_list is not None:
        tensors[SHORT_LIST] = np.asarray(trained.short_list, np.int32)
    tensor_file.write(path, tensors)
    tree = None if trained.tree is None else [list(node) for node in trained.tree]
    facts = {"format": "paradec medusa 1", "tree": tree} | trained.facts
    text = "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()) + "\n}"
    text_file.write(path.with_suffix(".json"), text + "\n")


def load_medusa(path: Path, dtype: str = "float32") -> Trained:
    """Heads from a file that `save_medusa` or Medusa's own trainer wrote. Without a JSON beside it, `tree` is None.

    Raises `WeightsError` for a file that is damaged, is no Medusa file, or whose JSON does not fit it.
    """
    if path.suffix in (".pt", ".bin"):
        raise WeightsError(f"{path} is a pickle, which paradec does not open. Convert it with safetensors.torch.")
    tensors = {n.removeprefix(PREFIX): t for n, t in tensor_file.table(path, extra=(SHORT_LIST,)).items()}
    short = tensors.pop(SHORT_LIST, None)
    heads = dataclasses.replace(_structure(path, tensors), dtype=dtype)
    weights = names.load(heads, entries(heads), tensors)
    facts = _facts(path.with_suffix(".json"))
    return Trained(
        heads=heads,
        weights=weights,
        short_list=None if short is None else _short_list(path, short),
        tree=_tree(path.with_suffix(".json"), facts.pop("tree", None), heads),
        facts=facts,
    )


def entries(heads: MedusaHeads) -> list[TensorEntry]:
    """The name map of the published layout."""
    rows = []
    for layer in range(heads.num_layers):
        rows.append(TensorEntry(f"{{}}.{layer}.linear.weight", "linear", "E D -> D E", np.s_[layer]))
        rows.append(TensorEntry(f"{{}}.{layer}.linear.bias", "bias", "E -> E", np.s_[layer]))
    return [*rows, TensorEntry(f"{{}}.{heads.num_layers}.weight", "unembed", "V D -> V D")]


def fingerprint(model: Model | Denoiser, weights: Any) -> str:
    """What tells one base model from another: a hash of its final norm, rounded to bfloat16, and of its sizes.

    Quantisation leaves norms alone, so what was trained on a quantised copy serves the original, and the other way.
    Weights without a norm are told by all their numbers.
    """
    sizes, stacks = model.sizes(), model.stacks()
    if stacks.layers and sizes.num_kv_heads and sizes.mlp_width:
        # The shapes of the embedding and of the last stack's second MLP matrix, written as numpy writes them.
        V, D, L = sizes.vocab_size, sizes.width, stacks.layers[-1][1]
        told = f"{(V, D)} {(L, sizes.mlp_width, D)} "
    else:  # a recurrence, say, or experts alone
        told = " ".join(
            f"{jax.tree_util.keystr(at)}{x.shape}" for at, x in jax.tree_util.tree_leaves_with_path(weights)
        )
    told_by = jax.tree.leaves(weights if stacks.norm is None else getattr(weights, stacks.norm))
    numbers = b"".join(np.asarray(x).astype(jnp.bfloat16).tobytes() for x in jax.device_get(told_by))
    return hashlib.sha256(told.encode() + numbers).hexdigest()[:16]


def _structure(path: Path, tensors: dict[str, Tensor]) -> MedusaHeads:
    """How many heads of how many layers the names say, and how wide they are."""
    found = [m for m in (re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.linear\.weight", n) for n in tensors) if m]
    if not found:
        raise WeightsError(
            f"{path} holds no Medusa heads: no tensor is named like '0.0.linear.weight'. Point at a "
            "medusa_lm_head.safetensors, or at a file in its layout."
        )
    count, layers = (1 + max(int(m[i]) for m in found) for i in (1, 2))
    first, own = tensors.get("0.0.linear.weight"), tensors.get(f"0.{layers}.weight")
    if first is None or len(first.shape) != 2:
        raise WeightsError(f"{path} lacks a matrix '0.0.linear.weight'. It is damaged; export or download it again.")
    vocab = own.shape[0] if own is not None and own.shape else 0
    return MedusaHeads(num_heads=count, width=first.shape[1], num_layers=layers, vocab_size=vocab)


def _short_list(path: Path, tensor: Tensor) -> np.ndarray:
    ids = tensor.read()
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not len(ids) or len(np.unique(ids)) != len(ids):
        raise WeightsError(f"The short list in {path} is not a row of different token ids. Export the heads again.")
    return ids


def _facts(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _tree(path: Path, stored: Any, heads: MedusaHeads) -> tuple[TreePath, ...] | None:
    if stored is None:
        return None
    try:
        tree = tuple(tuple(operator.index(rank) for rank in node) for node in stored)
        if any(rank < 0 for node in tree for rank in node):
            raise ValueError("a rank is below 0.")
        ranked(tree)
        deepest = max(len(node) for node in tree)
    except (TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path} holds no usable tree: {error} Export the heads again.") from error
    if deepest > heads.num_heads:
        raise WeightsError(f"{path} holds a tree {deepest} deep, but there are {heads.num_heads} heads.")
    return tree
