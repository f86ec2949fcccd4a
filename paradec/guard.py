"""How a program ends: errors as sentences, and Ctrl-C, SIGTERM or a closed pipe without a traceback.

Nothing heavy is imported here, so that a program is guarded before it loads what takes seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from paradec.errors import ParadecError, Stopped

ASKS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
PATIENCE = 2.0
"""Seconds that a command may take to end after Ctrl-C, before it is ended."""


def guarded(program: Callable[[], int], patience: float | None = None) -> int:
    """The exit status of a program; errors that are the user's to mend become sentences on stderr and status 2.

    SIGINT gives 130 and SIGTERM 143, whatever error they come out as. With `patience` they end the whole process that
    many seconds after they came, also where Python cannot be reached: inside the compiler, say. Files are written whole
    or not at all (`io.whole_file`), so nothing is half when it goes.
    """
    with Asked(patience) as asked:
        try:
            status = _called(program)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a closed pipe is still an answer and not a complaint at the exit
            return status
        except BaseException as error:
            if asked.by is not None:
                own = isinstance(error, KeyboardInterrupt) and str(error)
                complain(own or ASKS[signal.Signals(asked.by)])
                return 128 + asked.by
            if (meant := status_of(error)) is None:
                raise
            return meant


def _called(program: Callable[[], int]) -> int:
    """The program's status, also where it leaves by `sys.exit`."""
    try:
        return program()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            complain(leaving.code)
            return 1
        return leaving.code or 0


def status_of(error: BaseException) -> int | None:
    """The exit status that an error means, its sentence being said. None: it is nobody's to mend, and a bug of ours."""
    match error:
        case Stopped():
            complain(str(error))
            return os.EX_TEMPFAIL
        case ParadecError():
            complain(f"paradec: {error}", style="red")
            return 2
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
            return 1
        case KeyboardInterrupt():
            complain(str(error) or ASKS[signal.SIGINT])
            return 130
        case OSError(strerror=str(reason)):
            complain(f"paradec: {reason}{f': {error.filename}' if error.filename else ''}.", style="red")
            return 2
    if _out_of_memory(error):
        complain("paradec: There is not enough memory. Ask for fewer rows at once, or fewer tokens.", style="red")
        return 2
    return None


def _out_of_memory(error: BaseException) -> bool:
    theirs = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in str(error)
    return theirs or isinstance(error, MemoryError)


def complain(sentence: str, style: str = "") -> None:
    """One sentence on stderr."""
    from paradec.console import ERR

    ERR.print(sentence, style=style or None, markup=False, soft_wrap=True)


class Asked:
    """While it is entered, the first SIGINT or SIGTERM raises KeyboardInterrupt in the main thread, and `by` names it.

    The second ends the process, and so does the first after `patience` seconds. A signal that is ignored stays so. With
    a patience the process is taken to be the program's own, and on leaving, a signal ends it at once.
    """

    def __init__(self, patience: float | None) -> None:
        self.by: int | None = None
        self._patience = patience
        self._before: dict[int, Any] = {}
        self._ends: tuple[socket.socket, ...] = ()

    def __enter__(self) -> Asked:
        if threading.current_thread() is not threading.main_thread():
            return self  # where no signal ever arrives
        if self._patience is not None:
            # The kernel's handler writes a byte here, and needs no Python to do it; a thread waits for it.
            self._ends = socket.socketpair()
            self._ends[1].setblocking(False)
            signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._wait, daemon=True).start()
        for number in ASKS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if self._patience is None else _leave)

    def _ask(self, number: int, frame: Any) -> NoReturn:
        if self.by is not None:
            _leave(number)
        self.by = number
        raise KeyboardInterrupt

    def _wait(self) -> None:
        """In a thread of its own, for as long as the process lives."""
        while self._ends[0].recv(1)[0] not in self._before:
            pass
        threading.Event().wait(self._patience)
        _leave(self.by or signal.SIGINT)


def _leave(number: int, frame: Any = None) -> NoReturn:
    """End the process here and now, with the cursor back that a drawing may have hidden."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.write(stream, b"\x1b[?25h\n")
    os._exit(128 + number)
