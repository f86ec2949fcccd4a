"""Answers to prompts and conversations, and to files of them: a line for each, once, whatever kills the run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from paradec import config as configs
from paradec import engines, mesh
from paradec.decoder import Decoder
from paradec.errors import InputError, ParadecError
from paradec.io import run_lock, text_file, whole_file
from paradec.io.medusa import fingerprint
from paradec.lm import LanguageModel
from paradec.prompts import Line, drawn, read_lines
from paradec.request import Generation, Given, Request, listed, options_of

Track = Callable[[Sequence[Any]], Iterable[Any]]
NAMED = 3  # differences of settings that a refusal names


class Answer(NamedTuple):
    """What became of a line: a generation, or one for each turn, and why the next one could not be decoded."""

    line: Line
    turns: list[Generation]
    error: str = ""

    def record(self, timed: bool = True) -> dict[str, Any]:
        """The fields of a line of JSON; with `timed` the seconds too, which no two runs have in common."""
        fields = [{k: v for k, v in turn.public().items() if timed or k != "seconds"} for turn in self.turns]
        said = {"turns": fields} if self.line.then else (fields or [{}])[0]
        return {**self.line.ids, **said} | ({"error": self.error} if self.error else {})


def answered(
    lm: LanguageModel, decoder: Decoder, ask: Request, lines: Sequence[Line], rows: Sequence[int]
) -> list[Answer]:
    """The answers to a batch of lines. A line that cannot be read has its error instead, and the others go on.

    `rows` numbers each line in its data set, as in `LanguageModel.begin`. In a conversation the answer that was given
    stands before what the user says next.
    """
    turns: list[list[Generation]] = [[] for _ in lines]
    errors = [""] * len(lines)
    for turn in range(1 + max(len(line.then) for line in lines)):
        encoded: dict[int, list[int]] = {}
        for i, line in enumerate(lines):
            if turn <= len(line.then) and not errors[i]:
                try:
                    encoded[i] = lm.encode(said(line, turns[i]), **ask.reading)
                except InputError as error:
                    errors[i] = str(error)
        if encoded:
            shown = [lm.shown(said(lines[i], turns[i])) for i in encoded]
            results = lm.decode(decoder, [*encoded.values()], ask, [rows[i] for i in encoded], shown)
            for i, result in zip(encoded, results, strict=True):
                turns[i].append(result)
    return [Answer(*each) for each in zip(lines, turns, errors, strict=True)]


def said(line: Line, answers: Sequence[Generation]) -> Given:
    """The prompt of a line's next turn, after so many answers."""
    if not answers:
        return line.prompt
    turns = zip([line.prompt, *line.then], [*(a.text for a in answers), None], strict=False)
    both = [[{"role": "user", "content": user}, {"role": "assistant", "content": answer}] for user, answer in turns]
    return [message for pair in both for message in pair][:-1]


def converse(
    lm: LanguageModel,
    conversations: Iterable[Any],
    *,
    method_args: Mapping[str, Any] | None = None,
    **request: Any,
) -> list[list[Generation]]:
    """The answers to what a user says turn by turn, in each of several conversations, every one before the next turn.

    A conversation is a list of strings, and one of them may stand alone. Keyword arguments are those of
    `LanguageModel.generate`. Raises `InputError` for a conversation without a turn, and where one has become too long.
    """
    what = "A conversation is a list of what the user says, at least once"
    given = listed([conversations] if isinstance(conversations, str) else conversations, what)
    if given and all(isinstance(turn, str) for turn in given):
        given = [given]
    given = [[] if isinstance(turns, str) else listed(turns, what) for turns in given]
    if not given or not all(given) or not all(isinstance(turn, str) for turns in given for turn in turns):
        raise InputError(f"{what}.")
    lines = [Line(i, turns[0], tuple(turns[1:])) for i, turns in enumerate(given, 1)]
    ask = Request.of(request).within(len(lines))
    decoder, out = lm.decoder(ask, method_args), []
    for rows in batches(len(lines), ask.batch_size):
        out += answered(lm, decoder, ask, [lines[r] for r in rows], rows)
    if wrong := next((answer for answer in out if answer.error), None):
        raise InputError(f"Turn {len(wrong.turns) + 1} of conversation {wrong.line.number}: {wrong.error}")
    return [answer.turns for answer in out]


def unrolled(lm: LanguageModel, lines: Sequence[Line], request: Mapping[str, Any]) -> list[Given]:
    """Every turn of the lines as a prompt of its own, behind what plain decoding answers to those before.

    A conversation ends with the first turn that has become too long to be read. Lines of one turn are not decoded.
    """
    talks = [row for row, line in enumerate(lines) if line.then]
    if not talks:
        return [line.prompt for line in lines]
    ask = Request.of({**request, "method": engines.plain(lm.model)}).within(len(lines))
    decoder, heard = lm.decoder(ask), {}
    for some in batches(len(talks), ask.batch_size):
        rows = [talks[i] for i in some]
        asked = [dataclasses.replace(lines[row], then=lines[row].then[:-1]) for row in rows]  # the last is not heard
        heard |= zip(rows, (answer.turns for answer in answered(lm, decoder, ask, asked, rows)), strict=True)
    return [
        said(line, heard.get(row, [])[:n]) for row, line in enumerate(lines) for n in range(1 + len(heard.get(row, [])))
    ]


def batches(count: int, size: int, first: int = 0) -> list[range]:
    """The rows of each batch, from the batch that row `first` is in."""
    return [range(at, min(at + size, count)) for at in range(first // size * size, count, size)]


def write(
    lm: LanguageModel,
    prompts: Path,
    out: Path,
    *,
    resume: bool = False,
    limit: int | None = None,
    method_args: Mapping[str, Any] | None = None,
    track: Track = iter,
    complain: Callable[[str], None] = lambda sentence: None,
    **request: Any,
) -> list[str]:
    """Answer every line of a file, and write a line of JSON for each to `out`, in their order.

    `prompts` is read by `prompts.read_lines`; a line's own sampling options count before those of `request`, and its
    ids stand in its answer. A line that cannot be decoded has an "error"; the first process returns a sentence for
    each. Batches are written when they are decoded. `OUT.settings.json`, beside it, says what was asked. With `resume`
    a run that was killed goes on at its first missing line, and the file becomes what it would have been. On a mesh of
    several processes all call this, and the first writes. Raises `InputError` where `out` is there and is not to be
    resumed, holds something else, or is being written by another process; `ResourceError` where it cannot be written.
    """
    lines = read_lines(prompts, complain, limit)
    ask = Request.of(drawn(lines, request))
    few = ask.within(len(lines))
    ask = few if mesh.current() is None else ask  # a mesh splits a batch of the size that was asked for
    decoder = lm.decoder(ask, method_args)
    settings = {
        "model": lm.name, "model_digest": fingerprint(lm.model, lm.params), "prompts": configs.digest(prompts),
        "limit": limit,
        "request": configs.as_json(dataclasses.replace(ask, method=decoder.name)),
        "method_args": json.loads(json.dumps(options_of(method_args), default=str)),
    }  # fmt: skip
    with run_lock.alone_at(out):
        done = _together(lambda: _begun(out, settings, len(lines), resume))
        for rows in track(batches(len(lines), ask.batch_size, done) if done < len(lines) else []):
            found = answered(lm, decoder, ask, [lines[r] for r in rows], rows)
            _append(out, [answer.record(timed=False) for answer in found[max(done - rows.start, 0) :]])
        mesh.wait(f"answered {out.name}")
        if jax.process_index() != 0:  # the file may be another machine's
            return []
        with out.open("rb") as file:
            errors = [json.loads(text).get("error") for text in file]
    return [f"Line {line.number} of {prompts}: {e}" for line, e in zip(lines, errors, strict=True) if e]


def _together(begun: Callable[[], int]) -> int:
    """What the first process finds, in all of them; its error ends the others too."""
    found, error = 0, None
    if jax.process_index() == 0:
        try:
            found = begun()
        except ParadecError as mine:
            found, error = -1, mine
    found = mesh.first_says(found)
    if found < 0:
        raise error or InputError("The first process of this job has said what is wrong.")
    return found


def _begun(out: Path, settings: Mapping[str, Any], count: int, resume: bool) -> int:
    """How many lines are written already; what a kill left of another is cut off."""
    beside = out.with_name(out.name + ".settings.json")
    if not out.exists():
        text_file.write(beside, json.dumps(settings, indent=1) + "\n")
        return 0
    if not out.is_file():
        raise InputError(f"{out} is no regular file, and a run could not go on with it; name another.")
    if not resume:
        raise InputError(f"{out} is there already: --resume goes on with it, or choose another file.")
    if not beside.exists():
        raise InputError(f"{out} has no {beside.name} beside it, so what it answers is not known; choose another file.")
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{beside} cannot be read ({error}), so what {out} answers is not known.") from error
    if changes := configs.differences(before, settings):
        named = "\n".join(f"  {change}" for change in changes[:NAMED])
        raise InputError(f"{out} answers something else:\n{named}\nAsk for the same again, or choose another file.")
    whole, size = 0, 0
    with out.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                whole, size = whole + 1, size + len(line)
        file.truncate(size)
    if whole > count:
        raise InputError(f"{out} has {whole} lines for {count} prompts: it is not what was written here.")
    return whole


def _append(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Add records to a file and see to it that they are on disk. Only the first process writes."""
    if jax.process_index() != 0:
        return
    try:
        with out.open("ab") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise whole_file.cannot_write(out, error) from error
