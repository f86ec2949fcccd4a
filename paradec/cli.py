"""The command line: `paradec generate | compare | trace | demo | bench | methods | …`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from paradec import __version__
from paradec.errors import InputError, UnknownName
from paradec.guard import PATIENCE, guarded

PRINT, WRITE = "--tyro-print-completion", "--tyro-write-completion"
SHELLS = ("bash", "fish", "zsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a `ParadecError` becomes its sentence on stderr and status 2.

    Without `argv` the command is that of the process, which ends within seconds of a Ctrl-C, whatever it is at.
    """
    return guarded(lambda: run(argv), PATIENCE if argv is None else None)


def run(argv: Sequence[str] | None) -> int:
    """The command that the words name."""
    import tyro

    words = sys.argv[1:] if argv is None else [*argv]
    if words == ["--version"]:
        print(f"paradec {__version__}")
        return 0
    if words[:1] in ([PRINT], [WRITE]):
        check_completion(words)
    if words[:1] == ["lm-eval"]:  # its options are its own
        from paradec.commands.harness import lm_eval

        return lm_eval(words[1:])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter must not end a decode
            stream.reconfigure(errors="backslashreplace")
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    about = (
        "Decode language models in parallel. --version prints which paradec this is.\n\n"
        "lm-eval, with its own options, is lm-evaluation-harness with --model paradec."
    )
    return tyro.extras.subcommand_cli_from_dict(
        commands(), prog="paradec", description=about, args=argv, config=options
    )


def check_completion(words: Sequence[str]) -> None:
    """Raise what is wrong with words that ask for a completion, which tyro would not say in a sentence."""
    wanted = [PRINT, "SHELL"] if words[0] == PRINT else [WRITE, "SHELL", "FILE"]
    if len(words) != len(wanted):
        raise InputError(f"Write {' '.join(wanted)}, where SHELL is {', '.join(SHELLS)}.")
    if words[1] not in SHELLS:
        raise UnknownName("shell with completions", words[1], SHELLS)


def commands() -> dict[str, Callable[..., int]]:
    """Every command by name."""
    from paradec.commands.bench import bench
    from paradec.commands.catalogue import methods, models
    from paradec.commands.compare import compare
    from paradec.commands.demo import demo
    from paradec.commands.explain import command
    from paradec.commands.generate import generate
    from paradec.commands.trace import trace

    found = {"generate": generate, "compare": compare, "trace": trace, "demo": demo, "bench": bench}
    return found | {"methods": methods, "models": models, "explain": command}
