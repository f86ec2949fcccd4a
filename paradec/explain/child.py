"""The process in which a request is compiled: started by `explain`, request in, report out, both JSON.

A device count, a platform and a TPU topology are fixed when jax starts, so none of them can be had in the process of
the caller, who may have chosen otherwise or hold a real accelerator.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence

from paradec import errors
from paradec.errors import ParadecError, ResourceError
from paradec.explain.request import ProgramRequest, Report

PATIENCE = 60.0
"""Seconds to wait for another process that has the TPU compiler's lock."""


def ask(request: ProgramRequest, program: Sequence[str] = ("-m", "paradec.explain")) -> Report:
    """Have a request compiled in a process of its own, ``program`` being what Python is to run there.

    One that has to wait for the TPU compiler starts anew every five seconds, one that was killed a second time only.

    Raises:
        ResourceError: the compiler stayed taken, or its process ended without an answer.
    """
    deadline = time.monotonic() + PATIENCE
    killed = False
    while True:
        done = subprocess.run(
            [sys.executable, *program],
            input=json.dumps(dataclasses.asdict(request)),
            env=environment(request),
            capture_output=True,
            text=True,
        )
        if done.stdout.strip():
            return _read(json.loads(done.stdout.strip().splitlines()[-1]))
        if "libtpu_lockfile" in done.stderr:
            if time.monotonic() > deadline:
                # libtpu's own message says to delete the file; its owner is alive, so do not.
                raise ResourceError(
                    "Another process is using the TPU compiler, which serves one at a time: wait for it."
                )
            time.sleep(5)
        elif done.returncode >= 0 or killed:
            raise ResourceError(f"The compiling process ended with status {done.returncode}: {_why(done.stderr)}")
        else:
            killed = True


def environment(request: ProgramRequest) -> dict[str, str]:
    """The variables under which jax sees the target, and nothing else."""
    data, model = request.mesh
    env = dict(os.environ) | {
        "JAX_PLATFORMS": "cpu",  # also for TPU targets: their compiler needs no device
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # or seconds and memory would be those of another day
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    if request.chip is None:
        return env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={data * model}"}
    # Else libtpu asks the metadata server of the cloud machine that this is not.
    kind = {"v5e": "v5litepod"}.get(request.target.partition(":")[0], request.target.partition(":")[0])
    env.pop("XLA_FLAGS", None)
    return env | {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{kind}-{request.chips}",
    }


def main() -> int:
    """Read a request from standard input, print its report. Anything else that is printed goes to standard error."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    fields = json.load(sys.stdin)
    try:
        from paradec.explain.compiler import report

        result = report(ProgramRequest(**fields | {"mesh": tuple(fields["mesh"])})).public()
    except ParadecError as error:
        result = {"error": type(error).__name__, "sentence": str(error)}
    print(json.dumps(result), file=answer, flush=True)
    return 0


def _why(stderr: str) -> str:
    """The last exception in a traceback: jax prints more after it."""
    lines = stderr.strip().splitlines() or ["it said nothing."]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])


def _read(answer: dict) -> Report:
    if "error" in answer:
        kind = getattr(errors, answer["error"])
        # UnknownName makes its own sentence; here it is made already.
        raise (kind if kind is not errors.UnknownName else errors.InputError)(answer["sentence"])
    return Report.parse(answer)
