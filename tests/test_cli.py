"""The command line: its JSON is a contract, its errors are sentences."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import json
import shutil
import subprocess

import jax
import pytest
from rich.console import Console

import paradec
from paradec import cli, console
from paradec.cli import main
from tests.fixtures import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run(capsys, *argv):
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_generate_prints_one_object_a_line(model, capsys):
    status, out, _ = run(
        capsys, "generate", "--model", model, "--method", "jacobi", "--prompt", "abc", "--max-new-tokens", 8,
        "--method-arg", "window=3", "--json",
    )  # fmt: skip
    (line,) = out.splitlines()
    row = json.loads(line)
    assert status == 0
    assert list(row) == [
        "prompt", "text", "token_ids", "new_tokens", "calls", "tokens_per_call", "seconds", "method", "finish",
    ]  # fmt: skip
    assert row["prompt"] == "abc" and row["method"] == "jacobi" and row["new_tokens"] == len(row["token_ids"]) <= 8


def test_generate_reads_files_and_names_bad_lines(model, capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "one"}\n\n{"question": "two"}\n{"turns": ["three", "more"]}\n{"prompt": }\n{"text": "x"}\n'
        '{"prompt": ""}\n[1]\n{"turns": []}\n'
    )
    status, out, err = run(
        capsys, "generate", "--model", model, "--prompts", file, "--max-new-tokens", 4, "--batch-size", 2, "--json"
    )
    one, two, talk = map(json.loads, out.splitlines())
    assert (one["prompt"], two["prompt"], talk["turns"][0]["prompt"]) == ("one", "two", "three")
    assert len(talk["turns"]) == 2 and talk["turns"][1]["prompt"].endswith("user: more")
    assert status == 1
    for number in (5, 6, 7, 8, 9):
        assert f"line {number} is skipped" in err
    assert "line 2" not in err


def test_a_prompt_that_is_too_long_does_not_stop_the_others(model, capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "one"}\n{"prompt": "' + "y" * 900 + '"}\n{"prompt": "three"}\n')
    status, out, err = run(capsys, "generate", "--model", model, "--prompts", file, "--max-new-tokens", 4, "--json")
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["one", "three"]
    assert status == 1 and "Prompt 2 is skipped" in err


def terminal(monkeypatch):
    """What a terminal is shown of loading and progress."""
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=80, height=20, _environ={"TERM": "xterm"})
    monkeypatch.setattr(console, "ERR", made)
    return shown


def test_compare_writes_its_contract_and_shows_how_far_it_is(model, capsys, tmp_path, monkeypatch):
    shown = terminal(monkeypatch)
    file, out_file, figure = tmp_path / "p.jsonl", tmp_path / "out.json", tmp_path / "out.png"
    file.write_text('{"prompt": "one one one"}\n{"prompt": "two"}\n')
    status, out, _ = run(
        capsys, "compare", "--model", model, "--methods", "ar,prompt_lookup", "--prompts", file, "--max-new-tokens", 8,
        "--batch-size", 2, "--repeats", 1, "--json", out_file, "--method-arg", "prompt_lookup.num_draft=3", "--texts",
        "--png", figure,
    )  # fmt: skip
    report = json.loads(out_file.read_text())
    assert status == 0 and "prompt_lookup" in out
    assert {"model", "device", "versions", "methods"} <= set(report)
    wanted = {
        "method", "tokens_per_call", "calls", "tokens_per_second", "speedup", "identical", "total", "first_divergence",
        "acceptance_by_depth",
    }  # fmt: skip
    assert [e["method"] for e in report["methods"]] == ["ar", "prompt_lookup"]
    assert all(wanted <= set(e) for e in report["methods"])
    assert len(report["methods"][1]["acceptance_by_depth"]) == 3
    texts = [[g["text"] for g in e["generations"]] for e in report["methods"]]
    assert texts[0] == texts[1] and len(texts[0]) == 2 and not report["partial"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "Comparing 2 methods" in shown.getvalue() and "4/4" in shown.getvalue(), "warm-up and one turn, two methods"


def stopped(monkeypatch, place, number):
    """Ctrl-C meets the comparison of this command before that many cells are through."""

    def track(cells, label):
        yield from itertools.islice(cells, number)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{place}.track", track)


def test_an_interrupted_comparison_shows_what_it_has(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "sort - - D A C B F E"}\n' * 3)
    ask = ("compare", "--model", "lists", "--prompts", "p.jsonl", "--methods", "threshold", "--max-new-tokens", 6)
    files = ("--repeats", 1, "--json", "x.json", "--html", "x.html", "--png", "x.png")
    stopped(monkeypatch, "paradec.commands.compare", 11)
    status, out, err = run(capsys, *ask, *files)
    assert status == 130 and err.endswith("Interrupted.\n") and "Traceback" not in err
    assert "partial: 2 of 3 prompts, 1 of 1 round" in out and "threshold" in out
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["partial"] and report["asked"] == {"prompts": 3, "repeats": 1} and report["settings"]["prompts"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl", "x.json", "x.html", "x.png"}
    stopped(monkeypatch, "paradec.commands.compare", 1)
    for path in tmp_path.glob("x.*"):
        path.unlink()
    status, out, err = run(capsys, *ask, *files)
    assert (status, out, err) == (130, "", "Interrupted.\n") and not list(tmp_path.glob("x.*"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere bfloat16 is fast")
def test_a_type_that_is_slow_here_is_named(model, monkeypatch):
    shown = terminal(monkeypatch)
    paradec.load(model, dtype="float32")
    assert "slower" not in shown.getvalue()
    paradec.load(model, dtype="bfloat16")
    assert "bfloat16 takes half the memory of float32, and on a CPU" in shown.getvalue()
    assert "several times slower" in " ".join(shown.getvalue().split())


def test_trace_writes_a_page_and_a_figure(model, capsys, tmp_path):
    page, figure = tmp_path / "t.html", tmp_path / "t.png"
    status, out, _ = run(
        capsys, "trace", "--model", model, "--prompt", "abc abc abc", "--methods", "ar,prompt_lookup",
        "--max-new-tokens", 8, "--html", page, "--png", figure,
    )  # fmt: skip
    assert status == 0 and "prompt_lookup" in out
    assert "prompt_lookup" in page.read_text() and figure.read_bytes().startswith(b"\x89PNG")


def test_the_demo_draws_what_it_timed_or_had_timed(model, capsys, tmp_path, monkeypatch):
    figure = tmp_path / "demo.png"
    ask = ("demo", "--model", model, "--prompt", "-", "--max-new-tokens", 8, "--repeats", 2, "--png", figure)
    monkeypatch.setattr("sys.stdin", io.StringIO("abc abc abc"))
    status, out, _ = run(capsys, *ask)
    assert status == 0 and "Prompt: abc abc abc" in out and figure.read_bytes().startswith(b"\x89PNG")
    figure.unlink()
    stopped(monkeypatch, "paradec.commands.demo", 9)  # four methods compiled and timed once, one a second time
    monkeypatch.setattr("sys.stdin", io.StringIO("abc abc abc"))
    status, out, err = run(capsys, *ask)
    assert (
        status == 130
        and "partial: 1 of 1 prompt, 1 of 2 rounds" in " ".join(out.split())
        and err.endswith("Interrupted.\n")
    )
    assert figure.exists() and "Weights were ready" not in out


def test_methods_and_models(capsys):
    status, out, _ = run(capsys, "methods", "--json")
    assert status == 0 and {row["name"] for row in json.loads(out)} >= {"ar", "prompt_lookup"}
    status, out, _ = run(capsys, "models")
    assert status == 0 and "smollm2-135m" in out


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--prompt", "x", "--method", "jakobi"], "Did you mean 'jacobi'"),
        (["--prompt", "x", "--method-arg", "window=3"], "option of ar"),
        (["--prompts", "no-such-file.jsonl"], "Cannot read"),
        ([], "Give either"),
        (["--prompt", "x", "--prompts", "y"], "Give either"),
        (["--prompt", "x", "--dtype", "int8"], "cannot be loaded as 'int8'. Use float32"),
        (["--prompt", "None", "--raw", "--stop", ""], "A stop string is empty"),
        (["--prompt", "x", "--temperature", "nan"], "temperature must be"),
        (["--prompt", "x", "--method", "threshold", "--method-arg", "tau=nan"], "tau is a confidence"),
        (
            ["--prompt", "x", "--method", "threshold", "--method-arg", f"block={10**20}"],
            "its default is the model's own",
        ),
        (["--prompt", "x", "--method", "jacobi", "--method-arg", "window=0"], "at least 1"),
        (["--prompt", "x", "--method", "jacobi", "--method-arg", f"window={10**20}"], "is a whole number"),
        (["--prompt", "x", "--method", "quota", "--method-arg", f"steps={10**20}"], "Option steps of quota cannot be"),
        (["--prompts", "p" * 5000], "Cannot read"),
        (["--prompts", "a\0b"], "Cannot read"),
    ],
)
def test_bad_input_is_a_sentence_and_status_2(model, capsys, argv, hint):
    status, out, err = run(capsys, "generate", "--model", model, *argv)
    assert status == 2 and out == ""
    assert hint in err and "Traceback" not in err


SORT = ("--model", "lists", "--prompt", "sort - - D A C B F E", "--max-new-tokens", "6")
TRACE, COMPARE, BENCH = ("trace", *SORT), ("compare", *SORT), ("bench", "parallelbench")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ((*TRACE, "--png", "none/x.png"), "There is no folder none"),
        ((*TRACE, "--png", "x.docx"), "must end in .png or .pdf or .svg"),
        ((*TRACE, "--png", "x"), "must end in .png or .pdf or .svg"),
        ((*TRACE, "--html", ""), "is a folder"),
        ((*TRACE, "--html", "x.png", "--png", "x.png"), "name one file"),
        ((*TRACE, "--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
        (("trace", "--prompt", " "), "The prompt is empty"),
        ((*COMPARE, "--json", "/proc/x.json"), "cannot be written"),
        ((*COMPARE, "--html", "."), "is a folder"),
        ((*COMPARE, "--png", "x.docx"), "must end in .png or .pdf or .svg"),
        ((*COMPARE, "--json", "x.png", "--png", "x.png"), "name one file"),
        ((*COMPARE, "--texts"), "--json FILE"),
        ((*COMPARE, "--repeats", "-1"), "repeats must be at least 0"),
        ((*COMPARE, "--methods", "threshold", "--method-arg", "tau=-1"), "tau is a confidence"),
        ((*BENCH, "--items", "0"), "copy takes 1 to 256 items; 0 were given"),
        ((*BENCH, "--items", "1000000"), "256 items"),
        ((*BENCH, "--items", "100", "--operations", "copy,shuffle"), "more orders than an exact table holds"),
        ((*BENCH, "--items", "1", "--operations", "copy,remove"), "remove takes 2 to"),
        ((*BENCH, "--temperature", "nan"), "temperature must be 0"),
        ((*BENCH, "--operations", "copy,swap"), "no operation 'swap'"),
        ((*BENCH, "--operations", ""), "at least one operation"),
        ((*BENCH, "--rules", "random,wyno"), "rule to sweep"),
        ((*BENCH, "--png", "x.docx"), "must end in"),
        ((*BENCH, "--json", "none/x"), "There is no folder none"),
        ((*BENCH, "--model", "lists", "--tasks", "copy,sumary"), "ParallelBench task"),
        ((*BENCH, "--model", "lists", "--tasks", ","), "at least one task"),
        ((*BENCH, "--model", "lists", "--methods", "tresh"), "no method named 'tresh'"),
        ((*BENCH, "--model", "lists", "--batch-size", "0"), "batch_size must be at least 1"),
        (("demo", "--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
        (("demo", "--repeats", "-1"), "repeats must be at least 0"),
        (("demo", "--png", "none/x.png"), "There is no folder none"),
        (("demo", "--prompt", ""), "The prompt is empty"),
        (("explain", "--model", "tinny"), "Did you mean 'tiny'"),
        (("explain", "--model", "tiny", "--dtype", "int8"), "Use float32"),
        (("explain", "--model", "tiny", "--method", "jacobi", "--method-arg", "window=0"), "at least 1"),
    ],
    ids=lambda value: " ".join(value[-4:]) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_said_before_any_work(capsys, monkeypatch, tmp_path, argv, hint):
    """No model is loaded, nothing is decoded or compiled, and no file is left."""

    def work(*_, **__):
        pytest.fail("work began")

    for place in ("paradec.loading.load", "paradec.evals.parallelbench.exact._measure", "paradec.explain.api.ask"):
        monkeypatch.setattr(place, work)
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and not list(tmp_path.iterdir())
    assert hint in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["m" * 5000, "", "a\0b", "~nobody/x", "/", "/dev/null", "\udcff", "a/" * 2000])
def test_names_that_mean_no_model(capsys, name):
    status, _, err = run(capsys, "generate", "--model", name, "--prompt", "x")
    assert status == 2 and 0 < len(err) < 500 and "Traceback" not in err


def test_a_model_says_how_it_wants_to_be_sampled(capsys, tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    wanted = {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(wanted))
    ask = ("generate", "--model", folder, "--prompt", "abc", "--max-new-tokens", 8, "--json")
    plain, told = run(capsys, *ask)[1:]
    assert told.count("temperature 0.6, top_p 0.95; --defaults model does that.") == 1
    text = lambda out: json.loads(out)["token_ids"]
    status, out, told = run(capsys, *ask, "--defaults", "model")
    assert status == 0 and "--defaults" not in told
    asked = ("--temperature", 0.6, "--top-p", 0.95)
    assert text(out) == text(run(capsys, *ask, *asked)[1]) != text(plain)
    assert text(run(capsys, *ask, "--defaults", "model", "--temperature", 0)[1]) == text(plain), "options win"


def test_a_word_is_no_missing_option(model, capsys):
    status, out, _ = run(capsys, "generate", "--model", model, "--prompt", "None", "--max-new-tokens", 2, "--json")
    assert status == 0 and json.loads(out)["prompt"] == "None"


def test_methods_show_what_they_take(capsys):
    _, out, _ = run(capsys, "methods")
    assert "draft_model: draft=MODEL or layers:N" in out and "medusa: heads=FILE" in out
    assert "block=the model's own" in out and "block=32" not in out


def test_the_version_is_the_packages(capsys):
    assert run(capsys, "--version") == (0, f"paradec {importlib.metadata.version('paradec')}\n", "")


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_tyro_paradec
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_shell_completes_commands_and_options(capsys, tmp_path):
    script = tmp_path / "paradec"
    assert run(capsys, "--tyro-write-completion", "bash", script)[0] == 0
    status, out, _ = run(capsys, "--tyro-print-completion", "bash")
    assert status == 0 and out.strip() == script.read_text().strip()
    tab = lambda *words: subprocess.run(
        ["bash", "-c", COMPLETE, "bash", script, "paradec", *words], text=True, capture_output=True, check=True
    ).stdout.split()
    assert tab("co") == ["compare"]
    assert {*tab("compare", "--re")} == {"--repeats", "--repetition"}
    assert tab("generate", "--defaults", "m") == ["model"]


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_a_shell_has_a_script(capsys, shell):
    status, out, _ = run(capsys, "--tyro-print-completion", shell)
    assert status == 0 and "--max-new-tokens" in out and "explain" in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["print", "tcsh"], "Known: bash"), (["print"], "SHELL is bash"), (["write", "bash"], "SHELL FILE"),
     (["write", "bash", "/none/x"], "No such file")],
)  # fmt: skip
def test_a_completion_that_cannot_be_is_a_sentence(capsys, words, hint):
    status, out, err = run(capsys, f"--tyro-{words[0]}-completion", *words[1:])
    assert status == 2 and out == "" and hint in err and "Traceback" not in err


def test_unknown_model(capsys):
    status, _, err = run(capsys, "generate", "--model", "smollm2-135", "--prompt", "x")
    assert status == 2 and "Did you mean 'smollm2-135m'" in err


def test_exactness_is_checked(model, capsys, tmp_path, monkeypatch):
    from paradec import composition

    monkeypatch.setattr(composition, "promises", lambda *_: True)
    status, _, err = run(
        capsys, "compare", "--model", model, "--methods", "jacobi", "--prompt", "abc abc", "--temperature", "2",
        "--max-new-tokens", 24, "--repeats", 1, "--method-arg", "accept=typical",
    )  # fmt: skip
    assert status == 2 and "jacobi (0 of 1 rows)" in err
