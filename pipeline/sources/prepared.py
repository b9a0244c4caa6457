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
from pipeline.recipe.texts import Model
from pipeline.sources import pickled_models, quantised_models
from pipeline.sources.model_folder import (
    INDEX,
    SINGLE,
    check_one_form,
    check_settings,
    check_weights,
    digest_of_weights,
    pickled_error,
    pickled_files,
    read_config,
    safetensors_files,
)
from pipeline.sources.quantised_models import check_quantisation
from pipeline.sources.remote_code import check_code, code_files, references
from pipeline.sources.shards import small_files

Digest = Callable[[Path], str]


@dataclass(frozen=True)
class Conversion:
    """A way in which a folder is stored that must be changed first.

    Attributes:
        name: "pickled", "fp8" or "mxfp4"; what tables call the model's kind.
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
    config = read_config(folder, where)
    pickled = pickled_files(folder, where)
    if pickled and not model.allow_pickle:
        raise pickled_error(where)
    method = check_quantisation(config, where, allowed=model.dequantise)
    if not pickled and method is None:
        return None
    # What would be refused after a long conversion is refused before it.
    check_settings(folder, where)
    check_described(config["model_type"], where)
    beside = small_files(folder)
    if references(folder, where):
        beside += [folder / name for name in code_files(folder)]
    if pickled:
        code = folder if check_code(folder, where, allowed=model.trust_remote_code) else None
        return Conversion(
            name="pickled",
            key=_key({"pickled": pickled_models.FORMAT_VERSION}, [*pickled, *beside], digest),
            origin={f"sha256 of {file.name}": digest(file) for file in pickled},
            files=beside,
            work=lambda new: pickled_models.convert(folder, new, where, code),
        )
    assert method is not None
    check_weights(folder, where)
    check_one_form(folder / INDEX, SINGLE, where)
    stored = safetensors_files(folder, where)
    way = {method: quantised_models.FORMAT_VERSION, "dtype": model.dtype}
    return Conversion(
        name=method,
        key=_key(way, [*stored, *beside], digest),
        origin={
            "dequantised": f"{method} to {model.dtype}",
            "quantised_sha256": digest_of_weights(folder, where, digest),
        },
        files=beside,
        work=lambda new: quantised_models.convert(folder, new, where, model.dtype),
    )


def _key(way: dict[str, Any], files: list[Path], digest: Digest) -> dict[str, Any]:
    return {
        "way": way,
        "files": {file.name: digest(file) for file in files},
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
