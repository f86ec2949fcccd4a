"""The command line: `paradec generate | compare | trace | demo | bench | methods | …`. It only assembles."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from paradec.errors import ExactnessError, InputError, ParadecError, Stopped

Repeat = tyro.conf.UseAppendAction
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
OUT, ERR = Console(highlight=False), Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class Sample:
    """How tokens are drawn; the same in every method."""

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Keep the most likely tokens that hold this much probability; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0 is off."""
    repetition: float = 1.0
    """Repetition penalty; 1 is off."""
    seed: int = 0
    """Seed of the noise; a row's noise depends on it and the row's number alone."""
    batch_size: int = 1
    """Rows decoded together."""
    raw: bool = False
    """Continue the prompt as it stands, without the chat template."""
    stop: Annotated[tuple[str, ...], Repeat] = ()
    """A string that ends the text; may be repeated."""


Shared = Annotated[Sample, tyro.conf.arg(name="")]
ModelName = Annotated[
    str, tyro.conf.arg(help="A preset, a folder, a .gguf file or a hub id; `paradec models` lists presets.")
]
MethodArgs = Annotated[
    tuple[str, ...], Repeat, tyro.conf.arg(help="An option of the method, key=value (compare: method.key=value).")
]


def generate(
    sample: Shared = Sample(),
    model: ModelName = "smollm2-135m",
    method: str = "ar",
    prompt: str | None = None,
    prompts: Path | None = None,
    limit: int | None = None,
    method_arg: MethodArgs = (),
    dtype: str = "float32",
    check: Annotated[bool, tyro.conf.arg(help="Try whether a diffusion model sees what its config declares.")] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Continue a prompt, or every prompt of a JSONL file."""
    from paradec import catalog

    options = catalog.parse(method, method_arg)
    request = vars(sample) | {"method": method}
    bad: list[str] = []
    texts = gather(prompt, prompts, limit, bad)
    lm = load_model(model, dtype, check)
    for first in range(0, len(texts), max(sample.batch_size, 1)):
        for result in generate_some(lm, texts, first, request, options, bad):
            if as_json:
                print(json.dumps(result.public(), ensure_ascii=False), flush=True)
            else:
                OUT.print(result.text, markup=False, soft_wrap=True)
                ERR.print(
                    f"[{result.method}: {result.new_tokens} tokens, {result.calls} calls, "
                    f"{result.tokens_per_call:.2f} a call, {result.seconds:.2f} s, {result.finish}]",
                    markup=False, style="dim",
                )  # fmt: skip
    return 1 if bad else 0


def generate_some(
    lm: Any, texts: list[str], first: int, request: dict[str, Any], options: dict[str, Any], bad: list[str]
) -> Iterator[Any]:
    """Results of the batch that starts at row `first`; prompts that cannot be decoded are named and left out."""
    from paradec.lm import Request

    ask = Request(**request)
    batch, rows = [], []
    for row, text in enumerate(texts[first : first + ask.batch_size], first):
        try:
            batch.append(lm.encode(text, raw=ask.raw))
            rows.append(row)
        except InputError as e:
            if len(texts) == 1:
                raise
            note(bad, f"Prompt {row + 1} is skipped: {e}")
    if batch:
        yield from lm.decode(lm.decoder(ask, options), batch, ask, rows, [texts[r] for r in rows])


def compare(
    sample: Shared = Sample(),
    model: ModelName = "smollm2-135m",
    methods: Annotated[str, tyro.conf.arg(help="Names, separated by commas; empty: some that the model can do.")] = "",
    prompt: str | None = None,
    prompts: Path | None = None,
    limit: int | None = None,
    repeats: int = 3,
    method_arg: MethodArgs = (),
    dtype: str = "float32",
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    html: Path | None = None,
) -> int:
    """Decode the same prompts with several methods, interleaved, and compare tokens, calls and time with ar."""
    from paradec import catalog
    from paradec.comparison import compare as run

    names = [n.strip() for n in methods.split(",") if n.strip()]
    options = split_options(names, method_arg) if names else {}
    bad: list[str] = []
    texts = gather(prompt, prompts, limit, bad)
    lm = load_model(model, dtype)
    if not names:
        names = list(catalog.USUAL[catalog.denoises(lm.model)])
        options = split_options(names, method_arg)
    report = run(lm, texts, names, repeats=repeats, method_args=options, **vars(sample))
    show_comparison(report)
    if json_path is not None:
        write(json_path, json.dumps(report.public(), indent=1))
    if html is not None:
        from paradec import viz

        write(
            html, viz.page([rows[0].trace() for rows in report.generations.values()], title=f"{model}: {texts[0][:60]}")
        )
    broken = report.broken() if dtype == "float32" else []
    if broken:
        names_ = ", ".join(f"{e.method} ({e.identical} of {e.total} rows)" for e in broken)
        raise ExactnessError(f"Declared exact, but not plain decoding's tokens in float32: {names_}. Report this.")
    return 1 if bad else 0


def trace(
    prompt: str,
    sample: Shared = Sample(),
    model: ModelName = "smollm2-135m",
    methods: str = "ar,prompt_lookup",
    method_arg: MethodArgs = (),
    dtype: str = "float32",
    html: Path | None = None,
    png: Path | None = None,
) -> int:
    """Draw which call settled which token: in the terminal, as a page (--html) or as a figure (--png)."""
    from paradec import viz

    names = [n.strip() for n in methods.split(",") if n.strip()]
    options = split_options(names, method_arg)
    lm = load_model(model, dtype)
    traces = []
    for name in names:
        result = lm.generate([prompt], method_args=options.get(name), **vars(sample) | {"method": name})[0]
        traces.append(result.trace())
        viz.render(traces[-1], OUT)
    if html is not None:
        write(html, viz.page(traces, title=f"{model}: {prompt[:60]}"))
    if png is not None:
        viz.decode_order(traces, png)
    return 0


def methods(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False, markdown: bool = False) -> int:
    """List the catalogue."""
    from rich.table import Table

    from paradec import catalog
    from paradec.decode.unmasking import compose as unmasking

    if as_json:
        print(json.dumps([row.public() for row in (*catalog.ROWS, *unmasking.PARTS.values())], indent=1))
        return 0
    if markdown:
        print(catalog.table() + "\n\n" + catalog.rules())
        return 0
    out = Table("name", "system", "arXiv", "exact: greedy", "sampled", "trained", box=None)
    for row in catalog.ROWS:
        yes = ["yes" if x else "no" for x in (row.exact_greedy, row.exact_sampled, row.trained)]
        out.add_row(row.name, row.title, row.arxiv or "-", *yes)
    OUT.print(out)
    OUT.print("\nOptions (--method-arg key=value) and their defaults:", style="dim")
    for row in catalog.ROWS:
        OUT.print(f"  {row.name}: " + ", ".join(f"{k}={v}" for k, v in row.options().items()), markup=False)
    OUT.print("\nUnmasking rules for diffusion models, one for each slot, joined by +:", style="dim")
    for part in unmasking.PARTS.values():
        known = ", ".join(f"{k}={'…' if v is inspect.Parameter.empty else v}" for k, v in part.options().items())
        OUT.print(f"  {part.name:15} {part.slot:8} {part.title}: {known}", markup=False, soft_wrap=True)
    OUT.print("  all: " + ", ".join(f"{k}={v}" for k, v in unmasking.ENGINE.items()), markup=False)
    return 0


def models(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """List the presets that load without a path."""
    from rich.table import Table

    from paradec.io.resolve import PRESETS

    rows = [{"name": k, "summary": p.summary, "licence": p.license, "hub": p.hub} for k, p in PRESETS.items()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    out = Table("name", "summary", "licence", box=None)
    for row in rows:
        out.add_row(row["name"], row["summary"], row["licence"])
    OUT.print(out)
    OUT.print("Or name a folder in Hugging Face layout, a .gguf file, or a hub id such as org/name.", style="dim")
    return 0


def gather(prompt: str | None, path: Path | None, limit: int | None, bad: list[str]) -> list[str]:
    """The prompts that the options name: exactly one of --prompt and --prompts."""
    from paradec.prompts import read_prompts

    if (prompt is None) == (path is None):
        raise InputError("Give either --prompt TEXT or --prompts FILE.jsonl.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; {limit} was given.")
    return [prompt] if prompt is not None else read_prompts(path, lambda s: note(bad, s), limit)


def say(sentence: str) -> None:
    """On stderr, so that stdout holds results alone."""
    ERR.print(sentence, markup=False, style="dim", soft_wrap=True)


def note(bad: list[str], sentence: str) -> None:
    """Say what is wrong, and remember that something was."""
    bad.append(sentence)
    ERR.print(sentence, style="yellow", markup=False, soft_wrap=True)


def split_options(names: Sequence[str], pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`method.key=value` by method; `key=value` goes to every method that has the key."""
    from paradec import catalog

    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        if not catalog.unmasks(name):
            catalog.find(name)
    for pair in pairs:
        key, _, value = pair.partition("=")
        owner, dot, rest = key.partition(".")
        takers, own = ([owner], rest) if owner in options and dot else (None, key)
        takers = takers or [name for name in names if catalog.takes(name, key)]
        if dot and not takers:
            raise InputError(f"{pair!r} is meant for {owner}, which is not among the methods {', '.join(names)}.")
        if not takers:
            raise InputError(f"None of {', '.join(names)} has an option {key!r}; `paradec methods` lists them.")
        for name in takers:
            options[name] |= catalog.parse(name, [f"{own}={value}"])
    return options


def load_model(name: str, dtype: str, check: bool = False) -> Any:
    """Load a model, with the compile cache on and progress on stderr."""
    from paradec.loading import load

    cache_compilations()
    return load(name, dtype=dtype, progress=True, check=check)


def cache_compilations() -> None:
    """Keep compiled programs between runs, unless the user has chosen a place or switched it off (empty string)."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    from paradec.io.wheels import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def show_comparison(report: Any) -> None:
    """Print a comparison as a table."""
    from paradec import viz

    rows = [
        viz.Row(
            method=e.method,
            exact=e.exact,
            tokens_per_call=e.tokens_per_call,
            calls=e.calls,
            tokens_per_second=e.tokens_per_second,
            speedup=e.speedup,
            identical=(e.identical, e.total),
        )
        for e in report.methods
    ]
    s = report.settings
    prompts = f"{s['prompts']} prompt{'s' * (s['prompts'] != 1)}"
    title = f"{report.model}, {s['dtype']}, batch {s['batch_size']}, {prompts}, {report.device}"
    OUT.print(viz.table(rows, title=title))


def write(path: Path, text: str) -> None:
    """Write a whole file or none, and say so."""
    from paradec.io import text_file

    text_file.write(path, text)
    say(f"Wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a `ParadecError` becomes its sentence on stderr and status 2."""
    from paradec.demo import demo
    from paradec.evals.command import bench

    commands = {
        "generate": generate,
        "compare": compare,
        "trace": trace,
        "demo": demo,
        "bench": bench,
        "methods": methods,
        "models": models,
    }
    with contextlib.suppress(ImportError):
        from paradec.explain import command

        commands["explain"] = command
    return guarded(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands, prog="paradec", description="Decode language models in parallel.", args=argv, config=CONFIG
        )
    )


def guarded(program: Callable[[], int]) -> int:
    """The exit status of a program; errors that are the user's to mend become sentences on stderr."""
    try:
        return program()
    except Stopped as e:
        ERR.print(str(e), markup=False, soft_wrap=True)
        return os.EX_TEMPFAIL
    except ParadecError as e:
        ERR.print(f"paradec: {e}", style="red", markup=False, soft_wrap=True)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as e:
        ERR.print(str(e) or "Interrupted.", markup=False, soft_wrap=True)
        return 130
