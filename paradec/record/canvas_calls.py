"""What a filter is shown while canvases are decoded, and what it should say: recorded as training data.

Every batch of prompts is decoded twice: plainly, one position a call, for the reference, and along another rule, whose
calls are written down where they happen, on the device. Learn2PD (arXiv 2509.25188) walks along the oracle. A recording
is a folder as in `record.traces`, with a safetensors file for each shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PyTree
from safetensors.numpy import load_file

from paradec import config as configs
from paradec import mesh, struct
from paradec.composition import compose
from paradec.decode.canvas import Canvas
from paradec.decode.seams import Choice, Select, SelectAround
from paradec.decode.unmasking.learned_filter import observed, of_block
from paradec.decode.view import View
from paradec.errors import InputError
from paradec.io import tensor_file
from paradec.lm import Decoder, LanguageModel, Request
from paradec.record.traces import claim
from paradec.request import Prompts, texts


@struct.dataclass
class Calls:
    """The first N calls of each row on a block of W positions. Nothing is `open` in calls that were never made."""

    confidence: Float[Array, "B N W"]
    final: Bool[Array, "B N W"]
    open: Bool[Array, "B N W"]


@struct.dataclass
class Recorder(SelectAround):
    """A select rule that does what `rule` does, and writes down each call beside the carry of that rule.

    A proposal is final if it is the token that stands there in `reference`.
    """

    rule: Select
    reference: Int32[Array, "B S"]
    length: int = struct.field(pytree_node=False)
    calls: int = struct.field(pytree_node=False)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        room = (batch, self.calls, self.length)
        empty = Calls(jnp.ones(room), jnp.zeros(room, bool), jnp.zeros(room, bool))
        return empty, self.rule.init(batch, window, vocab)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        calls, memory = carry
        choice = self.rule(view, memory)
        at = jnp.minimum(view.position, self.reference.shape[1] - 1)
        final = view.token == jnp.take_along_axis(self.reference, at, axis=1)
        now = Calls(
            observed(view, self.length), of_block(view, final & view.eligible, self.length, False),
            of_block(view, view.eligible, self.length, False),
        )  # fmt: skip
        put = jax.vmap(lambda every, turn, one: every.at[turn].set(one, mode="drop"))
        calls = jax.tree.map(lambda every, one: put(every, view.turn, one), calls, now)
        return choice.replace(carry=(calls, choice.carry))


@dataclasses.dataclass(frozen=True)
class Walk:
    """Decodes batches twice and returns what was written down. Compiled once for each shape."""

    lm: LanguageModel
    ask: Request
    block: int
    along: str
    options: Mapping[str, Any]
    plain: Decoder
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, lm: LanguageModel, ask: Request, block: int, along: str, options: Mapping[str, Any]) -> Walk:
        """Raises `InputError` and `UnknownName` as `compose` does."""
        static = compose(lm.model, "quota", block=block, vocab_limit=lm.tokenizer.vocab_size)
        return cls(lm, ask, block, along, options, Decoder("quota", static, {"target": lm.params}))

    def calls(self, batch: list[list[int]], rows: Sequence[int]) -> Calls:
        """Every call of a batch; rows that only fill it up have none."""
        reference = self.plain.run(self.lm.begin(self.plain, batch, self.ask, rows)).tokens
        again = Decoder(self.along, self.recording(reference), self.plain.params, compiled=self.compiled)
        return again.run(self.lm.begin(again, batch, self.ask, rows)).carry.select[0]

    def recording(self, reference: Int32[Array, "B S"]) -> Canvas:
        """The method that is walked along, with its select rule watched."""
        lm, options = self.lm, dict(self.options)
        if "oracle" in self.along.split("+"):
            options["reference"] = reference
        vocab_limit, eos = lm.tokenizer.vocab_size, lm.tokenizer.eos_ids
        method = compose(lm.model, self.along, options, block=self.block, vocab_limit=vocab_limit, eos=eos)
        if not isinstance(method, Canvas):
            raise InputError(f"The calls of {self.along} cannot be recorded: it speculates. Leave freedave out.")
        room = self.ask.max_new_tokens + lm.model.block  # blocks of the model's own are filled to their end
        if method.select.idles:  # by its steps, not by what it commits
            room = max(room, (-(-room // self.block) + 1) * int(method.select.steps))
        return method.replace(select=Recorder(method.select, reference, self.block, room))


def record(
    lm: LanguageModel,
    prompts: Prompts,
    folder: Path,
    *,
    block: int,
    along: str = "oracle",
    options: Mapping[str, Any] | None = None,
    shard: int = 256,
    told: Callable[[int, int], None] = lambda done, all: None,
    **request: Any,
) -> Path:
    """Decode `prompts` in blocks of `block`, and keep what each call showed, which proposals were final, and its row.

    `along` and `options` are `compose`'s rules and their options; the oracle's reference is filled in. The reference
    runs to the limit, the recorded decode to its end-of-text, behind which no filter is ever asked. Keyword arguments
    are those of `lm.Request`; process p of n writes every nth shard, and shards that are there are kept. Returns
    `folder`, when all have written. Raises `InputError` where the folder holds another recording.
    """
    ask = Request.of(request)
    encoded = [lm.encode(prompt, **ask.reading) for prompt in texts(prompts)]
    asked = {"block": block, "along": along, "options": dict(options or {}), "shard": shard}
    claim(folder, lm, encoded, asked | {"request": configs.as_json(ask)})
    ask = ask.within(min(shard, len(encoded)))
    walk, shards = Walk.of(lm, ask, block, along, options or {}), -(-len(encoded) // shard)
    for number in range(jax.process_index(), shards, jax.process_count()):
        path = folder / f"{number:05}.safetensors"
        if not path.exists():
            here = range(number * shard, min((number + 1) * shard, len(encoded)))
            alike = sorted(here, key=lambda row: len(encoded[row]))
            batches = [alike[first : first + ask.batch_size] for first in range(0, len(alike), ask.batch_size)]
            parts = [columns(walk.calls([encoded[row] for row in some], some), some) for some in batches]
            tensor_file.write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        told(number + 1, shards)
    mesh.wait(f"recorded {folder.name}")
    return folder


def columns(calls: Calls, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """The calls that were made, one after the other, with the number in `rows` of the prompt of each."""
    found = jax.device_get(calls)
    row, turn = np.nonzero(found.open.any(-1))
    seen = {"confidence": found.confidence, "final": found.final, "open": found.open}
    return {name: x[row, turn] for name, x in seen.items()} | {"row": np.asarray(rows, np.int32)[row]}


class FilterRows:
    """Recorded calls by number, to be drawn from or measured with. `columns` has what `columns` returns."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        if not len(columns["row"]):
            raise InputError("There are no recorded calls; record some first.")
        self.columns = columns

    @classmethod
    def read(cls, folders: Sequence[Path]) -> FilterRows:
        """All calls of some recordings. Prompts of one number are one prompt, whichever recording they are in."""
        parts = [load_file(path) for folder in folders for path in sorted(folder.glob("[0-9]*.safetensors"))]
        if not parts:
            raise InputError("There are no recorded calls; record some first.")
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def split(self, every: int) -> tuple[FilterRows, FilterRows]:
        """The calls of all prompts but every `every`th, and of those: to train on and to measure with."""
        if every < 2:
            raise InputError(f"Every {every}th prompt cannot be held out; take at least every 2nd.")
        held = self.columns["row"] % every == every - 1
        if held.all() or not held.any():
            raise InputError(
                f"Of every {every} prompts the last is held out, and the recorded calls have none to train on or none "
                "to measure with. Record more prompts, or hold out another share."
            )
        part = lambda which: FilterRows({name: x[which] for name, x in self.columns.items()})
        return part(~held), part(held)

    def __len__(self) -> int:
        return len(self.columns["row"])

    def __getitem__(self, index: int | np.ndarray) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in ("confidence", "final", "open")}


class Drawn:
    """Endless batches of calls, drawn at random by numpy at once: a call is too small to be read for itself.

    `make` turns the columns of a batch into what an objective reads. Its iterators have `get_state` and `set_state`.
    Processes draw the same calls, and each takes those that it holds.
    """

    def __init__(self, rows: FilterRows, batch: int, seed: int = 0, *, make: Callable[[dict[str, np.ndarray]], Any]):
        mesh.held(batch)  # raises where the mesh does not split it
        self.rows, self.batch, self.seed, self.make = rows, batch, seed, make

    def __iter__(self) -> _Draws:
        return _Draws(self)


class _Draws(Iterator):
    def __init__(self, data: Drawn):
        self.data, self.made = data, 0

    def __next__(self) -> Any:
        rng = np.random.default_rng((self.data.seed, self.made))
        self.made += 1
        drawn = rng.integers(len(self.data.rows), size=self.data.batch)
        return self.data.make(self.data.rows[drawn[mesh.held(self.data.batch)]])

    def get_state(self) -> dict[str, int]:
        return {"made": self.made}

    def set_state(self, state: dict[str, int]) -> None:
        self.made = state["made"]
