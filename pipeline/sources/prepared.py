"""A model folder as surgery wants it; what is stored otherwise is converted once, and cached."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.architectures.registry import check_described
from pipeline.cache import Cache
from pipeline.progress import Progress
from pipeline.recipe import Model
from pipeline.sources import pickled_models
from pipeline.sources.model_folder import (
    check_settings,
    pickled_error,
    pickled_files,
    read_config,
)
from pipeline.sources.remote_code import check_code, code_files, references
from pipeline.sources.shards import small_files

Digest = Callable[[Path], str]


@dataclass(frozen=True)
class Conversion:
    """A way in which a folder is stored that must be changed first.

    Attributes:
        name: "pickled"; what tables call the model's kind.
        key: what determines the converted folder, for the cache.
        origin: what the manifest says of it.
        files: what belongs to the model beside its weights, and is copied.
        work: writes the weights into a folder that has these.
    """

    name: str
    key: dict[str, Any]
    origin: dict[str, str]
    files: list[Path]
    work: Callable[[Path], None]

    def fill(self, folder: Path) -> None:
        """Make the converted folder."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        self.work(folder)


def prepare(
    folder: Path, model: Model, where: str, cache: Cache, progress: Progress, digest: Digest
) -> tuple[Path, dict[str, str]]:
    """Return the folder with plain safetensors, and what was converted for the manifest.

    Args:
        folder: the model's folder, in whatever form.
        model: the recipe's `model`, which allows conversions.
        where: what the user calls the model, for errors.
        cache: keeps converted folders.
        progress: told about conversions.
        digest: SHA-256 of one file.

    Raises:
        InputError: a conversion is needed that the recipe does not ask for, or a file is damaged.
    """
    origin: dict[str, str] = {}
    while (conversion := _next(folder, model, where, digest)) is not None:
        if cache.find("base", conversion.key) is None:
            progress.say(
                f"Converting {conversion.name} weights to safetensors (once; they are cached)"
            )
        folder = cache.get("base", conversion.key, conversion.fill)
        origin |= conversion.origin
    return folder, origin


def prepared(
    folder: Path, model: Model, where: str, cache: Cache, digest: Digest
) -> tuple[Path | None, str]:
    """Return the folder that `prepare` returns if nothing is to be converted for it, and its kind.

    Raises:
        InputError: as `prepare`.
    """
    kind, found = "folder", folder
    while (conversion := _next(found, model, where, digest)) is not None:
        kind = conversion.name
        at_hand = cache.find("base", conversion.key)
        if at_hand is None:
            return None, kind
        found = at_hand
    return found, kind


def _next(folder: Path, model: Model, where: str, digest: Digest) -> Conversion | None:
    if files := pickled_files(folder, where):
        if not model.allow_pickle:
            raise pickled_error(where)
        _check_worth(folder, where)
        runs_code = check_code(folder, where, allowed=model.trust_remote_code)
        beside = small_files(folder)
        if references(folder, where):
            beside += [folder / name for name in code_files(folder)]
        code = folder if runs_code else None
        return Conversion(
            name="pickled",
            key=_key("pickled", [*files, *beside], digest, pickled_models.FORMAT_VERSION),
            origin={f"sha256 of {file.name}": digest(file) for file in files},
            files=beside,
            work=lambda new: pickled_models.convert(folder, new, where, code),
        )
    return None


def _check_worth(folder: Path, where: str) -> None:
    """Refuse before a long conversion what would be refused after it."""
    check_settings(folder, where)
    check_described(read_config(folder, where)["model_type"], where)


def _key(way: str, files: list[Path], digest: Digest, version: int) -> dict[str, Any]:
    return {
        "way": way,
        "format": version,
        "files": {file.name: digest(file) for file in files},
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
