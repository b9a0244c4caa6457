"""Surgery: a smaller checkpoint folder from a larger one, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.registry import BUFFERS
from pipeline.errors import BrokenError
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.safetensors_stream import (
    TORCH_DTYPES,
    StoredTensor,
    stored_tensors,
    write_checkpoint,
)
from pipeline.surgery.tensor_cut import TensorCut

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

    Two tensors are in memory at a time. Tensors keep the type in which they are stored, and those
    that no cut names pass through unchanged.

    Args:
        base: checkpoint folder with safetensors files.
        target: existing folder.
        cuts: by tensor name, the entries that stay.
        maps: by the projection's key, the compensation of output projections.
        advance: called with the bytes of each tensor written.
        max_shard_bytes: size at which a new file begins.

    Raises:
        BrokenError: the disk has no room, or a tensor is stored in a type that cannot be cut.
    """
    before = stored_tensors(base)
    after: list[StoredTensor] = []
    origins: dict[str, StoredTensor] = {}  # by the name after the cut
    for tensor in before:
        if (resized := _resized(tensor, cuts)) is not None:
            after.append(resized)
            origins[resized.name] = tensor
    check_room(target, sum(tensor.size for tensor in after))
    compensated = {
        tensor.name
        for tensor in before
        if tensor.name in cuts and not maps.keys().isdisjoint(cuts[tensor.name].keys(tensor.name))
    }

    def produce(name: str) -> Tensor | None:
        origin = origins[name]
        if origin.name not in cuts:
            return None
        cut, tensor = cuts[origin.name], origin.read()
        if origin.name not in compensated:
            return cut.apply(tensor)
        return compensate(tensor, cut, origin.name, maps)

    write_checkpoint(target, after, produce, max_shard_bytes, advance)
    return SurgeryReport(
        sliced=sorted(set(cuts) & {tensor.name for tensor in before} - compensated),
        compensated=sorted(compensated),
        untouched=len({tensor.name for tensor in before} - set(cuts)),
        parameters=(parameters_of(before), parameters_of(after)),
        bytes=(sum(t.size for t in before), sum(t.size for t in after)),
    )


def compensate(
    tensor: Tensor, cut: TensorCut, name: str, maps: Mapping[str, CompensationMap]
) -> Tensor:
    """An output projection, or a stack of them, cut and compensated."""
    if not cut.experts:
        kept = maps[name].kept_columns(tensor.movedim(cut.axis, 1)).movedim(1, cut.axis)
        return cut.place(kept)
    smaller = cut.apply(tensor).contiguous()
    for each in cut.matrices():
        if (own := maps.get(each.key(name))) is not None:
            columns = own.kept_columns(each.before(tensor).movedim(cut.axis, 1))
            each.after(smaller).movedim(cut.axis, 1).copy_(columns)
    return smaller


def parameters_of(tensors: list[StoredTensor]) -> int:
    """Parameters of a checkpoint, as stored: tied weights count once, and buffers do not."""
    own = (tensor for tensor in tensors if not tensor.name.endswith(BUFFERS))
    return sum(torch.Size(tensor.shape).numel() for tensor in own)


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


def _resized(tensor: StoredTensor, cuts: Mapping[str, TensorCut]) -> StoredTensor | None:
    """A tensor as it is after the cut; None if all of it goes."""
    cut = cuts.get(tensor.name)
    if cut is None:
        return tensor
    if tensor.dtype not in TORCH_DTYPES:
        raise BrokenError(
            f"{tensor.name} is stored as {tensor.dtype}, which cannot be cut",
            where=str(tensor.file),
            remedy="dequantise the base model first and save it as bfloat16 or float32",
        )
    if (lengths := cut.lengths_of(tensor.shape)) != cut.before:
        raise BrokenError(
            f"{tensor.name} has {lengths} entries on its axes {cut.axes}, the plan expects "
            f"{cut.before}",
            where=str(tensor.file),
        )
    return None if cut.name is None else tensor.reshaped(cut.shape_of(tensor.shape), cut.name)
