"""Running code that a model wrote: each program in a locked-down process of its own.

The process sees no network, reads no files but those of Python's installation and the system's
libraries, writes only in a folder that is removed afterwards, makes no folders, starts no other
process, has no capabilities, and has limits on time, memory, the size of each file and the size of
its folder. Where the kernel cannot do that, nothing is run.

It keeps a program from doing harm, not from cheating: a program that sets out to be taken for
correct could find the tests that it runs with.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
# No limit of the kernel covers a folder, so it is looked at while the program runs.
FOLDER_FILES, FOLDER_BYTES, LOOK_SECONDS = 1000, 64 << 20, 0.1


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
        BrokenError: locking in failed although the kernel should be able to, or the program's
            folder cannot be removed.
    """
    check_available()
    token, refusal = secrets.token_hex(16), secrets.token_hex(16)
    order = json.dumps({"program": program, "limits": LIMITS, "token": token, "refusal": refusal})
    # -I and -S: neither the environment nor site-packages decide what the program imports.
    command = [sys.executable, "-I", "-S", "-B", str(Path(sandbox_child.__file__))]
    # Its answer goes to a file, which the limits cover; a pipe would fill this process's memory.
    with _folder() as folder, tempfile.TemporaryFile() as answer:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,
        ) as child:
            stopped = _watch(child, order.encode(), folder, seconds)
        if stopped is not None:
            return stopped
        answer.seek(0)
        said = answer.read().decode(errors="replace")
    if said.startswith(refusal):
        raise BrokenError(
            f"a program could not be locked in, and was not run: {said.removeprefix(refusal)}",
            remedy="remove the tasks that run code",
        )
    return "passed" if said == token else "failed"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is removed afterwards, whatever became of it."""
    folder = Path(tempfile.mkdtemp(prefix="unlearn-program-"))
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise BrokenError(
                f"the folder of a program could not be removed ({error.strerror})",
                where=str(error.filename or folder),
                remedy="look at what is in it, remove it by hand, and report it",
            ) from error


def _watch(
    child: subprocess.Popen[bytes], order: bytes, folder: Path, seconds: float
) -> Outcome | None:
    """Wait for the process; it is killed when its time or its folder's size is used up."""
    deadline = time.monotonic() + seconds
    rest: bytes | None = order
    try:
        while True:
            try:
                child.communicate(rest, timeout=LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                rest = None  # it goes on with what it was given
                if time.monotonic() > deadline:
                    return "timeout"
                if _overflows(folder):
                    return "failed"
            else:
                return None
    finally:
        child.kill()


def _overflows(folder: Path) -> bool:
    sizes = []
    for entry in os.scandir(folder):
        try:
            sizes.append(entry.stat(follow_symlinks=False).st_size)
        except FileNotFoundError:  # the program removed it meanwhile
            continue
    return len(sizes) > FOLDER_FILES or sum(sizes) > FOLDER_BYTES
