"""Safetensors files written as tensors come, when their sizes are not known before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.cache import write_json
from pipeline.sources.model_folder import INDEX, PICKLED_INDEX, SMALL_FILES

SHARD_BYTES = 1 << 30  # that are held at once
SINGLE = "model.safetensors"


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors into files of a limited size, with an index if there are several.

    Args:
        folder: where to write.
        tensors: names and tensors; no more of them are held than one file takes.
        shard_bytes: size at which a new file begins.
    """
    files = []
    for number, shard in enumerate(_shards(tensors, shard_bytes)):
        path = folder / f"{number}.part"
        save_file(shard, path, {"format": "pt"})
        path.chmod(0o644)  # the library makes it private
        files.append((path, list(shard), sum(tensor.nbytes for tensor in shard.values())))
    if len(files) == 1:
        files[0][0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names, _) in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(size for *_, size in files)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def small_files(folder: Path) -> list[Path]:
    """What belongs to a model beside its weights: settings, tokenizer, card and licence."""
    found = {path for pattern in SMALL_FILES for path in folder.glob(pattern)}
    indices = (INDEX, PICKLED_INDEX)
    return sorted(path for path in found if path.is_file() and path.name not in indices)


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if shard and filled + tensor.nbytes > shard_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += tensor.nbytes
    yield shard
