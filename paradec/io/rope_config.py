"""Rotary settings of a config.json as a `Rope`, and back.

One file may state them three times: `rope_theta` at the top, the older `rope_scaling`, and `rope_parameters` of
transformers 5. What is read is what transformers makes of them. In families with one kind of layer `rope_scaling`
replaces `rope_parameters` as a whole, and only then is a missing `rope_theta` taken from the top; in Gemma 3
`rope_scaling` is laid over what `rope_parameters` says of the full layers.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from paradec.errors import UnknownName
from paradec.io.fields import Fields
from paradec.ops.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"
THETA = 10_000.0
_GEMMA_THETA = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", THETA)}
MOST_THETA, MOST_FACTOR = 1e15, 1e6  # beyond them an angle is nothing, or anything
_ORIGINAL = "original_max_position_embeddings"
_GROWTH = "llama_4_scaling_beta"


def stated(fields: Fields) -> Mapping[str, Any]:
    """The object that a family with one kind of layer obeys: `rope_scaling` where it says anything."""
    found = fields.get("rope_scaling") or fields.get("rope_parameters") or fields.defaults.get("rope_parameters", {})
    if not isinstance(found, Mapping):
        fields.fail("rope_parameters", found, "an object")
    return found


def read_rope(fields: Fields, head_dim: int, max_length: int, grows: bool = False) -> Rope:
    """The rotary settings of a family with one kind of layer.

    With `grows` the family's queries grow with their position by `llama_4_scaling_beta`, which must be stated. Warns
    where `rope_scaling` drops another `rope_theta`. Raises `UnknownName` for a scaling that paradec lacks, and
    `WeightsError` for settings of the wrong kind or such as describe no rotation.
    """
    found = stated(fields)
    if {FULL, SLIDING} & {*found}:
        fields.fail("rope_parameters", found, "one object for all layers, which turn alike in this model")
    rope = _rope(fields, found, fields.number("rope_theta", THETA), max_length, fields.get(_ORIGINAL) is not None)
    if grows:
        rope = _growing(Fields(found, {}, f"{fields.where}, rope settings,"), rope)
    dropped = fields.values.get("rope_parameters") if fields.get("rope_scaling") else None
    lost = dropped.get("rope_theta", rope.theta) if isinstance(dropped, Mapping) else rope.theta
    if lost != rope.theta and "rope_theta" not in found:
        warnings.warn(
            f"{fields.where} has rope_theta = {lost} in rope_parameters, which rope_scaling replaces as a whole: "
            f"{rope.theta:g} is used, as transformers does. Write the rope_theta that is meant into rope_scaling.",
            stacklevel=2,
        )
    return _finite(fields, rope, head_dim)


def read_ropes(fields: Fields, head_dim: int, max_length: int) -> tuple[Rope, Rope]:
    """The rotary settings of Gemma 3's full and of its sliding layers; raises as `read_rope` does."""
    nested, over = fields.get("rope_parameters"), fields.get("rope_scaling")
    if nested is not None and (not isinstance(nested, Mapping) or not {*nested} <= {FULL, SLIDING}):
        fields.fail("rope_parameters", nested, f"an object with the keys {FULL!r} and {SLIDING!r}")
    if over is not None and (not isinstance(over, Mapping) or {FULL, SLIDING} & {*over}):
        fields.fail("rope_scaling", over, "the settings of the full layers; rope_parameters has those of both kinds")
    if over is not None and nested is not None and not nested.get(FULL):
        fields.fail("rope_parameters", nested, f"an object with the key {FULL!r}, since rope_scaling adds to it")
    ropes = []
    for kind, (key, theta) in _GEMMA_THETA.items():
        found = ({"rope_type": "default"} if nested is None else nested.get(kind)) or {}
        if not isinstance(found, Mapping):
            fields.fail("rope_parameters", nested, "an object of objects")
        found = {**found, **((over or {}) if kind == FULL else {}), "truncate": True}  # no other truncate is read there
        meant, kept = found.get("type"), found.get("rope_type")
        if kind == FULL and over and "type" in over and kept and meant != kept:  # rope_type may stand in either
            warnings.warn(
                f"{fields.where} scales by type = {meant!r}, and in a Gemma 3 rope_type = {kept!r} counts before it. "
                "Write rope_type into rope_scaling where another is meant.",
                stacklevel=2,
            )
        ropes.append(_finite(fields, _rope(fields, found, fields.number(key, theta), max_length, False), head_dim))
    return ropes[0], ropes[1]


def _rope(fields: Fields, found: Mapping[str, Any], theta: float, max_length: int, top: bool) -> Rope:
    """One object of settings. `top`: the original length beside it wins, as in transformers."""
    s = Fields(found, {}, f"{fields.where}, rope settings,")
    theta = s.number("rope_theta", theta, MOST_THETA)
    kind = s.get("rope_type") or s.get("type") or "default"
    partial = s.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        fields.fail("partial_rotary_factor", partial, "1: paradec rotates whole heads")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", s.number("factor", most=MOST_FACTOR))
    original = fields.count(_ORIGINAL) if top else s.count(_ORIGINAL, max_length)
    if kind == "llama3":
        low, high = (s.number(key, most=MOST_FACTOR) for key in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            s.fail("low_freq_factor", low, f"below high_freq_factor = {high}")
        factor = s.number("factor", most=MOST_FACTOR)
        return Rope(theta, "llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        return _yarn(s, theta, original, max_length)
    raise UnknownName("rotary scaling", str(kind)[:60], ["default", "linear", "llama3", "yarn"], f"See {fields.where}.")


def _yarn(s: Fields, theta: float, original: int, max_length: int) -> Rope:
    if "factor" not in s.values:
        s.fail("factor", None, "stated (null: max_position_embeddings in original lengths)")
    factor = s.number("factor", max_length / original, MOST_FACTOR)
    attention = None if s.get("attention_factor") is None else s.number("attention_factor", most=MOST_FACTOR)
    if attention is None and s.get("mscale") and s.get("mscale_all_dim"):
        scales = (s.number(key, most=MOST_FACTOR) for key in ("mscale", "mscale_all_dim"))
        above, below = (0.1 * scale * math.log(max(factor, 1.0)) + 1 for scale in scales)
        attention = above / below
    return Rope(
        theta, "yarn", factor, original, attention_factor=attention,
        truncate="truncate" not in s.values or s.flag("truncate"), beta_fast=s.number("beta_fast", 32.0, MOST_FACTOR),
        beta_slow=s.number("beta_slow", 1.0, MOST_FACTOR),
    )  # fmt: skip


def _growing(s: Fields, rope: Rope) -> Rope:
    """The same, whose queries grow; where that begins is what the context's lengthening says. A beta of 0 is none."""
    beta = s.get(_GROWTH)
    if isinstance(beta, int | float) and not isinstance(beta, bool) and beta == 0:
        return rope
    if beta is not None and not rope.original_length:
        s.fail(_GROWTH, s.get(_GROWTH), f"absent for rope_type = {rope.kind!r}, which has no {_ORIGINAL}")
    return dataclasses.replace(rope, query_beta=s.number(_GROWTH, most=MOST_FACTOR))


def _finite(fields: Fields, rope: Rope, head_dim: int) -> Rope:
    """The same, when its frequencies are numbers: each setting may be in its range and their ratio in none."""
    try:
        with np.errstate(all="ignore"):
            found, factor = rope.frequencies(head_dim)
    except ArithmeticError:  # the logarithm of a theta of 1 is no divisor
        found, factor = np.full(1, math.nan), 1.0
    if not (np.isfinite(found).all() and math.isfinite(factor)):
        fields.fail("rope settings", dict(stated(fields)), "such that every frequency is a finite number")
    return rope


def write_rope(rope: Rope) -> dict[str, Any] | None:
    """The `rope_scaling` object of a `Rope`, null for the plain kind."""
    growth = {_GROWTH: rope.query_beta or None}
    keys = {
        "linear": {"factor": rope.factor},
        "llama3": {
            "factor": rope.factor, "low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_length, **growth,
        },
        "yarn": {
            "factor": rope.factor, "original_max_position_embeddings": rope.original_length, "truncate": rope.truncate,
            "attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow,
            **growth,
        },
    }.get(rope.kind)  # fmt: skip
    return keys and {"rope_type": rope.kind, **{k: v for k, v in keys.items() if v is not None}}
