"""Results of one model in a file of its own, to be used where nothing is cached.

A file is used only with a digest from elsewhere, and a result in it only for the very key that an
evaluation here looks for: weights, task and documents, settings and versions.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, digest_of_file
from pipeline.errors import InputError
from pipeline.evaluation.results import RESULT_FILE, SAMPLES_FILE, Evaluation
from pipeline.evaluation.run import STAGE

FILES = (RESULT_FILE, SAMPLES_FILE)


def store(path: Path, evaluation: Evaluation, cache: Cache) -> None:
    """Write an evaluation that was just made to a file.

    Raises:
        OSError: the file cannot be written.
    """
    entries = []
    for key in evaluation.keys.values():
        folder = cache.find(STAGE, key)
        assert folder is not None
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
        entries.append({"key": key, "files": texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def use_stored(path: Path, sha256: str, weights_sha256: str, cache: Cache) -> None:
    """Put the results of a file into the cache.

    Args:
        path: the file.
        sha256: digest that it must have.
        weights_sha256: digest of the model's weights; results of other weights are refused.
        cache: where they go.

    Raises:
        InputError: the file cannot be read, or its digest or the model's is another.
    """
    try:
        digest = digest_of_file(path)
        if digest != sha256.lower():
            raise InputError(
                f"its SHA-256 is {digest}, not {sha256}; nothing of it was used",
                where=str(path),
                remedy="give the file and the digest that belong together",
            )
        entries = json.loads(path.read_text(encoding="utf-8"))
        if others := [e for e in entries if e["key"]["weights_sha256"] != weights_sha256]:
            raise InputError(
                f"{len(others)} of its {len(entries)} results are of other weights than the "
                "base's; nothing of it was used",
                where=str(path),
                remedy="give results of this base",
            )
        for entry in entries:
            cache.get(STAGE, entry["key"], partial(_write, entry["files"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot be read as stored results ({error})",
            where=str(path),
            remedy="give a file that `unlearn validate --store-base-results` wrote",
        ) from error


def _write(texts: dict[str, Any], folder: Path) -> None:
    for name in FILES:
        (folder / name).write_text(texts[name], encoding="utf-8")
