"""Running code that a model wrote: each program in a locked-down process of its own.

The process sees no network, reads no files but Python's own, writes only in a folder that is
removed afterwards, makes no folders, starts no other process, and has limits on time, memory and
the size of each file. Where the kernel cannot do that, nothing is run.

It keeps a program from doing harm, not from cheating: a program that sets out to be taken for
correct could find the tests that it runs with.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation import sandbox_child

Outcome = Literal["passed", "failed", "timeout"]

SECONDS = 10
LIMITS = {
    "RLIMIT_CPU": SECONDS,
    "RLIMIT_AS": 1 << 30,
    "RLIMIT_FSIZE": 1 << 20,
    "RLIMIT_NOFILE": 32,
    "RLIMIT_CORE": 0,
}


def check_available() -> None:
    """Check that programs can be locked in on this machine.

    Raises:
        InputError: they cannot.
    """
    if reason := sandbox_child.available():
        raise InputError(
            f"code that a model wrote cannot be run safely here: {reason}",
            where="evaluate.run_generated_code",
            remedy="run it on Linux 6.2 or newer with Landlock, or remove the tasks that run code",
        )


def run_program(program: str, seconds: float = SECONDS) -> Outcome:
    """Run a Python program with its tests; it passes if it comes to its end without an error.

    Args:
        program: source text.
        seconds: time by the clock after which it is killed.

    Raises:
        InputError: programs cannot be locked in on this machine.
        BrokenError: locking in failed although the kernel should be able to.
    """
    check_available()
    token, refusal = secrets.token_hex(16), secrets.token_hex(16)
    order = json.dumps({"program": program, "limits": LIMITS, "token": token, "refusal": refusal})
    # -I and -S: neither the environment nor site-packages decide what the program imports.
    command = [sys.executable, "-I", "-S", "-B", str(Path(sandbox_child.__file__))]
    # Its answer goes to a file, which the limits cover; a pipe would fill this process's memory.
    with (
        tempfile.TemporaryDirectory(prefix="unlearn-program-") as folder,
        tempfile.TemporaryFile() as answer,
    ):
        try:
            subprocess.run(
                command,
                input=order.encode(),
                stdout=answer,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                timeout=seconds,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        answer.seek(0)
        said = answer.read().decode(errors="replace")
    if said.startswith(refusal):
        raise BrokenError(
            f"a program could not be locked in, and was not run: {said.removeprefix(refusal)}",
            remedy="remove the tasks that run code",
        )
    return "passed" if said == token else "failed"
