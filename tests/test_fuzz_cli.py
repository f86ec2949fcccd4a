"""Every command with odd words: a status of its own, a sentence, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paradec import loading
from paradec.cli import main
from paradec.errors import ResourceError

pytestmark = pytest.mark.usefixtures("no_vast_allocation")

ODD = (
    "", " ", "None", "nan", "inf", "-inf", "1e999", "1e-320", "-1", "0", "1", "2", "3.5", "0x10", "1_0",
    "true", "=", "=1",
    str(2**31), str(2**63), "-" + "9" * 400, "x" * 5000, "a\0b", "\udcff", "🙂", "/", "/dev/null",
    "/dev/full", "/proc/x",
    ".", "..", "~", "none/x.json", "x.png", "x.docx", "p.jsonl", "'", "[bold]", "{}", ",", "+", "a,b", "threshold",
    "tau=0.5", "tau=nan", "tau", "block=0", "block=3", f"block={2**70}", "cache=dual", "cache=x", "steps=-1",
    "per_call=0",
    "threshold.tau=0.5", "nope.tau=1", "drafts=0", "most=0", "delimiter=1,x", "eos_policy=x",
    "synchronous_blocks=maybe", "score=x",
)  # fmt: skip
METHODS = (
    "ar", "quota", "threshold", "eb", "wino", "klass", "credit+threshold", "threshold+freedave", "prophet",
    "ada_block",
    "learned_filter", "oracle", "end_of_text", "quota+threshold", "local_leap+", "time_grid", "factor", "hierarchical",
)  # fmt: skip
SAMPLE = (
    "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition", "--defaults", "--seed",
    "--batch-size", "--stop",
)  # fmt: skip
PROMPT = ("--model", "lists", "--prompt", "sort - - D A C B F E", "--max-new-tokens", "6")
COMMANDS = {
    ("generate", *PROMPT): (
        *SAMPLE, "--method", "--method-arg", "--model", "--prompt", "--prompts", "--limit", "--dtype",
    ),
    ("generate", "--model", "lists", "--max-new-tokens", "6"): (*SAMPLE, "--prompts", "--limit", "--method"),
    ("compare", *PROMPT, "--repeats", "0", "--methods", "quota"): (
        *SAMPLE, "--methods", "--method-arg", "--repeats", "--json", "--html", "--png", "--texts", "--dtype",
        "--model", "--prompt", "--limit",
    ),
    ("trace", *PROMPT, "--methods", "quota"): (
        *SAMPLE, "--methods", "--method-arg", "--html", "--png", "--dtype", "--model", "--prompt",
    ),
    ("bench", "parallelbench", "--items", "0"): (
        "--operations", "--rules", "--decodes", "--temperature", "--limit", "--batch-size", "--png", "--json",
    ),
    ("bench", "--model", "lists", "--methods", "quota"): (
        "--tasks", "--batch-size", "--limit", "--methods", "--model",
    ),
    ("demo", "--model", "lists"): ("--max-new-tokens", "--prompt", "--repeats", "--model"),
    ("methods",): ("--json", "--markdown", "x"),
    ("models",): ("--json", "x"),
    ("explain", "--slots", "0"): (
        "--method", "--model", "--program", "--target", "--batch", "--mesh", "--dtype", "--block", "--short-list",
        "--method-arg",
    ),
}  # fmt: skip
"""What runs or fails quickly, and the options that come behind it."""


@st.composite
def argv(draw):
    words = draw(st.sampled_from(list(COMMANDS)))
    more: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        more.append(draw(st.sampled_from(COMMANDS[words])))
        if draw(st.integers(0, 9)):
            more.append(draw(st.sampled_from(ODD) | st.sampled_from(METHODS)))
    return [*words, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place of our own, where one file has prompts; the model is loaded once, and the network is not there."""
    place, here = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    (place / "p.jsonl").write_text('{"prompt": "copy - - A B"}\nnonsense\n{"prompt": "reverse - - A B C"}\n')
    real, kept = loading.load, {}

    def load(name: str, **how):
        if name != "lists":
            if os.path.lexists(name[:200].replace("\0", "")):
                return real(name, **how)
            raise ResourceError("The network is not there.")
        key = str(how.get("dtype"))
        if key not in kept:
            kept[key] = real(name, **how)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", load)
        os.chdir(place)
        yield place
        os.chdir(here)


def check(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    assert status in (0, 1, 2), words
    said = err.getvalue()
    assert "Traceback" not in said and "Warning" not in said, (words, said)
    if status == 2:
        assert said.strip() and len(said) < 20_000, words


LOOSE = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=20, derandomize=True, **LOOSE)
@given(words=argv())
def test_some(folder, words):
    check(words)


@settings(max_examples=200, **LOOSE)
@given(words=argv())
def test_hundreds(folder, words):
    check(words)
