"""Locks on folders, which end with their process, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: abandoned folders stay
    fcntl = None  # type: ignore[assignment]


def lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder until `unlock` or the process's end; None where that is not possible.

    Raises:
        BlockingIOError: another has locked it, and this should not `wait`.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None  # not a folder of ours, or gone
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def unlock(held: int | None) -> None:
    """Let go of what `lock` returned."""
    if held is not None:
        os.close(held)


def still_there(folder: Path, held: int) -> bool:
    """Whether a locked folder is the one of this name: another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(held), folder.stat())
    except FileNotFoundError:
        return False
