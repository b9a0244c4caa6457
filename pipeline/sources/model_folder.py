"""What a usable model folder is: config, whole safetensors and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.cache import check_permission, digest_of, digest_of_file, read_json
from pipeline.errors import InputError

INDEX = "model.safetensors.index.json"
SETTINGS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def check_folder(folder: Path, where: str) -> dict[str, Any]:
    """Check that a folder holds a whole model and return its config.

    Args:
        folder: the model folder.
        where: what the user calls it, for errors.

    Raises:
        InputError: something is missing or damaged; it names the file.
    """
    config = read_config(folder, where)
    for name in SETTINGS:
        if (folder / name).is_file():
            _read_object(folder / name)
    check_weights(folder, where)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(
            "the model has no tokenizer",
            where=where,
            remedy="save it into the same folder with tokenizer.save_pretrained()",
        )
    return config


def check_weights(folder: Path, where: str) -> None:
    """Check that a folder's weights are there and whole.

    Raises:
        InputError: a file is missing, damaged or cut short.
    """
    for file in safetensors_files(folder, where):
        _check_safetensors(file)


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Read a model folder's `config.json`.

    Raises:
        InputError: there is none, or it is not a JSON object that names a model type.
        PermissionError: it may not be read.
    """
    path = folder / "config.json"
    check_permission(folder)
    if not path.is_file():
        raise InputError(
            "there is no config.json in it, so it is not a Hugging Face model folder",
            where=where,
            remedy="give a folder written by save_pretrained(), or a .gguf file",
        )
    config = _read_object(path)
    if "model_type" not in config:
        raise InputError("it names no model_type", where=str(path))
    return config


def safetensors_files(folder: Path, where: str) -> list[Path]:
    """Return the files that hold a model's weights, sorted: those of the index if there is one.

    Raises:
        InputError: there are no weights, or the index names a file that is missing.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("the index has no weight_map", where=str(index))
        names = sorted({str(name) for name in weight_map.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise InputError(
                f"the index names a file outside the folder: {outside[0]!r}",
                where=str(index),
                remedy="download or copy the model again",
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing)}",
                where=where,
                remedy="download or copy the model again",
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise _no_weights(folder, where)
    if len(files) > 1:
        raise InputError(
            f"there are {len(files)} safetensors files but no {INDEX}",
            where=where,
            remedy="load the model and save it again with model.save_pretrained()",
        )
    return files


def digest_of_weights(
    folder: Path, where: str, digest: Callable[[Path], str] = digest_of_file
) -> str:
    """SHA-256 of the names and contents of a model's weight files.

    Args:
        folder: the model folder.
        where: what the user calls it, for errors.
        digest: of one file; by default it is read.

    Raises:
        InputError: there are no weights, or a file is missing.
    """
    return digest_of([[file.name, digest(file)] for file in safetensors_files(folder, where)])


def _no_weights(folder: Path, where: str) -> InputError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return InputError(
            "its weights are pickled (.bin or .pth), which can run code when they are read",
            where=where,
            remedy="convert it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes "
            "safetensors",
        )
    if any(folder.glob("*.gguf")):
        return InputError(
            "the folder holds GGUF files and no safetensors",
            where=where,
            remedy="give the .gguf file itself as `path`",
        )
    return InputError(
        "there are no weights (*.safetensors) in it",
        where=where,
        remedy="give a folder written by save_pretrained(), or a .gguf file",
    )


def _check_safetensors(path: Path) -> None:
    check_permission(path)
    try:
        with safe_open(path, framework="pt") as tensors:  # checks the header against the size
            empty = not tensors.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"this safetensors file is damaged or cut short ({error})",
            where=str(path),
            remedy="download or copy it again",
        ) from error
    if empty:
        raise InputError("this safetensors file holds no tensors", where=str(path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise InputError(
            f"this is not JSON: {error}", where=str(path), remedy="download or copy it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError("this is not a JSON object", where=str(path))
    return value
