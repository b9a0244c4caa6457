"""Weight files of a release: whether they can be read, and hold what their index says."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.cache import read_json, same_json
from pipeline.errors import InputError
from pipeline.release.checks.findings import Finding, shortened
from pipeline.sources.model_folder import check_weights
from pipeline.surgery.safetensors_stream import (
    INDEX_NAME,
    SINGLE_NAME,
    StoredTensor,
    stored_tensors,
    tensors_of,
)

METADATA = {"format": "pt"}
# Loaders take a file under another name for something else: a pickle, code, a chat template.
SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MAP_TYPE = "F32"


def weight_files(folder: Path) -> tuple[list[StoredTensor], list[Finding]]:
    """Return the tensors of a release, or none and why they cannot be read."""
    try:
        check_weights(folder, str(folder))
        return stored_tensors(folder), []
    except InputError as error:
        where = Path(error.where).name or str(folder)
        return [], [Finding(where, error.what)]


def check_weight_files(folder: Path, released: list[StoredTensor]) -> list[Finding]:
    """Compare index and headers with the tensors that are there."""
    found = []
    index = folder / INDEX_NAME
    if index.is_file():
        content = read_json(index)
        named = content.pop("weight_map")
        stored = {tensor.name: tensor.file.name for tensor in released}
        beside = {"metadata": {"total_size": sum(tensor.size for tensor in released)}}
        if not same_json(content, beside):
            found.append(Finding(INDEX_NAME, "holds more than, or not, the tensors' total size"))
        found += [
            Finding(INDEX_NAME, f"names {name} in {named.get(name)}, it is in {stored.get(name)}")
            for name in sorted(named.keys() | stored.keys())
            if named.get(name) != stored.get(name)
        ]
        found += [
            Finding(INDEX_NAME, f"names a file {shortened(name)!r}, which is no name of weights")
            for name in sorted(set(stored.values()))
            if not SHARD_NAME.fullmatch(name)
        ]
    elif released[0].file.name != SINGLE_NAME:
        what = f"is no {SINGLE_NAME}, and no {INDEX_NAME} names it: loaders do not find it"
        found.append(Finding(released[0].file.name, what))
    for file in sorted({tensor.file for tensor in released}):
        found += _check_metadata(file, file.name)
    return found


def check_map_file(path: Path, name: str) -> list[Finding]:
    """Check that a file of compensation maps holds float32 tensors and nothing else.

    Args:
        path: the file, which the library can open.
        name: what it is called in the release.
    """
    try:
        tensors = tensors_of(path)
    except InputError as error:
        return [Finding(name, error.what)]
    types = sorted({tensor.dtype for tensor in tensors} - {MAP_TYPE})
    found = [Finding(name, f"holds {', '.join(types)}, expected {MAP_TYPE}")] if types else []
    return found + _check_metadata(path, name)


def _check_metadata(path: Path, name: str) -> list[Finding]:
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
    except (SafetensorError, OSError) as error:
        return [Finding(name, f"cannot be read ({error})")]
    if metadata != METADATA:
        return [Finding(name, f"its metadata is {metadata}, expected {METADATA}")]
    return []
