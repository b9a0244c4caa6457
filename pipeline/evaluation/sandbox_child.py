"""Runs one program under locks; started by `pipeline.evaluation.sandbox`, never imported.

It reads the program and its limits from stdin, in its own folder, locks itself in, runs the program
in this very process, and says on a pipe whether the program came to its end. Nothing outside the
standard library is used: no site-packages are on the path.

- Landlock (Linux 6.2 or newer): files are read below Python's own folders and those of the system's
  libraries, and written below the working folder alone.
- seccomp: a list of system calls that computing and files need; all others, such as those for
  sockets, processes, signals, folders, modes and owners, are refused. So are fcntl, which can have
  the kernel send a signal to any process of the same user, and ioctl, which can make files
  immutable and stop a whole file system.
- No capabilities, whoever started it, and no way to gain any. Root becomes nobody where nobody can
  read Python's installation, and is root without capabilities elsewhere.
- Limits of the kernel: processor time, memory, size and number of files.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys

LEAST_LANDLOCK = 3  # knows of truncation
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
ABI_QUESTION = 1
RULE_PATH_BENEATH = 1
ALL_RIGHTS = (1 << 15) - 1
READ_RIGHTS = (1 << 2) | (1 << 3)  # files and folders
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
CAPABILITY_VERSION = 0x20080522  # of 64 bits, in two words each
NOBODY = 65534
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refused: EPERM
X32 = 0x40000000
# x86-64 numbers of the system calls that are allowed.
ALLOWED = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18,
    "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "exit": 60,
    "uname": 63, "ftruncate": 77, "getdents": 78, "getcwd": 79, "chdir": 80,
    "rename": 82, "unlink": 87, "readlink": 89, "gettimeofday": 96,
    "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "newfstatat": 262,
    "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269, "pselect6": 270,
    "ppoll": 271, "dup3": 292, "pipe2": 293, "getrandom": 318, "statx": 332, "close_range": 436,
    "faccessat2": 439,
}  # fmt: skip


def available() -> str:
    """Why programs cannot be locked in here; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"only Linux on x86-64 is known, this is {sys.platform} on {platform.machine()}"
    version = _libc().syscall(LANDLOCK_CREATE, None, 0, ABI_QUESTION)
    if version < LEAST_LANDLOCK:
        return "the kernel has no Landlock of version 3 (Linux 6.2, switched on at boot)"
    return ""


def lock_in(limits: dict[str, int]) -> None:
    """Lock this process in for good: limits, then rights, then files, then system calls."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    libc = _libc()
    _must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    rules = _must(libc.syscall(LANDLOCK_CREATE, struct.pack("=Q", ALL_RIGHTS), 8, 0))
    readable = {sys.base_prefix, os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64"}
    for folder, rights in [*((name, READ_RIGHTS) for name in sorted(readable)), (".", ALL_RIGHTS)]:
        if os.path.isdir(folder):
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", rights, descriptor)
            _must(libc.syscall(LANDLOCK_ADD, rules, RULE_PATH_BENEATH, rule, 0))
            os.close(descriptor)
    _drop_rights(libc)
    _must(libc.syscall(LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)
    code = _filter()
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    _must(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def _drop_rights(libc: ctypes.CDLL) -> None:
    """Give up every capability, and root's name where that is possible."""
    if os.geteuid() == 0:
        number = 0
        while (held := libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
            # A container's root may lack the right to; then it has few, and all go below.
            if held and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
                break
            number += 1
        _become_nobody()
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(2 * 3 * 4)
    _must(libc.capset(header, none))


def _become_nobody() -> None:
    """Hand the working folder over and become nobody; stay root where nobody could not run Python.

    Python's installation may be in root's own folder, and a container's root may not be allowed to.
    """
    try:
        os.chown(".", NOBODY, NOBODY)
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        for folder in (os.path.dirname(os.__file__), "."):
            os.listdir(folder)
        with open(os.__file__, "rb"):
            pass
        os.seteuid(0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
    except OSError:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.chown(".", 0, os.getgid())
    else:
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _filter() -> bytes:
    """The seccomp filter: 8 bytes an instruction."""
    numbers = sorted(ALLOWED.values())
    head = [
        (LOAD, 0, 0, 4),  # architecture
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),  # number
        (JUMP_AT_LEAST, len(numbers), 0, X32),
    ]
    tests = [(JUMP_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    tail = [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in [*head, *tests, *tail])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main() -> None:
    """Lock in, run, and say on the pipe that was stdout whether the program came to its end."""
    order = json.loads(sys.stdin.buffer.read())
    pipe = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    try:
        lock_in(order["limits"])
    except OSError as error:
        os.write(pipe, f"{order['refusal']}{error}".encode())
        os._exit(1)
    del order["refusal"]
    with contextlib.suppress(BaseException):
        exec(compile(order["program"], "<program>", "exec"), {"__name__": "__main__"})
        os.write(pipe, order["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
