"""Surgery: a smaller checkpoint folder from a larger one, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import BrokenError
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.coordinates import TensorCut
from pipeline.surgery.safetensors_stream import (
    TORCH_DTYPES,
    StoredTensor,
    stored_tensors,
    write_checkpoint,
)

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class SurgeryReport:
    """What surgery did to each tensor.

    Attributes:
        sliced: names of tensors whose entries were copied, without those of removed units.
        compensated: names of output projections that were sliced and compensated.
        untouched: number of tensors that passed through unchanged.
        parameters: parameters before and after, as stored.
        bytes: bytes of weights before and after.
    """

    sliced: list[str]
    compensated: list[str]
    untouched: int
    parameters: tuple[int, int]
    bytes: tuple[int, int]


def cut_checkpoint(
    base: Path,
    target: Path,
    cuts: Mapping[str, TensorCut],
    maps: Mapping[str, CompensationMap],
    advance: Callable[[float], None],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> SurgeryReport:
    """Write the weights of `base`, cut and compensated, into the folder `target`.

    One tensor is in memory at a time. Tensors keep the type in which they are stored, and those
    that no cut names pass through unchanged.

    Args:
        base: checkpoint folder with safetensors files.
        target: existing folder.
        cuts: by tensor name, the entries that stay.
        maps: by tensor name, the compensation of output projections.
        advance: called with the bytes of each tensor written.
        max_shard_bytes: size at which a new file begins.

    Raises:
        BrokenError: the disk has no room, or a tensor is stored in a type that cannot be cut.
    """
    before = stored_tensors(base)
    by_name = {tensor.name: tensor for tensor in before}
    after = [_resized(tensor, cuts) for tensor in before]
    check_room(target, sum(tensor.size for tensor in after))

    def produce(name: str) -> Tensor | None:
        if name not in cuts:
            return None
        tensor = by_name[name].read()
        if name in maps:
            axis = cuts[name].axis
            kept = maps[name].kept_columns(tensor.movedim(axis, 1)).movedim(1, axis)
            return cuts[name].place(kept)
        return cuts[name].apply(tensor)

    write_checkpoint(target, after, produce, max_shard_bytes, advance)
    return SurgeryReport(
        sliced=sorted(set(cuts) & set(by_name) - set(maps)),
        compensated=sorted(maps),
        untouched=len(set(by_name) - set(cuts)),
        parameters=(parameters_of(before), parameters_of(after)),
        bytes=(sum(t.size for t in before), sum(t.size for t in after)),
    )


def parameters_of(tensors: list[StoredTensor]) -> int:
    """Parameters of a checkpoint, as stored: tied weights count once."""
    return sum(torch.Size(tensor.shape).numel() for tensor in tensors)


def check_room(target: Path, needed: int) -> None:
    """Check that a folder's disk has so many bytes left.

    Raises:
        BrokenError: it has not.
    """
    free = shutil.disk_usage(target).free
    if free < needed:
        raise BrokenError(
            f"no space left on the disk: {needed / 1e6:,.1f} MB are needed, "
            f"{free / 1e6:,.1f} MB are free; nothing was changed",
            where=str(target.parent),
            remedy="free some space, or choose another place with --out",
        )


def _resized(tensor: StoredTensor, cuts: Mapping[str, TensorCut]) -> StoredTensor:
    cut = cuts.get(tensor.name)
    if cut is None:
        return tensor
    if tensor.dtype not in TORCH_DTYPES:
        raise BrokenError(
            f"{tensor.name} is stored as {tensor.dtype}, which cannot be cut",
            where=str(tensor.file),
            remedy="dequantise the base model first and save it as bfloat16 or float32",
        )
    if tensor.shape[cut.axis] != cut.total:
        raise BrokenError(
            f"{tensor.name} has {tensor.shape[cut.axis]} entries on axis {cut.axis}, "
            f"the plan expects {cut.total}",
            where=str(tensor.file),
        )
    return tensor.resized(cut.axis, len(cut.entries))
