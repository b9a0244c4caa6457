"""The output folder: what may be replaced, and whether it already holds this very run."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cache import TEMPORARY, digest_of_file, unwritable
from pipeline.errors import BrokenError, InputError
from pipeline.export.manifest import read_manifest
from pipeline.locks import lock, still_there, unlock
from pipeline.release.checks.files import OUTSIDE

CLAIM_ATTEMPTS = 10
CLAIM_SECONDS = 0.05  # between them: whoever clears a folder away has it locked for a moment


def check_target(target: Path, recipe_name: str, force: bool) -> None:
    """Refuse early what should not be overwritten.

    Raises:
        InputError: it is a file, or a folder that holds something else.
    """
    if target.exists() and not target.is_dir():
        raise InputError(
            "this is a file, not a folder",
            where=str(target),
            remedy="move it away, or choose another place with --out",
        )
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(
            "this is a file, so no folder can be made in it",
            where=str(parent),
            remedy="choose another place with --out",
        )
    if force or not target.exists() or not any(target.iterdir()):
        return
    manifest = read_manifest(target)
    if manifest is None or manifest.get("name") != recipe_name:
        raise InputError(
            f"this folder holds something that recipe {recipe_name!r} did not make; "
            "it was not touched",
            where=str(target),
            remedy="choose another place with --out, or replace it as a whole with --force",
        )
    strangers = sorted(
        str(path.relative_to(target))
        for path in target.rglob("*")
        if (path.is_file() or path.is_symlink())
        and str(path.relative_to(target)) not in {*manifest["files"], *OUTSIDE}
    )
    if strangers:
        raise InputError(
            f"this folder holds files beside an earlier output: {', '.join(strangers[:5])}; "
            "it was not touched",
            where=str(target),
            remedy="move them away, choose another place with --out, or use --force",
        )


def check_own_folder(target: Path, files: Collection[str], verb: str) -> None:
    """Refuse early a folder that holds something else: it will be replaced as a whole.

    Args:
        target: the folder.
        files: names of what the verb writes.
        verb: of the command.

    Raises:
        InputError: it does.
    """
    if target.is_file() or (
        target.is_dir() and {each.name for each in target.iterdir()} - {*files}
    ):
        raise InputError(
            f"this holds something that `unlearn {verb}` did not write; it was not touched",
            where=str(target),
            remedy="move it away, or choose another place with --out",
        )


def check_file(path: Path, where: str) -> None:
    """Refuse early a file that could not be written; its folder is made.

    Args:
        path: the file; what is in it stays.
        where: the option that named it.

    Raises:
        InputError: it cannot be written.
    """
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):  # permissions alone do not say it: root has them all, in /proc too
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"the file {path} cannot be written ({error.strerror})",
            where=where,
            remedy="name another place",
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Explain why a file could not be written after all.

    Raises:
        BrokenError: it could not.
    """
    try:
        yield
    except OSError as error:
        raise BrokenError(
            f"this file could not be written ({error.strerror}); the verdict above stands",
            where=str(path),
            remedy="free some space or name another place; what was measured is in the cache",
        ) from error


def check_inputs(target: Path, inputs: Iterable[Path], cache: Path) -> None:
    """Refuse an output folder that holds something which the run itself reads.

    Raises:
        InputError: it does; replacing it would destroy an input, or the cache of finished stages.
    """
    place = target.resolve()
    if cache.resolve().is_relative_to(place):
        raise InputError(
            f"the cache {cache} is in this folder, which the run replaces as a whole",
            where=str(target),
            remedy="choose another place with --cache-dir or --out",
        )
    for path in inputs:
        if path.resolve().is_relative_to(place):
            raise InputError(
                f"the output would replace {path}, which this run reads",
                where=str(target),
                remedy="choose another place with --out, or rename the recipe",
            )


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Hold the place of an output folder, so that no other run makes the same one meanwhile.

    The lock is a folder beside it. It is made now, with those above it that are missing, so that a
    place where nothing can be made is found out before hours of work. A killed process locks
    nothing any more, and what it left is taken over, or cleared away by `new_folder`.

    Raises:
        InputError: another run holds the place, or nothing can be made there.
        BrokenError: the disk is full.
    """
    real = target.resolve() if target.is_symlink() else target.absolute()
    place = real.with_name(f".{real.name}{TEMPORARY}run")
    missing = [folder for folder in real.parents if not folder.exists()]
    try:
        held = _claim(place, target)
    except OSError as error:
        raise unwritable(error, target) from error
    try:
        yield
    finally:
        _remove_empty([place, *missing])
        unlock(held)


def _claim(place: Path, target: Path) -> int | None:
    for _ in range(CLAIM_ATTEMPTS):
        place.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(place, wait=False)
        except BlockingIOError:
            time.sleep(CLAIM_SECONDS)
            continue
        if place.is_dir() if held is None else still_there(place, held):
            return held
        unlock(held)
    raise InputError(
        "another run is making this output right now",
        where=str(target),
        remedy="wait for it, or choose another place with --out",
    )


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # the output is in it, or something that others have put there
            return


def finished(target: Path, run_key: str) -> dict[str, Any] | None:
    """The manifest of `target` if it is whole and came from exactly this run, or None."""
    manifest = read_manifest(target)
    if manifest is None or manifest.get("run_key") != run_key:
        return None
    for name, expected in manifest["files"].items():
        path = target / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return None
        if digest_of_file(path) != expected["sha256"]:
            return None
    return manifest
