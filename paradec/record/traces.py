"""What a model does when it decodes, recorded as training data: its own text, and in which call it committed each
token.

A recording is a folder: `recording.json` says what was asked of which model, and every shard of prompts is one JSONL
file, written whole or not at all. So a recording that was killed goes on at its first missing shard, and several
processes share one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from paradec import config as configs
from paradec import mesh
from paradec.errors import InputError, ResourceError
from paradec.io import json_lines, tensor_file, text_file
from paradec.io.medusa import fingerprint
from paradec.lm import LanguageModel, Request, precision
from paradec.request import Prompts, texts

Record = dict[str, Any]


def record(
    lm: LanguageModel,
    prompts: Prompts,
    folder: Path,
    *,
    shard: int = 64,
    told: Callable[[int, int], None] = lambda done, all: None,
    method_args: dict[str, Any] | None = None,
    **request: Any,
) -> Path:
    """Decode `prompts` and keep, for each, its token ids, the new ones, and the call that committed each of those.

    A string by itself is one prompt. Keyword arguments are those of `lm.Request`; `told(shards done, shards)` is called
    after every shard. Process p of n writes every nth shard. Returns `folder`, when all have written. Raises
    `InputError` where the folder holds another recording.
    """
    ask, prompts = Request.of(request), texts(prompts)
    claim(folder, lm, prompts, {"shard": shard, "request": configs.as_json(ask), "method_args": method_args or {}})
    shards = -(-len(prompts) // shard)
    decoder, ask = lm.decoder(ask, method_args), ask.within(min(shard, len(prompts)))
    for number in range(jax.process_index(), shards, jax.process_count()):
        path = folder / f"{number:05}.jsonl"
        if not path.exists():
            rows = range(number * shard, min((number + 1) * shard, len(prompts)))
            encoded = {row: lm.encode(prompts[row], **ask.reading) for row in rows}
            alike = sorted(rows, key=lambda row: len(encoded[row]))  # batches of like length waste least
            lines = {}
            for first in range(0, len(alike), ask.batch_size):
                some = alike[first : first + ask.batch_size]
                for row, result in zip(some, lm.decode(decoder, [encoded[r] for r in some], ask, some), strict=True):
                    new = {"new": list(result.token_ids), "settled": list(result.settled)}
                    lines[row] = {"row": row, "prompt": encoded[row]} | new
            text_file.write(path, "".join(json.dumps(lines[row]) + "\n" for row in rows))
        told(number + 1, shards)
    mesh.wait(f"recorded {folder.name}")
    return folder


def imagined(lm: LanguageModel, count: int, folder: Path, *, temperature: float = 1.0, **request: Any) -> list[str]:
    """At most `count` different prompts that a chat model writes when it is given the user's turn, kept in `folder`.

    A model trained on whole conversations draws them from about what it was trained on (Magpie, arXiv 2406.08464).
    Keyword arguments are those of `record`. Prompts that did not end within `max_new_tokens` are cut there.
    """
    mark = "\0"
    opening = lm.tokenizer.chat([{"role": "user", "content": mark}]).partition(mark)[0]
    ids = lm.tokenizer.encode(opening, special=False)  # the template has put there what begins a text
    record(lm, [ids] * count, folder, raw=True, temperature=temperature, **request)
    eos = set(lm.tokenizer.eos_ids)
    texts = (lm.tokenizer.decode([i for i in line["new"] if i not in eos]).strip() for line in read(folder))
    return list(dict.fromkeys(text for text in texts if text))


def read(folder: Path) -> Iterator[Record]:
    """The records of a folder in the order of their prompts. Raises `InputError` for a damaged line, by its number."""
    for path in sorted(folder.glob("[0-9]*.jsonl")):
        yield from _records(path)


def _records(path: Path) -> Iterator[Record]:
    try:
        for _, found in json_lines.read(path, "a recording", _record):
            yield found
    except InputError as error:
        raise InputError(f"{path} is damaged; delete it and record again. {error}") from error


def _record(line: Any) -> Record:
    names = ("row", "prompt", "new", "settled")
    if not isinstance(line, dict) or not all(name in line for name in names):
        raise ValueError(f"a record has {', '.join(names)}.")
    ids = [*line["prompt"], *line["new"]] if isinstance(line["prompt"], list) and isinstance(line["new"], list) else []
    if not ids or not all(isinstance(i, int) for i in ids):
        raise ValueError("a record's texts are lists of token ids.")
    return {name: line[name] for name in names}


def hidden_states(lm: LanguageModel, folder: Path, *, length: int = 256, ahead: int = 4, batch: int = 16) -> HiddenRows:
    """The hidden states (after the final norm, bfloat16) of all records of a folder, computed once and kept there.

    Texts longer than `length` keep their end. A row of the result is what the model wrote itself, to be learned from,
    and the `ahead` + 1 tokens before it, from which heads can guess its beginning. Process p of n computes every nth
    shard's, and all return all of them.
    """
    run = jax.jit(lambda weights, token: lm.model.forward(weights, token).hidden.astype(jnp.bfloat16))
    kept = json.loads((folder / "recording.json").read_text())["request"]["max_new_tokens"] + ahead + 1
    for path in sorted(folder.glob("[0-9]*.jsonl"))[jax.process_index() :: jax.process_count()]:
        out = path.with_suffix(f".{length}.{ahead}.safetensors")
        if out.exists():
            continue
        texts = [_text(record, length) for record in _records(path)]
        width = min(length, -(-max(len(ids) for ids, _ in texts) // 64) * 64)  # no wider than the shard's texts
        token = np.zeros((len(texts) + -len(texts) % batch, width), np.int32)
        for row, (ids, _) in enumerate(texts):
            token[row, : len(ids)] = ids
        with precision(lm.params):
            parts = [run(lm.params, jnp.asarray(token[i : i + batch])) for i in range(0, len(token), batch)]
        hidden = np.concatenate(parts)
        columns = {name: np.zeros((len(texts), kept, *extra), kind) for name, kind, extra in (
            ("hidden", hidden.dtype, (hidden.shape[-1],)), ("token", np.int32, ()), ("learn", np.bool_, ()),
        )}  # fmt: skip
        for row, (ids, mine) in enumerate(texts):
            first = max(mine - ahead - 1, 0)
            size = min(len(ids) - first, kept)
            columns["hidden"][row, :size] = hidden[row, first : first + size]
            columns["token"][row, :size] = ids[first : first + size]
            columns["learn"][row, mine - first : size] = True
        tensor_file.write(out, columns)
    mesh.wait(f"hidden states of {folder.name}")
    return HiddenRows(sorted(folder.glob(f"[0-9]*.{length}.{ahead}.safetensors")))


class Texts:
    """Recorded texts of at most `length` tokens, in which the model's own part is learned: a source, to be packed."""

    def __init__(self, texts: Sequence[tuple[list[int], int]]):
        self.texts = texts

    @classmethod
    def read(cls, folder: Path, length: int) -> Texts:
        """The texts of a recording, in its order; longer ones keep their end."""
        return cls([_text(record, length) for record in read(folder)])

    def split(self, every: int) -> tuple[Texts, Texts]:
        """As `HiddenRows.split` does."""
        train, held = parted(len(self.texts), every)
        return Texts([self.texts[n] for n in train]), Texts([self.texts[n] for n in held])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids, mine = self.texts[index]
        return {"token": np.asarray(ids, np.int32), "learn": np.arange(len(ids)) >= mine}


class HiddenRows:
    """Recorded hidden states, token ids and targets by row number: a source for `chain.batches`."""

    def __init__(self, paths: Sequence[Path], rows: Sequence[int] | None = None):
        if not paths:
            raise InputError("There are no recorded hidden states; record text first.")
        self.files = [safe_open(path, framework="numpy") for path in paths]
        sizes = [file.get_slice("token").get_shape()[0] for file in self.files]
        places = [(f, r) for f, size in enumerate(sizes) for r in range(size)]
        self.places = places if rows is None else [places[row] for row in rows]
        self.paths = [*paths]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        file, row = self.places[index]
        return {name: self.files[file].get_slice(name)[row] for name in ("hidden", "token", "learn")}

    def split(self, every: int) -> tuple[HiddenRows, HiddenRows]:
        """All rows but every `every`th, and those, as `parted` does."""
        train, held = parted(len(self), every)
        return HiddenRows(self.paths, train), HiddenRows(self.paths, held)

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each token is a target: int64 "V"."""
        total = np.zeros(vocab_size, np.int64)
        for index in range(len(self)):
            row = self[index]
            total += np.bincount(row["token"][row["learn"]], minlength=vocab_size)
        return total


def parted(count: int, every: int) -> tuple[list[int], list[int]]:
    """Of so many rows all but every `every`th, and those: to train on and to measure with.

    Raises `InputError` where one of them is none.
    """
    held = range(every - 1, count, every) if every > 1 else range(0)
    if not held:
        raise InputError(
            f"Of {count} texts every {every}th is to be held out, which leaves none to train on or none to measure "
            "with. Give more texts, or hold out another share."
        )
    return [n for n in range(count) if n not in held], [*held]


def _text(record: Record, length: int) -> tuple[list[int], int]:
    """The last `length` tokens of a record, and where in them the model's own begin."""
    ids = [*record["prompt"], *record["new"]]
    cut = max(len(ids) - length, 0)
    return ids[cut:], max(len(record["prompt"]) - cut, 0)


def claim(folder: Path, lm: LanguageModel, prompts: Sequence[Any], asked: Mapping[str, Any]) -> None:
    """Say in the folder what is recorded there, or find that it is the same. Raises `InputError` where it is not."""
    if not prompts:
        raise InputError("There are no prompts to record; give at least one.")
    text = json.dumps(list(prompts)).encode()
    model = {"model": lm.name, "model_digest": fingerprint(lm.model, lm.params)}
    mine = model | {"prompts": hashlib.sha256(text).hexdigest()[:16]} | dict(asked)
    path = folder / "recording.json"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"Cannot record in {folder}: {error}.") from error
        text_file.write(path, json.dumps(mine, indent=1) + "\n")
    elif changes := configs.differences(json.loads(path.read_text(encoding="utf-8")), mine):
        raise InputError(
            f"{folder} holds another recording:\n" + "\n".join(f"  {c}" for c in changes) + "\nChoose another folder."
        )
