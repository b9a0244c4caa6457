"""The sandbox: programs that try what they must not, each against the real kernel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BrokenError, InputError
from pipeline.evaluation import sandbox, sandbox_child
from pipeline.evaluation.sandbox import run_program

pytestmark = pytest.mark.skipif(
    bool(sandbox_child.available()), reason=f"no isolation: {sandbox_child.available()}"
)


def refused(statement: str, setup: str = "") -> str:
    """A program that comes to its end only if the statement is refused."""
    attempt = (
        f"try:\n    {statement}\nexcept (OSError, RuntimeError):\n    pass\nelse:\n    1 / 0\n"
    )
    return f"{setup}\n{attempt}"


def test_a_program_that_works_passes_and_one_that_does_not_fails() -> None:
    assert run_program("def f(x):\n    return x + 1\nassert f(1) == 2") == "passed"
    for wrong in ("assert False", "def f(:", "import nonsense", "raise KeyboardInterrupt", "1/0"):
        assert run_program(wrong) == "failed", wrong


def test_what_programs_need_is_there() -> None:
    modules = "math, re, collections, itertools, functools, heapq, bisect, typing, string, random"
    modules += ", datetime, decimal, fractions, statistics, hashlib, json, copy, operator, sys, os"
    program = f"import {modules}\nprint('x' * 10**6)\n"
    program += "open('own.txt', 'w').write('x'); assert open('own.txt').read() == 'x'\n"
    program += "os.rename('own.txt', 'o'); os.remove('o')\n"
    program += "assert hashlib.md5(b'a').hexdigest().startswith('0cc1')\n"
    program += "assert os.listdir('.') == [] and os.environ.get('HOME') is None\n"
    assert run_program(program) == "passed"


def test_ending_early_is_not_passing() -> None:
    for program in ("import sys; sys.exit(0)", "import os; os._exit(0)", "quit()", "exit()"):
        assert run_program(program + "\nassert False") == "failed", program


def test_time_is_limited() -> None:
    started = time.monotonic()
    assert run_program("while True: pass", seconds=2) == "timeout"
    assert run_program("import time; time.sleep(60)", seconds=2) == "timeout"
    assert time.monotonic() - started < 30


def test_memory_and_files_are_limited() -> None:
    assert run_program("x = bytearray(2 << 30)") == "failed"
    assert run_program("open('big', 'wb').write(bytes(2 << 20))") == "failed"
    assert run_program("f = [open(str(i), 'w') for i in range(100)]") == "failed"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_there_is_no_network(family: str) -> None:
    assert run_program(refused(f"socket.socket(socket.{family})", "import socket")) == "passed"
    with socket.socket() as server:  # one that anybody else on this machine could reach
        server.bind(("127.0.0.1", 0))
        server.listen()
        connect = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert run_program(refused(connect, "import socket")) == "passed"


@pytest.mark.parametrize(
    "statement",
    [
        "os.fork()",
        "os.system('true') == 0 or os.open('/', os.O_RDWR)",
        "os.execv('/bin/true', ['true'])",
        "__import__('_thread').start_new_thread(print, ()) or 0",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.setsid()",
        "os.nice(-1)",
    ],
)
def test_there_are_no_other_processes(statement: str) -> None:
    assert run_program(refused(statement, "import os")) == "passed"


def test_nobody_is_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert run_program(refused(f"os.kill({other.pid}, 9)", "import os")) == "passed"
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    "statement",
    [
        "open(PATH).read()",
        "open(PATH, 'w')",
        "open(PATH, 'a')",
        "os.truncate(PATH, 0)",
        "os.unlink(PATH)",
        "os.rename(PATH, 'mine')",
        "os.link(PATH, 'mine')",
        "os.chmod(PATH, 0o777)",
        "os.chown(PATH, 1, 1)",
        "os.utime(PATH, (0, 0))",
        "os.setxattr(PATH, 'user.x', b'x')",
        "os.listdir(os.path.dirname(PATH))",
        "open(os.path.join(os.path.dirname(PATH), 'new'), 'w')",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('/dev/tty')",
        "open('../escape', 'w')",
        "os.symlink(PATH, 'link') or open('link').read()",
    ],
)
def test_files_of_others_are_out_of_reach(tmp_path: Path, statement: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    before = secret.stat()
    program = refused(statement, f"import os\nPATH = {str(secret)!r}")
    assert run_program(program) == "passed"
    assert secret.read_text() == "secret"
    assert (secret.stat().st_mode, secret.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert os.listdir(tmp_path) == ["secret"]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program("open('own.txt', 'w').write('x')") == "passed"
    assert os.listdir(tmp_path) == []


def test_without_isolation_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_child, "available", lambda: "no Landlock")
    monkeypatch.setattr(sandbox.subprocess, "Popen", pytest.fail)
    with pytest.raises(InputError, match="cannot be run safely here: no Landlock"):
        run_program("pass")


def test_a_program_cannot_have_the_kernel_signal_us() -> None:
    program = "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())\n"
    assert run_program(program) == "failed"


IOCTL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
number = os.open("own", os.O_CREAT | os.O_RDWR)
value = ctypes.c_long({value})
assert libc.ioctl(number, {request}, ctypes.byref(value)) == -1
assert ctypes.get_errno() == 1, ctypes.get_errno()  # EPERM: not what the file system says of it
"""


@pytest.mark.parametrize(
    ("request_number", "value"),
    [(0x541B, 0), (0x40086602, 0x10), (0xC0045877, 0)],
    ids=["size", "immutable", "freeze"],
)
def test_no_control_of_files_and_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_number: int, value: int
) -> None:
    """Root could make a file that nobody can remove, or stop a whole file system."""
    if request_number == 0xC0045877:  # on any file of it: never tried on a kernel that would
        assert 16 not in sandbox_child.ALLOWED.values()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program(IOCTL.format(request=request_number, value=value)) == "passed"
    assert os.listdir(tmp_path) == []


def status_of_program(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the kernel says of a program's process while it runs."""
    started: list[subprocess.Popen[bytes]] = []
    seen: list[str] = []
    popen, overflows = subprocess.Popen, sandbox._overflows

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def look(folder: Path) -> bool:
        seen.append(Path(f"/proc/{started[0].pid}/status").read_text())
        return overflows(folder)

    monkeypatch.setattr(sandbox.subprocess, "Popen", start)
    monkeypatch.setattr(sandbox, "_overflows", look)
    program = "import time, json, hashlib\nopen('own', 'w').write('x')\ntime.sleep(1.5)\n"
    assert run_program(program) == "passed"
    lines = (line.partition(":") for line in seen[-1].splitlines())
    return {name: value.split() for name, _, value in lines}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to drop")
@pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3"])
def test_a_program_of_root_has_no_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    if not Path(python).is_file():
        pytest.skip("no such Python here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", python)
    status = status_of_program(monkeypatch)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    if python == "/usr/bin/python3":  # which nobody can read
        assert status["Uid"] == ["65534"] * 4 and status["Gid"] == ["65534"] * 4
        assert status["Groups"] == []
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(folder: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(folder / "own"))

    monkeypatch.setattr(sandbox.shutil, "rmtree", refuse)
    with pytest.raises(BrokenError, match="could not be removed") as caught:
        run_program("pass")
    assert caught.value.where.endswith("own") and "by hand" in caught.value.remedy


def test_a_program_cannot_make_folders() -> None:  # thousands within each other outlive removal
    assert run_program("import os\nos.mkdir('d')\n") == "failed"


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_the_folder_of_a_program_is_bounded(size: int) -> None:
    program = f"i = 0\nwhile True:\n  i += 1\n  open(str(i), 'wb').write(bytes({size}))\n"
    started = time.monotonic()
    assert run_program(program, seconds=60) == "failed"
    assert time.monotonic() - started < 30


def test_what_a_program_writes_is_bounded_and_believed_in_nothing() -> None:
    flood = "import os\nwhile True: os.write(3, b'x' * 65536)\n"
    assert run_program(flood) == "failed"
    assert run_program("import os\nos.write(3, b'isolation: broken')\n") == "failed"
