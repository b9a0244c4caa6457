"""The manifest: what was removed from what, with hashes of every file."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cache import digest_of_file, read_json, write_json
from pipeline.export.manifest_schema import FORMAT

NAME = "pruning_manifest.json"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm_eval",
    "numpy",
    "datasets",
    "accelerate",
    "gguf",
)


def environment() -> dict[str, str]:
    """Versions of everything that can change a result."""
    return {
        "unlearn-pipeline": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest last: it holds the hash of every other file of the folder."""
    files = {
        str(path.relative_to(folder)): {
            "sha256": digest_of_file(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }
    write_json(folder / NAME, {"format": FORMAT, **content, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none that can be read.

    Raises:
        PermissionError: it has one that this user may not read.
    """
    try:
        return checked_manifest(folder)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder: an object with a format and files.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such object, or other readers would read something else in it.
    """
    content = read_json(folder / NAME)
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError("it is not an object that lists files")
    if type(content.get("format")) is not int:  # true and 1.0 are equal to 1
        raise ValueError("its format is no integer")
    try:
        json.dumps(content, allow_nan=False)  # Python reads NaN, which is no JSON
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content
