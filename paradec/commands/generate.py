"""`paradec generate`: continue prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import tyro

from paradec.commands import options as o
from paradec.console import ERR, OUT, note
from paradec.errors import InputError


def generate(
    sample: o.Shared = o.Sample(),
    model: o.ModelName = "smollm2-135m",
    method: o.MethodName = "ar",
    prompt: o.PromptText = None,
    prompts: o.PromptFile = None,
    limit: o.Limit = None,
    method_arg: o.MethodArgs = (),
    dtype: o.Dtype = "float32",
    check: Annotated[bool, tyro.conf.arg(help="Try whether a diffusion model sees what its config declares.")] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object a prompt.")] = False,
) -> int:
    """Continue a prompt, or every prompt of a JSONL file."""
    from paradec import catalog

    own = catalog.parse(method, method_arg)
    catalog.check_options(method, own)
    sample.request(method=method)
    bad: list[str] = []
    texts = o.gather(prompt, prompts, limit, bad)
    lm = o.load_model(model, dtype, check)
    sample.tell(lm)
    request = sample.request(lm, len(texts), method=method)
    for first in range(0, len(texts), request["batch_size"]):
        for result in batch(lm, texts, first, request, own, bad):
            show(result, as_json)
    return 1 if bad else 0


def batch(
    lm: Any, texts: list[Any], first: int, request: dict[str, Any], options: dict[str, Any], bad: list[str]
) -> Iterator[Any]:
    """Results of the batch that starts at row `first`; prompts that cannot be decoded are named and left out."""
    from paradec.lm import Request

    ask = Request(**request)
    encoded, rows = [], []
    for row, text in enumerate(texts[first : first + ask.batch_size], first):
        try:
            encoded.append(lm.encode(text, **ask.reading))
            rows.append(row)
        except InputError as e:
            if len(texts) == 1:
                raise
            note(bad, f"Prompt {row + 1} is skipped: {e}")
    if encoded:
        yield from lm.decode(lm.decoder(ask, options), encoded, ask, rows, [lm.shown(texts[r]) for r in rows])


def show(result: Any, as_json: bool) -> None:
    """The text, and what it cost on stderr; or all of it as one line of JSON."""
    if as_json:
        print(json.dumps(result.public(), ensure_ascii=False), flush=True)
        return
    OUT.print(result.text, markup=False, soft_wrap=True)
    ERR.print(
        f"[{result.method}: {result.new_tokens} tokens, {result.calls} calls, "
        f"{result.tokens_per_call:.2f} a call, {result.seconds:.2f} s, {result.finish}]",
        markup=False, style="dim",
    )  # fmt: skip
