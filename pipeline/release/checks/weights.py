"""Weight files of a release: whether they can be read, and hold what their index says."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.cache import read_json
from pipeline.errors import InputError
from pipeline.release.checks.findings import Finding
from pipeline.sources.model_folder import check_weights
from pipeline.surgery.safetensors_stream import INDEX_NAME, StoredTensor, stored_tensors

METADATA = {"format": "pt"}


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
        if content != beside:
            found.append(Finding(INDEX_NAME, "holds more than, or not, the tensors' total size"))
        found += [
            Finding(INDEX_NAME, f"names {name} in {named.get(name)}, it is in {stored.get(name)}")
            for name in sorted(named.keys() | stored.keys())
            if named.get(name) != stored.get(name)
        ]
    for file in sorted({tensor.file for tensor in released}):
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata()
        except (SafetensorError, OSError) as error:
            found.append(Finding(file.name, f"cannot be read ({error})"))
            continue
        if metadata != METADATA:
            found.append(Finding(file.name, f"its metadata is {metadata}, expected {METADATA}"))
    return found
