"""What this machine has of what a run needs: Python, torch, memory and disk.

Nothing here imports torch before it is asked to: a broken one is a finding too.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.cache import Cache

State = Literal["ok", "limited", "missing"]

LEAST_PYTHON = (3, 11)
# `unlearn run no-code` held 2.2 GB at most (texts and tasks cut short by --set, which changes no
# batch), and `unlearn check no-code` says 276 MB of output and 283 MB of cache.
PEAK_BYTES = 25 * 10**8
OUTPUT_BYTES, CACHE_BYTES = 300 * 10**6, 300 * 10**6
GIGABYTE = 1e9
CONTROL_GROUP = Path("/sys/fs/cgroup")
GRAPHICS_CARD = Path("/dev/nvidia0")


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        topic: what it is a part of.
        name: what it is.
        state: "ok", "limited" (it works, and could work better) or "missing".
        found: what was found, or why nothing was.
        needed_for: what does not work without it.
        remedy: how to get it; empty if it is there.
        required: the default recipe cannot be run without it.
    """

    topic: str
    name: str
    state: State
    found: str
    needed_for: str = ""
    remedy: str = ""
    required: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def machine(cache: Cache, out: Path) -> Iterator[Check]:
    """Yield what there is of Python, torch, memory and disk."""
    yield _python()
    yield from _torch()
    yield _memory()
    yield _disk("cache", cache.root, CACHE_BYTES, "choose another place: --cache-dir")
    yield _disk("output", out, OUTPUT_BYTES, "choose another place: --out")


def _python() -> Check:
    enough = sys.version_info >= LEAST_PYTHON
    return Check(
        "machine",
        "Python",
        "ok" if enough else "missing",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "everything",
        "" if enough else "install Python 3.11 or newer, then `make setup PYTHON=python3.12`",
        required=True,
    )


def _torch() -> Iterator[Check]:
    needed = "every model that is run"
    try:
        import torch
    except (ImportError, OSError) as error:  # an OSError where one of its libraries is damaged
        remedy = "run `make setup`, or pip install torch"
        yield Check("machine", "torch", "missing", _first_line(error), needed, remedy, True)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    yield Check("machine", "torch", "ok", f"{torch.__version__}, built for {build}", needed)
    yield _threads(torch.get_num_threads())
    yield _accelerator(torch)


def _threads(threads: int) -> Check:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    processors = processors or os.cpu_count() or 1
    found = f"{threads} threads on {processors} processors"
    # A core with two hardware threads gets one thread, which is as fast.
    if 2 * threads >= processors:
        return Check("machine", "threads", "ok", found, "speed")
    which = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "a limit of torch"
    remedy = f"{which} says so: unset it, or set it to {processors}"
    return Check("machine", "threads", "limited", found, "speed", remedy)


def _accelerator(torch: Any) -> Check:
    needed = "larger models, and speed; no recipe needs one"
    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(number)}, "
            f"{torch.cuda.get_device_properties(number).total_memory / GIGABYTE:.0f} GB"
            for number in range(torch.cuda.device_count())
        ]
        return Check("machine", "accelerator", "ok", "; ".join(names), needed)
    if GRAPHICS_CARD.exists():
        remedy = "install a build of torch for this card's driver: https://pytorch.org/get-started"
        found = "there is an NVIDIA card, which this torch cannot use"
        return Check("machine", "accelerator", "limited", found, needed, remedy)
    return Check("machine", "accelerator", "ok", "none; models run on the processors", needed)


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return Check("machine", "memory", "ok", "this system does not say how much is free")
    enough = free >= PEAK_BYTES
    return Check(
        "machine",
        "memory",
        "ok" if enough else "missing",
        f"{free / GIGABYTE:.1f} GB free",
        f"`unlearn run no-code` ({PEAK_BYTES / GIGABYTE:.1f} GB)",
        ""
        if enough
        else "close other programs, or set evaluate.batch_tokens and scoring.batch_tokens to 1024",
        required=True,
    )


def free_memory() -> int | None:
    """Bytes of memory that a process can still have here, a container's limit included."""
    found = []
    try:
        import psutil

        found.append(int(psutil.virtual_memory().available))
    except ImportError:  # it comes with accelerate, whose absence is a finding of its own
        pass
    if (left := _left_in(CONTROL_GROUP)) is not None:
        found.append(left)
    return min(found) if found else None


def _left_in(group: Path) -> int | None:
    """What is left of the memory of a control group, which is how containers are limited."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        given_back = int(dict(statistics)["inactive_file"])  # files that the kernel may forget
        return None if limit == "max" else max(int(limit) - used + given_back, 0)
    except (OSError, ValueError, KeyError):  # there is none, or one of another kind
        return None


def _disk(name: str, place: Path, needed: int, remedy: str) -> Check:
    """Whether there is room in a folder that may not exist yet, and whether it can be made."""
    place = place.expanduser().absolute()
    said = f"the {name} of `unlearn run no-code` ({needed / GIGABYTE:.1f} GB)"
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions alone do not say it
            pass
    except OSError as error:
        found = f"{place}: {there} cannot be written to ({error.strerror})"
        return Check("machine", f"disk of the {name}", "missing", found, said, remedy, True)
    free = shutil.disk_usage(there).free
    state: State = "ok" if free >= needed else "missing"
    found = f"{place}: {free / GIGABYTE:.1f} GB free"
    remedy = "" if state == "ok" else f"free some space, or {remedy}"
    return Check("machine", f"disk of the {name}", state, found, said, remedy, True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
