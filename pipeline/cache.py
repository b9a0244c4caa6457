"""Content-addressed stage outputs, and folders that appear whole or not at all.

A stage's output lives under the hash of everything that determined it, so the second run skips
what is done, a killed run resumes, and one scoring serves many cuts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BrokenError, InputError

HASH_CHUNK_BYTES = 1 << 22


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

    @contextmanager
    def make(self, stage: str, key: dict[str, Any]) -> Iterator[Path]:
        """Yield an empty folder to fill; it becomes the output when the block ends without error.

        `key.json` inside it records what determined the output.
        """
        target = self._folder(stage, key)
        with new_folder(target) as folder:
            write_json(folder / "key.json", {"stage": stage, **key})
            yield folder

    def _folder(self, stage: str, key: dict[str, Any]) -> Path:
        return self.root / stage / digest_of({"stage": stage, **key})[:32]


def default_root() -> Path:
    """`$UNLEARN_CACHE`, or `unlearn` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if chosen := os.environ.get("UNLEARN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearn"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a sibling temporary folder that is renamed to `target` when the block succeeds.

    An existing `target` is replaced as a whole, and only then. On any error, Ctrl-C included, the
    temporary folder is removed and `target` stays as it was.

    Raises:
        InputError: the place cannot be written to.
        BrokenError: the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)  # mkdtemp makes it private; what is published should be readable
    except OSError as error:
        raise _explain(error, target) from error
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, target)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _replace(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _explain(error: OSError, target: Path) -> Exception:
    where = str(target)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BrokenError(
            "no space left on the disk; nothing was changed",
            where=where,
            remedy="free some space, or choose another place with --out or --cache-dir",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(
            f"this place cannot be written to ({error.strerror})",
            where=where,
            remedy="choose another place with --out or --cache-dir, or change its permissions",
        )
    return error
