"""`paradec generate`: continue prompts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from paradec.commands import options as o
from paradec.console import ERR, OUT, note, say, track
from paradec.errors import InputError
from paradec.io import whole_file


def generate(
    sample: o.Shared = o.SamplingOptions(),
    model: o.ModelName = "smollm2-135m",
    method: o.MethodName = "ar",
    prompt: o.PromptText = None,
    prompts: o.PromptFile = None,
    limit: o.Limit = None,
    method_arg: o.MethodArgs = (),
    dtype: o.Dtype = "float32",
    check: Annotated[bool, tyro.conf.arg(help="Try whether a diffusion model sees what its config declares.")] = False,
    out: Annotated[Path | None, o.given(Path, "FILE", "Write a line of JSON for every line of --prompts.")] = None,
    resume: Annotated[bool, tyro.conf.arg(help="Go on with --out where a run was ended.")] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object a prompt.")] = False,
) -> int:
    """Continue a prompt, or every prompt of a JSONL file."""
    from paradec import answers, composition
    from paradec.lm import Request
    from paradec.prompts import drawn

    own = composition.parse(method, method_arg)
    composition.check_options(method, own)
    sample.request(method=method)
    if (out is not None and prompts is None) or (resume and out is None):
        raise InputError("--out answers a file, and --resume goes on with it: give --prompts FILE --out FILE.")
    bad: list[str] = []
    if out is not None:
        whole_file.check(out)
        lm = o.load_model(model, dtype, check)
        sample.tell(lm)
        ask = sample.request(lm, method=method)
        told = dict(track=partial(track, label=f"Answering {prompts}"), complain=partial(note, bad))
        bad += answers.write(lm, prompts, out, resume=resume, limit=limit, method_args=own, **told, **ask)
        say(f"Wrote {out}" + (f"; {len(bad)} lines could not be decoded, and say why." if bad else ""))
        return 1 if bad else 0
    lines = o.gather(prompt, prompts, limit, bad)
    lm = o.load_model(model, dtype, check)
    sample.tell(lm)
    ask = Request(**drawn(lines, sample.request(lm, len(lines), method=method)))
    decoder = lm.decoder(ask, own)
    for rows in answers.batches(len(lines), ask.batch_size):
        for row, answer in zip(rows, answers.answered(lm, decoder, ask, [lines[r] for r in rows], rows), strict=True):
            if answer.error and len(lines) == 1:
                raise InputError(answer.error)
            show(answer, as_json)
            if answer.error:
                note(bad, f"Prompt {row + 1} is skipped: {answer.error}")
    return 1 if bad else 0


def show(answer: Any, as_json: bool) -> None:
    """The texts, and what they cost on stderr; or all of it as one line of JSON."""
    if as_json and answer.turns:
        print(json.dumps(answer.record(), ensure_ascii=False), flush=True)
    for result in () if as_json else answer.turns:
        OUT.print(result.text, markup=False, soft_wrap=True)
        ERR.print(
            f"[{result.method}: {result.new_tokens} tokens, {result.calls} calls, "
            f"{result.tokens_per_call:.2f} a call, {result.seconds:.2f} s, {result.finish}]",
            markup=False, style="dim",
        )  # fmt: skip
