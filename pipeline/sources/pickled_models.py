"""Pickled weights (`pytorch_model.bin`) as safetensors: tensors are read, and nothing is run.

A pickle is a program. PyTorch's `weights_only` reader knows the few instructions that make tensors,
and refuses all others before it does anything.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.sources.explained import explained
from pipeline.sources.model_folder import PICKLED_INDEX, check_index, pickled_files, read_config
from pipeline.sources.quantised_models import without_quantisation
from pipeline.sources.remote_code import empty_model
from pipeline.sources.shards import SHARD_BYTES, write_shards

FORMAT_VERSION = 1  # part of the cache key: raise it when the converted folder changes


def convert(
    source: Path,
    folder: Path,
    where: str,
    code: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's pickled weights as safetensors.

    The files are mapped into memory one after the other, and tensors keep their stored type. Of
    tensors that share memory because the config ties them, one is written, as transformers does.

    Args:
        source: folder with `pytorch_model.bin`, or with its parts and their index.
        folder: existing folder that receives the weights.
        where: what the user calls the model, for errors.
        code: folder whose code may be run.
        shard_bytes: size at which a new file begins.

    Raises:
        InputError: a file is damaged or holds more than tensors, or the index is wrong.
    """
    files = pickled_files(source, where)
    tied = _tied_names(source, where, code)
    stored: dict[str, list[str]] = {}
    write_shards(folder, _tensors(files, tied, stored), shard_bytes)
    if (index := source / PICKLED_INDEX).is_file():
        check_index(index, stored)


def _tensors(
    files: list[Path], tied: set[str], stored: dict[str, list[str]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield what is to be written; `stored` is filled with the names that each file holds."""
    for file in files:
        tensors = _read(file)
        stored[file.name] = list(tensors)
        owners = {_memory(tensor) for name, tensor in tensors.items() if name not in tied}
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name in tied and _memory(tensor) in owners:
                continue
            yield name, tensor.clone(memory_format=torch.contiguous_format)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            content: Any = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        raise InputError(
            "this pickle holds more than tensors, or is damaged; nothing of it was run "
            f"({_reason(error)})",
            where=str(file),
            remedy="use weights from a source that you trust, as safetensors",
        ) from error
    # What the reader of a damaged file raises: it decodes, indexes and reshapes what it finds.
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, OSError) as error:
        raise InputError(
            f"this file of pickled weights is damaged or cut short ({_reason(error)})",
            where=str(file),
            remedy="download or copy it again",
        ) from error
    if not isinstance(content, dict) or not content:
        raise InputError("this file of pickled weights holds no tensors by name", where=str(file))
    for name, value in content.items():
        _check(name, value, file)
    return {str(name): value.detach() for name, value in content.items()}


def _check(name: object, value: object, file: Path) -> None:
    plain = (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_quantized
    )
    if not isinstance(name, str) or not plain:
        raise InputError(
            f"{name!r} is no plain tensor of this file of pickled weights",
            where=str(file),
            remedy="give a file with the model's state_dict and nothing else",
        )
    assert isinstance(value, Tensor)
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(  # a few bytes that pretend to be more than any memory holds
            f"{name} is stored with fewer bytes than its shape {list(value.shape)} needs",
            where=str(file),
            remedy="download or copy it again",
        )


def _tied_names(source: Path, where: str, code: Path | None) -> set[str]:
    """Names that the config ties to another tensor, such as the output layer's weight."""
    config = without_quantisation(read_config(source, where))
    with explained("config", source), torch.device("meta"):
        return set(empty_model(config, code).all_tied_weights_keys)


def _memory(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())


def _reason(error: BaseException) -> str:
    """What the library says, without its advice to switch the check off."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    said = [line for line in lines if line.startswith(("Trying to load", "Unsupported"))]
    return (said or lines)[0].split(". ")[0]
