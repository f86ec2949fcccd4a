"""How a program ends: errors as sentences, and Ctrl-C, SIGTERM or a closed pipe without a traceback.

Nothing heavy is imported here, so that a program is guarded before it loads what takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

from paradec.errors import ParadecError, Stopped

ASKS: Mapping[int, str] = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
PATIENCE = 2.0
"""Seconds that a command may take to end after Ctrl-C, before it is ended."""


def guarded(program: Callable[[], int], patience: float | Asked | None = None) -> int:
    """The exit status of a program; errors that are the user's to mend become sentences on stderr and status 2.

    A KeyboardInterrupt is status 130. With `patience` the process is the program's own: SIGINT ends it with 130 and
    SIGTERM with 143, whatever error they come out as, and it is gone that many seconds after them also where Python
    cannot be reached, inside the compiler, say. Files are written whole or not at all (`io.whole_file`), so nothing is
    half when it goes. A program whose own imports take seconds has made an `Asked` before them, and gives that.
    """
    asked = Asked(patience) if isinstance(patience, (int, float)) else patience
    try:
        status = _called(program)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a closed pipe is still an answer and not a complaint at the exit
        return status
    except BaseException as error:
        if asked is not None and asked.by is not None:
            asked.end(str(error) if isinstance(error, KeyboardInterrupt) else "")
        if (meant := status_of(error)) is None:
            raise
        return meant
    finally:
        if asked is not None:
            asked.over()


def _called(program: Callable[[], int]) -> int:
    """The program's status, also where it leaves by `sys.exit`."""
    try:
        return program()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            _complain(leaving.code)
            return 1
        return leaving.code or 0


def status_of(error: BaseException) -> int | None:
    """The exit status that an error means, its sentence being said. None: it is nobody's to mend, and a bug of ours."""
    match error:
        case Stopped():
            _complain(str(error))
            return os.EX_TEMPFAIL
        case ParadecError():
            _complain(f"paradec: {error}", style="red")
            return 2
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
            return 1
        case KeyboardInterrupt():
            _complain(str(error) or ASKS[signal.SIGINT])
            return 130
        case OSError(strerror=str(reason)):
            _complain(f"paradec: {reason}{f': {error.filename}' if error.filename else ''}.", style="red")
            return 2
    if _out_of_memory(error):
        _complain("paradec: There is not enough memory. Ask for fewer rows at once, or fewer tokens.", style="red")
        return 2
    return None


def _complain(sentence: str, style: str = "") -> None:
    from paradec.console import complain  # here, because it takes a moment that a signal may fall into

    complain(sentence, style)


def _out_of_memory(error: BaseException) -> bool:
    theirs = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    return theirs or isinstance(error, MemoryError)


class Asked:
    """What a process of its own does when it is told to end: the first SIGINT or SIGTERM raises KeyboardInterrupt in
    the main thread, and `by` names it.

    The second ends the process, and so does the first after `patience` seconds, or at once where modules are being
    imported: those in C crash when they are interrupted. A signal that is ignored stays so, and one that another has
    taken over is the other's to answer, as long as that `waits`: a training run saves first. `terminated` is the exit
    status of SIGTERM.
    """

    def __init__(self, patience: float = PATIENCE, terminated: int = 128 + signal.SIGTERM) -> None:
        self.by: int | None = None
        self._patience = patience
        self._status = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: terminated}
        self._heard = [number for number in ASKS if signal.getsignal(number) is not signal.SIG_IGN]
        self._watch()
        for number in self._heard:
            signal.signal(number, self._ask)

    def over(self) -> None:
        """The program has ended, and Python has not: a signal now ends it without a word."""
        for number in self._heard:
            signal.signal(number, self._leave)

    def end(self, sentence: str) -> NoReturn:
        """End the process here: what compiled code was at when it was interrupted cannot be taken apart in order."""
        _complain(sentence or ASKS[self.by])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(self._status[self.by])

    def _ask(self, number: int, frame: FrameType | None) -> NoReturn:
        if self.by is not None or _importing(frame):
            self._leave(number)
        self.by = number
        raise KeyboardInterrupt

    def _watch(self) -> None:
        """The kernel's handler writes a byte, and needs no Python to do it; a thread of its own waits for it."""
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        complained = sys.unraisablehook
        # Where Python cannot raise what it was asked to, it says so at length.
        sys.unraisablehook = lambda lost: complained(lost) if self.by is None else None

        def wait() -> None:
            while _waits(signal.getsignal(number := os.read(heard, 1)[0]), self._ask):
                pass
            threading.Event().wait(self._patience)
            self._leave(number)

        threading.Thread(target=wait, daemon=True).start()

    def _leave(self, number: int, frame: FrameType | None = None) -> NoReturn:
        leave(number, self._status[number])


def _waits(answers: object, ours: object) -> bool:
    return answers != ours and getattr(answers, "waits", True)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave(number: int, status: int) -> NoReturn:
    """End the process here and now, with the cursor back that a drawing may have hidden."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            os.write(stream, b"\x1b[?25h\n" if os.isatty(stream) else b"")
    with contextlib.suppress(OSError):
        os.write(2, f"{ASKS[number]}\n".encode())
    os._exit(status)
