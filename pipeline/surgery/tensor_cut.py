"""What a cut does to one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING = -1  # in the place of an entry: zeros


class MatrixCut(NamedTuple):
    """What stays of one matrix of a tensor, which may stack those of several experts.

    Attributes:
        expert: the expert; None where the tensor is the matrix.
        place: where the expert stands after the cut.
        kept: entries along the axis that stay, ascending.
        removed: entries that go, ascending.
    """

    expert: int | None
    place: int
    kept: tuple[int, ...]
    removed: tuple[int, ...]

    def before(self, tensor: Tensor) -> Tensor:
        """The matrix as a view of the tensor before the cut."""
        return tensor if self.expert is None else tensor[self.expert]

    def after(self, tensor: Tensor) -> Tensor:
        """The matrix as a view of the tensor after the cut."""
        return tensor if self.expert is None else tensor[self.place]

    def key(self, tensor: str) -> str:
        """What compensation maps call the matrix, given the name of its tensor in the base."""
        return key_of(tensor, self.expert)


def key_of(tensor: str, expert: int | None) -> str:
    """What compensation maps call a tensor's matrix, or that of one of the experts it stacks."""
    return tensor if expert is None else f"{tensor}[{expert}]"


@dataclass(frozen=True)
class TensorCut:
    """What stands along one axis after the cut, or along two that are read as one.

    Attributes:
        axes: axes that are cut; of two, the first varies slowest.
        entries: for each entry after the cut, which one it was; `NOTHING` stands for zeros.
        before: lengths of these axes before the cut.
        after: their lengths after it.
        name: full name of the tensor after the cut; None if all of it goes.
        experts: of a tensor that stacks matrices of experts, those that stay, in order.
    """

    axes: tuple[int, ...]
    entries: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    name: str | None
    experts: tuple[int, ...] = ()

    @property
    def keep(self) -> tuple[int, ...]:
        """Entries that stay, in the order in which they stand."""
        return tuple(entry for entry in self.entries if entry != NOTHING)

    @property
    def removed(self) -> tuple[int, ...]:
        """Entries that go, ascending."""
        kept = set(self.entries)
        return tuple(entry for entry in range(math.prod(self.before)) if entry not in kept)

    @property
    def pads(self) -> bool:
        """Whether zeros stand in the place of what was removed."""
        return NOTHING in self.entries

    @property
    def axis(self) -> int:
        """The axis of entries of units, in the tensor or in each matrix that it stacks."""
        return self.axes[-1] - (len(self.axes) - 1)

    def keys(self, tensor: str) -> list[str]:
        """What compensation maps call its matrices, given the name of the tensor in the base."""
        return [key_of(tensor, expert) for expert in self.experts or (None,)]

    def matrices(self) -> list[MatrixCut]:
        """Its matrices after the cut: one, or one for each expert that stays."""
        if not self.experts:
            return [MatrixCut(None, 0, self.keep, self.removed)]
        width, now = self.before[-1], self.after[-1]
        found = []
        for place, expert in enumerate(self.experts):
            own = self.entries[place * now : (place + 1) * now]
            kept = tuple(entry - expert * width for entry in own)
            present = set(kept)
            removed = tuple(entry for entry in range(width) if entry not in present)
            found.append(MatrixCut(expert, place, kept, removed))
        return found

    def lengths_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Lengths of the axes that are cut, in a tensor of that shape."""
        return tuple(shape[axis] for axis in self.axes)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape after the cut of a tensor that has a shape before it."""
        new = list(shape)
        for axis, length in zip(self.axes, self.after, strict=True):
            new[axis] = length
        return tuple(new)

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor after the cut."""
        if len(self.axes) == 1:
            return self._take(tensor, self.axes[0])
        front = tuple(range(len(self.axes)))
        together = tensor.movedim(self.axes, front).flatten(0, front[-1])
        taken = self._take(together, 0).unflatten(0, self.after)
        return torch.movedim(taken, front, self.axes)

    def _take(self, tensor: Tensor, axis: int) -> Tensor:
        entries = torch.tensor(self.entries, dtype=torch.long)
        taken = tensor.index_select(axis, entries.clamp(min=0))
        if self.pads:
            taken.index_fill_(axis, (entries == NOTHING).nonzero().flatten(), 0.0)
        return taken

    def place(self, kept: Tensor) -> Tensor:
        """Put what is kept, in order along the axis, where it stands after the cut."""
        if not self.pads:
            return kept
        shape = list(kept.shape)
        shape[self.axis] = len(self.entries)
        return kept.new_zeros(shape).index_copy_(self.axis, self._places(), kept)

    def kept_of(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Of a tensor after the cut, what is kept, and what stands in the place of the rest."""
        if not self.pads:
            return stored, stored.narrow(self.axis, 0, 0)
        empty = [place for place, entry in enumerate(self.entries) if entry == NOTHING]
        padding = torch.tensor(empty, dtype=torch.long)
        return (
            stored.index_select(self.axis, self._places()),
            stored.index_select(self.axis, padding),
        )

    def _places(self) -> Tensor:
        kept = [place for place, entry in enumerate(self.entries) if entry != NOTHING]
        return torch.tensor(kept, dtype=torch.long)
