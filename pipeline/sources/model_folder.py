"""What a usable model folder is: config, whole safetensors and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.cache import check_permission, digest_of, digest_of_file, read_json
from pipeline.errors import InputError
from pipeline.sources.licences import LICENCE_FILES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# What belongs to a model beside its weights; the card states the licence.
SMALL_FILES = (
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "*.tiktoken",
    *LICENCE_FILES,
    "README.md",  # states the licence
)
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
    config = check_settings(folder, where)
    check_weights(folder, where)
    check_one_form(folder / INDEX, SINGLE, where)
    if (index := folder / INDEX).is_file():
        check_index(index, {file.name: _names(file) for file in safetensors_files(folder, where)})
    return config


def check_settings(folder: Path, where: str) -> dict[str, Any]:
    """Check what belongs to a model beside its weights, and return its config.

    Raises:
        InputError: config or tokenizer is missing, or a file is damaged; it names the file.
    """
    config = read_config(folder, where)
    for name in SETTINGS:
        if (folder / name).is_file():
            _read_object(folder / name)
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
    if not isinstance(config["model_type"], str):
        raise InputError(f"its model_type is {config['model_type']!r}, no name", where=str(path))
    return config


def safetensors_files(folder: Path, where: str) -> list[Path]:
    """Return the files that hold a model's weights, sorted: those of the index if there is one.

    Raises:
        InputError: there are no weights, or the index names a file that is missing.
    """
    index = folder / INDEX
    if index.is_file():
        return indexed_files(index, where)
    single = folder / SINGLE
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


def pickled_files(folder: Path, where: str) -> list[Path]:
    """Return the files of a model whose weights are pickled and nothing else, sorted; else none.

    Raises:
        InputError: the index is damaged, names a file that is missing, or is one of two forms.
    """
    if any(folder.glob("*.safetensors")) or (folder / INDEX).is_file():
        return []
    if (index := folder / PICKLED_INDEX).is_file():
        check_one_form(index, PICKLED, where)
        return indexed_files(index, where)
    return [folder / PICKLED] if (folder / PICKLED).is_file() else []


def indexed_files(index: Path, where: str) -> list[Path]:
    """Return the files that an index names, sorted.

    Raises:
        InputError: the index is damaged, or names a file that is missing or outside the folder.
    """
    names = sorted(set(_weight_map(index).values()))
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise InputError(
            f"the index names a file outside the folder: {outside[0]!r}",
            where=str(index),
            remedy="download or copy the model again",
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing)}",
            where=where,
            remedy="download or copy the model again",
        )
    return [index.parent / name for name in names]


def check_one_form(index: Path, single: str, where: str) -> None:
    """Check that a folder does not hold its weights twice, as one file and as those of an index.

    transformers would read the single file, and what goes by the index the others.

    Args:
        index: the index; there need be none.
        single: name of the single file.
        where: what the user calls the folder, for errors.

    Raises:
        InputError: it holds both.
    """
    if not index.is_file() or not (alone := index.with_name(single)).is_file():
        return
    if indexed_files(index, where) != [alone]:
        raise InputError(
            f"it holds its weights in two forms, {single} and the files that {index.name} names, "
            "and programs differ in which they read",
            where=where,
            remedy=f"move {single} out of the folder, or the index and its files",
        )


def check_index(index: Path, stored: Mapping[str, Collection[str]]) -> None:
    """Check that each tensor is in the file that an index names for it, and in no other.

    Args:
        index: the index.
        stored: names of the tensors of each file, by the file's name.

    Raises:
        InputError: a tensor is missing, in another file, stored twice, or not in the index.
    """
    holders: dict[str, list[str]] = {}
    for file, names in stored.items():
        for name in names:
            holders.setdefault(name, []).append(file)
    listed = _weight_map(index)
    for name in sorted(listed.keys() | holders.keys()):
        found, named = holders.get(name, []), listed.get(name)
        if found == [named]:
            continue
        what = f"it names {name} in {named}, and the tensor is " + (
            f"in {' and '.join(found)}" if found else "in no file"
        )
        if named is None:
            what = f"it does not name {name}, which is in {' and '.join(found)}"
        raise InputError(what, where=str(index), remedy="download or copy the model again")


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


def pickled_error(where: str) -> InputError:
    """The error for a model whose weights are pickled, and may not be read."""
    return InputError(
        "its weights are pickled (.bin or .pth), which can run code when they are read",
        where=where,
        remedy="set model.allow_pickle in a recipe, which reads the tensors of pytorch_model.bin "
        "and runs nothing, or save the model as safetensors with save_pretrained()",
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("the index has no weight_map", where=str(index))
    return {str(name): str(file) for name, file in weight_map.items()}


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _no_weights(folder: Path, where: str) -> InputError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return pickled_error(where)
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
