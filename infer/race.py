"""Races: ours against `transformers.generate`, a decode call against the bare model call, prompt lookup against ar.

    python infer/race.py --out race.json            # all sections
    python infer/race.py --sections peer overhead

Every ratio comes from one interleaved run: contenders take turns, a turn of each makes a pair, and the median of the
pairs' ratios is reported with their range. Texts are compared too, since a fast wrong answer wins no race.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import paradec
from paradec.comparison import device, versions
from paradec.decoder import step_weights
from paradec.guard import guarded
from paradec.io import text_file
from paradec.lm import LanguageModel, Request
from paradec.prompts import read_prompts
from paradec.types import Rows

HERE = Path(__file__).parent
SECTIONS = ("peer", "overhead", "copy", "open")


@dataclasses.dataclass(frozen=True)
class Race:
    """What to race."""

    model: str = "smollm2-135m"
    """A name that paradec loads."""
    dtype: str = "float32"
    """Of weights and cache."""
    sections: tuple[str, ...] = SECTIONS
    """Which races to run."""
    new_tokens: int = 128
    """Tokens per prompt."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes of the race against transformers."""
    repeats: int = 5
    """Interleaved turns."""
    out: Path | None = None
    """Where to write everything as JSON."""


def ratio(a: Callable[[], float], b: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Seconds of b over seconds of a, in turns after one warm-up each; above 1 means that a is faster."""
    a(), b()
    pairs = [(a(), b()) for _ in range(repeats)]
    ratios = sorted(y / x for x, y in pairs)
    return {
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "seconds": statistics.median(x for x, _ in pairs),
        "other_seconds": statistics.median(y for _, y in pairs),
    }


def peer(lm: LanguageModel, race: Race) -> list[dict[str, Any]]:
    """ar against transformers.generate on the same weights, greedy, `new_tokens` each, end-of-text ignored by both."""
    import torch
    import transformers

    from paradec.io.hf import save_hf

    with tempfile.TemporaryDirectory() as folder:
        save_hf(folder, lm.model, jax.device_get(lm.params))
        other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, race.dtype)).eval()
    prompts = read_prompts(HERE / "prompts" / "open.jsonl", sys.exit)
    rows = []
    for batch in race.batches:
        texts = [lm.encode(p) for p in prompts[:batch]]
        given = {}

        def ours(texts: Sequence[Any] = texts, batch: int = batch, given: dict = given) -> float:
            request = dict(max_new_tokens=race.new_tokens, batch_size=batch, ignore_eos=True)
            results = lm.generate(texts, **request)
            given["ours"] = [r.token_ids for r in results]
            return results[0].seconds

        def theirs(texts: Sequence[Any] = texts, given: dict = given) -> float:
            width = max(map(len, texts))
            ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in texts])
            seen = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])
            begin = time.perf_counter()
            with torch.no_grad():
                out = other.generate(
                    ids, attention_mask=seen, do_sample=False, max_new_tokens=race.new_tokens,
                    min_new_tokens=race.new_tokens, pad_token_id=0,
                )  # fmt: skip
            given["theirs"] = [tuple(row[width:].tolist()) for row in out]
            return time.perf_counter() - begin

        row = ratio(ours, theirs, race.repeats)
        same = sum(a == b for a, b in zip(given["ours"], given["theirs"], strict=True))
        tokens = batch * race.new_tokens
        rows.append(
            {"batch": batch, "identical": same, "total": batch, "ours_tok_s": tokens / row["seconds"],
             "theirs_tok_s": tokens / row["other_seconds"], "torch_threads": torch.get_num_threads()} | row
        )  # fmt: skip
    return rows


def overhead(lm: LanguageModel, race: Race) -> list[dict[str, Any]]:
    """Time per call of the `ar` loop over that of a bare jitted `extend` of one token at the same cache length, on the
    same weights."""
    rows, tokens = [], 64
    for batch in race.batches:
        ask = Request(max_new_tokens=tokens, batch_size=batch, ignore_eos=True)
        decoder = lm.decoder(ask)
        prompt = [lm.encode("Tell me a long story.")] * batch

        def loop(ask: Request = ask, decoder: Any = decoder, prompt: Any = prompt, batch: int = batch) -> float:
            state = jax.block_until_ready(lm.begin(decoder, prompt, ask, range(batch)))
            begin = time.perf_counter()
            jax.block_until_ready(decoder.run(state).tokens)
            return (time.perf_counter() - begin) / tokens

        state = lm.begin(decoder, prompt, ask, range(batch))
        cache = state.cache.replace(length=state.cache.length + tokens // 2)
        weights = step_weights(decoder.method, decoder.params, decoder.layouts)["target"]
        one = jax.jit(lambda w, cache, t: _argmax(lm.model.extend(w, cache, Rows.chain(t))))
        token = jnp.ones((batch, 1), jnp.int32)

        def bare(weights: Any = weights, cache: Any = cache, one: Any = one, token: Any = token) -> float:
            begin = time.perf_counter()
            for _ in range(tokens):
                jax.block_until_ready(one(weights, cache, token))
            return (time.perf_counter() - begin) / tokens

        rows.append({"batch": batch} | ratio(bare, loop, race.repeats))
    return rows


def _argmax(result: Any) -> Any:
    out, delta = result
    return jnp.argmax(out.logits, -1), delta


def lookup(lm: LanguageModel, race: Race, name: str) -> dict[str, Any]:
    """prompt_lookup against ar on one of our prompt files, batch 1: each prompt on its own, then the whole file."""
    asks = {m: Request(method=m, max_new_tokens=race.new_tokens) for m in ("prompt_lookup", "ar")}
    decoders = {m: lm.decoder(ask) for m, ask in asks.items()}
    rows = []
    for i, prompt in enumerate(read_prompts(HERE / "prompts" / f"{name}.jsonl", sys.exit)):
        ids, given = lm.encode(prompt), {}

        def once(method: str, i: int = i, ids: list[int] = ids, given: dict = given) -> float:
            given[method] = lm.decode(decoders[method], [ids], asks[method], [i])[0]
            return given[method].seconds

        row = ratio(lambda once=once: once("prompt_lookup"), lambda once=once: once("ar"), race.repeats)
        ours, plain = given["prompt_lookup"], given["ar"]
        row |= {"prompt": i, "new_tokens": ours.new_tokens, "calls": ours.calls}
        rows.append(row | {"identical": ours.token_ids == plain.token_ids})
    seconds, other = (sum(r[k] for r in rows) for k in ("seconds", "other_seconds"))
    tokens = sum(r["new_tokens"] for r in rows)
    return {
        "ratio": other / seconds,
        "worst_prompt": min(r["ratio"] for r in rows),
        "best_prompt": max(r["ratio"] for r in rows),
        "tokens_per_call": tokens / sum(r["calls"] for r in rows),
        "tok_s": tokens / seconds,
        "ar_tok_s": tokens / other,
        "identical": sum(r["identical"] for r in rows),
        "total": len(rows),
        "prompts": rows,
    }


def main(race: Race) -> None:
    """Run the sections that were asked for; one that fails does not lose the others."""
    lm = paradec.load(race.model, dtype=race.dtype)
    report: dict[str, Any] = {"race": dataclasses.asdict(race) | {"out": str(race.out)}, "device": device()}
    report["versions"] = versions()
    run = {
        "peer": lambda: peer(lm, race),
        "overhead": lambda: overhead(lm, race),
        "copy": lambda: lookup(lm, race, "copy"),
        "open": lambda: lookup(lm, race, "open"),
    }
    for section in race.sections:
        try:
            report[section] = run[section]()
        except Exception as e:
            report[section] = {"failed": f"{type(e).__name__}: {e}"}
        print(section, json.dumps(report[section], indent=1, default=_plain), flush=True)
        if race.out is not None:
            text_file.write(race.out, json.dumps(report, indent=1, default=_plain))


def _plain(x: Any) -> Any:
    return x.tolist() if isinstance(x, np.ndarray | np.generic) else str(x)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(tyro.cli(Race, description=__doc__)) and 0))
