"""Content-addressed stage outputs, and folders that appear whole or not at all.

A stage's output lives under the hash of everything that determined it, so the second run skips
what is done, a killed run resumes, and one scoring serves many cuts.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BrokenError, InputError, UnlearnError
from pipeline.locks import lock, unlock

HASH_CHUNK_BYTES = 1 << 22
TEMPORARY = ".unlearn-new-"  # in the names of folders that are being filled
ASIDE = ".unlearn-old-"  # in the names of outputs that are being replaced


class Cache:
    """A folder of finished stage outputs, one folder a key.

    Args:
        root: where outputs are kept; made when first needed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def find(self, stage: str, key: dict[str, Any]) -> Path | None:
        """Return the finished output of `stage` for `key`, or None."""
        folder = self._folder(stage, key)
        return folder if folder.is_dir() else None

    def get(self, stage: str, key: dict[str, Any], fill: Callable[[Path], None]) -> Path:
        """Return the finished output of `stage` for `key`; `fill` makes it if there is none.

        `fill` is handed an empty folder, which becomes the output when it returns without error;
        `key.json` inside it records what determined the output. Of two processes that make the
        same output at once, the first to finish wins: somebody may be reading it already.
        """
        target = self._folder(stage, key)
        if not target.is_dir():
            with new_folder(target, replace=False) as folder:
                write_json(folder / "key.json", {"stage": stage, **key})
                fill(folder)
        return target

    def beside(self, stage: str, key: dict[str, Any], suffix: str) -> Path:
        """A path beside an output, for what its making leaves on the way."""
        folder = self._folder(stage, key)
        return folder.with_name(folder.name + suffix)

    def _folder(self, stage: str, key: dict[str, Any]) -> Path:
        return self.root / stage / digest_of({"stage": stage, **key})[:32]


def default_root() -> Path:
    """`$UNLEARN_CACHE`, or `unlearn` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if chosen := os.environ.get("UNLEARN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearn"


@contextmanager
def new_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a sibling temporary folder that is renamed to `target` when the block succeeds.

    An existing `target` is replaced as a whole, and only then; without `replace` it stays. On any
    error, Ctrl-C included, the temporary folder is removed and `target` stays as it was. What a
    killed process left beside `target` is cleared away first.

    Raises:
        InputError: the place cannot be written to.
        BrokenError: the disk is full.
    """
    target = target.resolve() if target.is_symlink() else target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(target.parent)
        temporary, held = _temporary(target)
    except OSError as error:
        raise unwritable(error, target) from error
    try:
        yield temporary
        _sync(temporary)
        try:
            if replace or not target.exists():
                _replace(temporary, target)
        except OSError as error:
            if replace or not target.exists():  # else another process was there first
                raise unwritable(error, target) from error
    except Exception as error:  # each library has its own for a full disk
        if isinstance(error, UnlearnError) or not is_full(error):
            raise
        raise disk_full(str(target)) from error
    finally:
        _remove(temporary)
        unlock(held)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder in `parent`, which is removed when the block ends.

    What a killed process left there is cleared away first.

    Raises:
        InputError: the place cannot be written to.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(parent)
        folder, held = _temporary(parent / "scratch")
    except OSError as error:
        raise unwritable(error, parent) from error
    try:
        yield folder
    finally:
        _remove(folder)
        unlock(held)


def clear_abandoned(parent: Path) -> None:
    """Clear away what processes left in `parent` that were killed while they made a folder.

    A temporary folder is locked as long as its process lives, whatever machine that runs on. An
    earlier output that was put aside and not yet replaced is put back.
    """
    for path in [*parent.glob(f".*{ASIDE}*"), *parent.glob(f".*{TEMPORARY}*")]:
        try:
            held = lock(path, wait=False)
        except BlockingIOError:
            continue
        if held is None:
            continue
        name, aside, _ = path.name[1:].rpartition(ASIDE)
        if aside and not path.with_name(name).exists():
            path.rename(path.with_name(name))
        else:
            _remove(path)
        unlock(held)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_permission(path: Path) -> None:
    """Refuse a file or folder that is there and may not be read, by its name.

    Some libraries call such a file damaged, and pathlib such a folder empty.

    Raises:
        PermissionError: it may not be read, or a folder above it may not be entered.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(path)
        elif stat.S_ISREG(mode):  # a pipe must not be opened twice
            path.open("rb").close()
    except PermissionError:
        raise
    except (OSError, ValueError):  # it is not there: whoever reads it says so
        return


def digest_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON with a final newline; see `plain_json`."""
    path.write_bytes(json_bytes(value))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as UTF-8 CSV, with the keys of the first as its header."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    text = json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def plain_json(value: Any) -> Any:
    """The value with null in the place of NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: see `parse_json`.
    """
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> Any:
    """Parse JSON from anywhere, if every reader would read the same in it.

    Raises:
        ValueError: it is not JSON in UTF-8 without a byte order mark, names a key twice in one
            object, or is nested so deeply that nobody wrote it to be read.
    """
    text = content.decode()  # json would guess at other encodings, which other readers do not
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are written alike: as Python has it, 1 equals 1.0 and true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key is there twice: some readers take the first, some the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is there twice")
            seen.add(key)
    return found


def _temporary(target: Path) -> tuple[Path, int | None]:
    """Make and lock a temporary folder beside `target`."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}{TEMPORARY}", dir=target.parent))
        held = lock(path, wait=True)
        if path.is_dir():  # another process may have taken it for abandoned before it was locked
            path.chmod(0o755)  # mkdtemp makes it private; what is published should be readable
            return path, held
        unlock(held)


def _replace(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f".{target.name}{ASIDE}{os.getpid()}")
    held = lock(target, wait=True)
    try:
        target.rename(old)
        try:
            temporary.rename(target)
        except BaseException:
            if not target.exists():
                old.rename(target)
            raise
        _remove(old)
    finally:
        unlock(held)


def _remove(folder: Path) -> None:
    """Remove a folder, folders inside that were made read-only included."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk or a quota is full, in whatever form it comes."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in full:
        return True
    return any(os.strerror(number) in str(error) for number in full)


def disk_full(where: str) -> BrokenError:
    """The error for the reader that stands for a full disk."""
    return BrokenError(
        "no space left on the disk; nothing was changed",
        where=where,
        remedy="free some space, or choose another place with --out or --cache-dir",
    )


def unwritable(error: OSError, target: Path) -> UnlearnError:
    """The error for the reader that stands for a place in which nothing can be made."""
    if is_full(error):
        return disk_full(str(target))
    return InputError(
        f"this place cannot be written to ({error.strerror})",
        where=str(target),
        remedy="choose another place with --out or --cache-dir, or change its permissions",
    )
