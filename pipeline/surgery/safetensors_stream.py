"""Safetensors files written one tensor at a time, so that a checkpoint is never held whole.

The library writes a file from tensors that are all in memory. The format needs only the shapes to
be known first: eight bytes of header length, a JSON header, then the tensors' bytes in order
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.cache import parse_json, read_json, write_json
from pipeline.errors import InputError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HEADER_LENGTH_BYTES = 8
CHUNK_BYTES = 1 << 23
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
Produce = Callable[[str], Tensor | None]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header describes it.

    Attributes:
        name: full name.
        file: file that holds it.
        dtype: the format's name of the type, such as "BF16".
        shape: lengths of its axes.
        size: bytes.
        offset: where its bytes begin in the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    size: int
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The stored type as torch calls it.

        Raises:
            InputError: it is a quantised type, of which single rows and columns mean nothing.
        """
        if self.dtype not in TORCH_DTYPES:
            raise InputError(
                f"{self.name} is stored as {self.dtype}, which cannot be cut",
                where=str(self.file),
                remedy="give the model in bfloat16, float16 or float32: load it with "
                "transformers, dequantise it, and save_pretrained() it to a folder",
            )
        return TORCH_DTYPES[self.dtype]

    def read(self) -> Tensor:
        """Load this tensor alone, in its stored type.

        Raises:
            InputError: the file has become shorter than its header says.
        """
        if self.dtype not in TORCH_DTYPES:
            with safe_open(self.file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(self.name)
            return tensor
        # In one piece: the library maps the file and reads its header anew for each tensor.
        held = torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            if stream.readinto(held.numpy().data) != self.size:
                raise InputError("this file is cut short", where=str(self.file))
        return held.view(TORCH_DTYPES[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes as they are stored, a few megabytes at a time."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            left = self.size
            while left > 0 and (chunk := stream.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    def reshaped(self, shape: tuple[int, ...], name: str) -> StoredTensor:
        """A tensor of the same type with another shape and name."""
        size = self.size // max(math.prod(self.shape), 1) * math.prod(shape)
        return replace(self, name=name, shape=shape, size=size)


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of a checkpoint folder, in file and storage order.

    Raises:
        InputError: a file's header can be read in two ways.
    """
    return [tensor for file in _weight_files(folder) for tensor in tensors_of(file)]


def tensors_of(file: Path) -> list[StoredTensor]:
    """Every tensor of a file that the library can open, in storage order.

    Raises:
        InputError: its header can be read in two ways: a tensor is named twice, say.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        try:
            header: dict[str, Any] = parse_json(stream.read(length))
        except ValueError as error:
            raise InputError(
                f"its header can be read in two ways: {error}",
                where=str(file),
                remedy="download or copy it again",
            ) from error
    header.pop("__metadata__", None)
    found = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        start, end = entry["data_offsets"]
        place = HEADER_LENGTH_BYTES + length + start
        shape = tuple(entry["shape"])
        found.append(StoredTensor(name, file, entry["dtype"], shape, end - start, place))
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder; one that holds them in two forms is no base."""
    index = folder / INDEX_NAME
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    single = folder / SINGLE_NAME
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def write_checkpoint(
    folder: Path,
    tensors: Iterable[StoredTensor],
    produce: Produce,
    max_shard_bytes: int,
    advance: Callable[[float], None],
) -> None:
    """Write tensors into as many files as needed, with an index if there are several.

    Args:
        folder: where to write.
        tensors: what to write; shapes and sizes are those of the output.
        produce: returns the tensor of a name, or None if its bytes are to be copied from the file
            that holds it; called once for each, in order, by another thread.
        max_shard_bytes: size at which a new file begins.
        advance: called with the bytes of each tensor written.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = [SINGLE_NAME]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, produce, advance)
    if len(shards) > 1:
        write_json(
            folder / INDEX_NAME,
            {
                "metadata": {"total_size": sum(t.size for shard in shards for t in shard)},
                "weight_map": {
                    t.name: name for name, shard in zip(names, shards, strict=True) for t in shard
                },
            },
        )


def _shards(tensors: Iterable[StoredTensor], max_bytes: int) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _write_file(
    path: Path,
    tensors: list[StoredTensor],
    produce: Produce,
    advance: Callable[[float], None],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # One tensor is written while the next is read and cut: two are in memory at a time.
    with path.open("wb") as stream, ThreadPoolExecutor(1) as pool:
        stream.write(len(text).to_bytes(HEADER_LENGTH_BYTES, "little"))
        stream.write(text)
        coming = pool.submit(produce, tensors[0].name)
        for tensor, following in zip_longest(tensors, tensors[1:]):
            produced = coming.result()
            if following is not None:
                coming = pool.submit(produce, following.name)
            if produced is None:
                for chunk in tensor.chunks():
                    stream.write(chunk)
            else:
                stream.write(_bytes_of(produced, tensor))
            advance(tensor.size)


def _bytes_of(tensor: Tensor, expected: StoredTensor) -> memoryview:
    if tuple(tensor.shape) != expected.shape:
        raise RuntimeError(
            f"{expected.name} has shape {tuple(tensor.shape)}, its header says {expected.shape}"
        )
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
