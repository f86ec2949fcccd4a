"""Options that several commands share, what they mean, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from paradec.console import note, say
from paradec.errors import InputError

Repeat = tyro.conf.UseAppendAction
TOP_P = "Keep the most likely tokens that hold this much probability; 1 is off."
MIN_P = "Drop tokens less likely than this share of the likeliest; 0 is off."
LOGPROBS = "Tell each token's log-probability, and those of so many of the likeliest (JSON)."
FIGURES = (".png", ".pdf", ".svg")


def given(kind: type, metavar: str, text: str, default: str = "(optional)", name: str | None = None) -> Any:
    """An option that may be left out. Given, it is of its kind whatever it says, the word None included."""
    return tyro.conf.arg(constructor=kind, metavar=metavar, help=text, help_behavior_hint=default, name=name)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; the same in every method. What is None was not asked for."""

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: Annotated[float | None, given(float, "FLOAT", "Of the draws; 0 is greedy.", "(default: 0)")] = None
    top_k: Annotated[int | None, given(int, "INT", "Keep the k most likely tokens; 0 is off.", "(default: 0)")] = None
    top_p: Annotated[float | None, given(float, "FLOAT", TOP_P, "(default: 1)")] = None
    min_p: Annotated[float | None, given(float, "FLOAT", MIN_P, "(default: 0)")] = None
    repetition: Annotated[float | None, given(float, "FLOAT", "Repetition penalty; 1 is off.", "(default: 1)")] = None
    defaults: Literal["paradec", "model"] = "paradec"
    """Whose sampling counts where an option is not given: paradec's, or what the model's generation_config.json asks
    for."""
    seed: int = 0
    """Seed of the noise; a row's noise depends on it and the row's number alone."""
    batch_size: int = 1
    """Rows decoded together."""
    raw: bool = False
    """Continue the prompt as it stands, without the chat template."""
    system: str = ""
    """A system message before every conversation that has none."""
    template_arg: Annotated[tuple[str, ...], Repeat] = ()
    """A variable of the chat template, key=value, the value as JSON has it."""
    logprobs: Annotated[int | None, given(int, "INT", LOGPROBS)] = None
    stop: Annotated[tuple[str, ...], Repeat] = ()
    """A string that ends the text."""

    def request(self, lm: Any = None, rows: int | None = None, **more: Any) -> dict[str, Any]:
        """The fields of a `Request`, checked. Of a model, with what it asks for where that is wanted.

        A batch is no larger than there are rows: others would be computed for nobody.
        """
        from paradec.lm import Request

        given = {name: value for name, value in vars(self).items() if value is not None and name != "defaults"}
        given["template_args"] = dict(map(variable, given.pop("template_arg")))
        asked = lm.defaults if lm is not None and self.defaults == "model" else {}
        fields = dict(asked) | given | more
        Request(**fields)
        return fields if rows is None else fields | {"batch_size": min(self.batch_size, rows)}

    def tell(self, lm: Any) -> None:
        """Say it where a model asks for another sampling than it gets."""
        from paradec.lm import Request

        plain = Request()
        others = [k for k, v in lm.defaults.items() if getattr(self, k) is None and v != getattr(plain, k)]
        if others and self.defaults == "paradec":
            asked = ", ".join(f"{name} {lm.defaults[name]:g}" for name in others)
            say(f"{lm.name} asks to be sampled with {asked}; --defaults model does that.")


Shared = Annotated[SamplingOptions, tyro.conf.arg(name="")]
ModelName = Annotated[
    str, tyro.conf.arg(help="A preset, a folder, a .gguf file or a hub id; `paradec models` lists presets.")
]
MethodName = Annotated[
    str, tyro.conf.arg(help="A method, or unmasking rules joined by +; `paradec methods` lists them.")
]
MethodArgs = Annotated[
    tuple[str, ...],
    Repeat,
    tyro.conf.arg(help="An option of the method, key=value; of one method among several, method.key=value."),
]
MethodFiles = Annotated[
    tuple[str, ...],
    Repeat,
    tyro.conf.arg(help="A method of your own, mine.py:MyDrafter: the class of a drafter or rule, or its System.",
                  name="method-file", metavar="FILE:NAME"),
]  # fmt: skip
METHODS = "Methods, separated by commas."
PROMPTS = 'A JSONL file with a {"prompt": …}, {"question": …}, {"messages": …} or {"turns": …} a line.'
SAID = "What the user says or, with --raw, the text to continue; - reads it from stdin."
PromptText = Annotated[str | None, given(str, "TEXT", SAID)]
PromptFile = Annotated[Path | None, given(Path, "FILE", f"{PROMPTS} A .txt file is one prompt.")]
Limit = Annotated[int | None, given(int, "INT", "Read this many prompts of the file at most.")]
Dtype = Annotated[str, tyro.conf.arg(help="Type of the weights: float32, bfloat16 or float16.")]
Repeats = Annotated[int, tyro.conf.arg(help="Timed rounds after the one that compiles; 0: texts and calls alone.")]
JsonFile = Annotated[Path | None, given(Path, "FILE", "Write the numbers to this file, as JSON.", name="json")]
HtmlFile = Annotated[Path | None, given(Path, "FILE", "Write a page with the order of decoding to this file.")]
Figure = Annotated[Path | None, given(Path, "FILE", f"Draw a figure into this file: {', '.join(FIGURES)}.")]
Json = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON.")]


def gather(prompt: str | None, path: Path | None, limit: int | None, bad: list[str]) -> list[Any]:
    """The lines of prompts that the options name: exactly one of --prompt and --prompts."""
    from paradec.prompts import Line, read_lines

    if (prompt is None) == (path is None):
        raise InputError("Give either --prompt TEXT or --prompts FILE.jsonl.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; {limit} was given.")
    return [Line(1, check_prompt(prompt))] if prompt is not None else read_lines(path, lambda s: note(bad, s), limit)


def variable(pair: str) -> tuple[str, Any]:
    """The name and the value of `key=value`; what is no JSON is a string."""
    name, is_one, value = pair.partition("=")
    if not name or not is_one:
        raise InputError(f"A variable of the chat template reads key=value; {pair!r} was given.")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):  # the second for what is nested too deeply
        return name, value


def check_prompt(prompt: str) -> str:
    """The prompt, if there is anything in it. A lone - is what stdin says."""
    if prompt == "-":
        try:
            prompt = sys.stdin.read().removesuffix("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read a prompt from stdin: {error}.") from error
    if not prompt.strip():
        raise InputError("The prompt is empty; give at least one word.")
    return prompt


def listed(names: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def added(files: Sequence[str]) -> list[str]:
    """The names of the methods that --method-file brings; they stand in the catalogue from now on."""
    from paradec import catalog

    names = []
    for given in files:
        path, colon, name = given.rpartition(":")
        if not colon or not path or not name:
            raise InputError(f"A method of your own reads FILE:NAME, as in mine.py:MyDrafter; {given!r} was given.")
        names.append(catalog.from_file(Path(path), name).name)
    return names


def split_options(names: Sequence[str], pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`method.key=value` by method; `key=value` goes to every method that has the key. All are checked."""
    from paradec import composition

    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        composition.engine_of(name)
    for pair in pairs:
        key, _, value = pair.partition("=")
        owner, dot, rest = key.partition(".")
        takers, own = ([owner], rest) if owner in options and dot else (None, key)
        takers = takers or [name for name in names if composition.takes(name, key)]
        if dot and not takers:
            raise InputError(f"{pair!r} is meant for {owner}, which is not among the methods {', '.join(names)}.")
        if not takers:
            raise InputError(f"None of {', '.join(names)} has an option {key!r}; `paradec methods` lists them.")
        for name in takers:
            options[name] |= composition.parse(name, [f"{own}={value}"])
    for name, own in options.items():
        composition.check_options(name, own)
    return options


def load_model(name: str, dtype: str, check: bool = False) -> Any:
    """Load a model, with the compile cache on and progress on stderr."""
    from paradec.compile_cache import cache_compilations
    from paradec.loading import load

    cache_compilations()
    return load(name, dtype=dtype, progress=True, check=check)
