"""Errors that a user can act on, and the exit codes of the `unlearn` command.

Exit codes are part of the interface (see README.md):

====  =====================================================
0     every gate passed; the release is verified
1     a gate failed; the release is not what it says
2     the recipe, its inputs or the command line are wrong
3     something broke that the recipe is not to blame for
4     a gate is inconclusive, and none failed
5     the release's compensation cannot be checked
130   interrupted; the same command continues
====  =====================================================
"""

from __future__ import annotations

import importlib.util

EXIT_PASS = 0
EXIT_GATES_FAILED = 1
EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_BROKEN = 3
EXIT_INCONCLUSIVE = 4
EXIT_UNVERIFIED = 5
EXIT_INTERRUPTED = 130


class UnlearnError(Exception):
    """An error written for the reader: what is wrong, where, and what to do about it.

    Args:
        what: one sentence that says what is wrong.
        where: file, key or command-line option that it is about; empty if there is none.
        remedy: what the reader can do; empty if nothing helps.
    """

    exit_code = EXIT_BROKEN

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.remedy:
            lines.append(f"  → {self.remedy}")
        return "\n".join(lines)


class InputError(UnlearnError):
    """The recipe, a file that it names, or the command line is wrong (exit code 2)."""

    exit_code = EXIT_USAGE


class BrokenError(UnlearnError):
    """Something failed that the recipe is not to blame for: disk, network, proof (exit code 3)."""

    exit_code = EXIT_BROKEN


def check_package(package: str, does: str, extra: str, where: str = "") -> None:
    """Check that an optional package is installed.

    Args:
        package: as it is imported.
        does: what it is for, in words.
        extra: of this package, which installs it.
        where: the option that needs it.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"the package {package}, which {does}, is not installed",
            where=where,
            remedy=f'install it: pip install "unlearn-pipeline[{extra}]"',
        )
