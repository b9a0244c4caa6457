"""From units to the entries of a tensor's axis that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.architectures.description import Architecture, Cut, Dimensions, Layout
from pipeline.architectures.registry import attention_cuts, feed_forward_cuts
from pipeline.selection.plan import LayerPlan, Plan

Indices = NDArray[np.int64]
NOTHING = -1  # in the place of an entry: zeros


@dataclass(frozen=True)
class TensorCut:
    """What stands along one axis after the cut.

    Attributes:
        axis: axis that is cut.
        entries: for each entry after the cut, which one it was; `NOTHING` stands for zeros.
        total: length of the axis before the cut.
    """

    axis: int
    entries: tuple[int, ...]
    total: int

    @property
    def keep(self) -> tuple[int, ...]:
        """Entries that stay, in the order in which they stand."""
        return tuple(entry for entry in self.entries if entry != NOTHING)

    @property
    def removed(self) -> tuple[int, ...]:
        """Entries that go, ascending."""
        kept = set(self.entries)
        return tuple(entry for entry in range(self.total) if entry not in kept)

    @property
    def pads(self) -> bool:
        """Whether zeros stand in the place of what was removed."""
        return NOTHING in self.entries

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor after the cut."""
        entries = torch.tensor(self.entries, dtype=torch.long)
        taken = tensor.index_select(self.axis, entries.clamp(min=0))
        if self.pads:
            taken.index_fill_(self.axis, (entries == NOTHING).nonzero().flatten(), 0.0)
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


def head_coordinates(heads: Sequence[int], head_dim: int) -> tuple[int, ...]:
    """Coordinates of whole heads in a concatenation of heads."""
    return tuple(h * head_dim + d for h in heads for d in range(head_dim))


def relaid(layout: Layout, other: Layout, sizes: Dimensions) -> tuple[int, ...]:
    """Entries of an axis in the order that another layout of the same units gives them."""
    before, after = _axis(layout, sizes), _axis(other, sizes)
    return tuple((before.order[before.start[after.unit] + after.rank]).tolist())


def stored_sizes(architecture: Architecture, sizes: Dimensions, plan: Plan) -> Dimensions:
    """Sizes of the checkpoint that holds a plan, in its family's stock class.

    FFN neurons take as much room in every layer as in the widest one. Where a config cannot say a
    number of neurons or of heads, they keep their room, and zeros stand in the place of what is
    removed.
    """
    ffn = max(len(layer.ffn) for layer in plan.layers)
    if architecture.feed_forward.width is None:
        ffn = sizes.ffn
    heads, kv_heads = sizes.heads, sizes.kv_heads
    counts = {(len(layer.query_heads), len(layer.kv_heads)) for layer in plan.layers}
    if len(counts) == 1 and can_have_heads(architecture, sizes, next(iter(counts))[0]):
        heads, kv_heads = counts.pop()
    return replace(sizes, ffn=ffn, heads=heads, kv_heads=kv_heads)


def layer_sizes(
    architecture: Architecture, sizes: Dimensions, plan: Plan, *, ragged: bool
) -> tuple[Dimensions, ...]:
    """Sizes of each layer of the checkpoint that holds a plan.

    In a ragged one a layer has its own: of neurons always, and of heads where the family's
    attention can be told how many it has.
    """
    if not ragged:
        return (stored_sizes(architecture, sizes, plan),) * sizes.layers
    own = []
    for layer in plan.layers:
        after = replace(sizes, ffn=len(layer.ffn))
        if architecture.attention.counts is not None:
            after = replace(after, heads=len(layer.query_heads), kv_heads=len(layer.kv_heads))
        own.append(after)
    return tuple(own)


def can_have_heads(architecture: Architecture, sizes: Dimensions, heads: int) -> bool:
    """Whether the family's stock config can say a number of query heads."""
    if heads == sizes.heads:
        return True
    allowed = architecture.attention.head_counts
    return allowed == "any" or (allowed == "divides_hidden" and sizes.hidden % heads == 0)


def tensor_cuts(
    architecture: Architecture, sizes: Dimensions, plan: Plan, *, ragged: bool = False
) -> dict[str, TensorCut]:
    """Every stored tensor that the plan changes, by its full name.

    Args:
        architecture: the base's description.
        sizes: sizes of the base.
        plan: what is kept.
        ragged: layers may differ in width.
    """
    layers = zip(plan.layers, layer_sizes(architecture, sizes, plan, ragged=ragged), strict=True)
    cuts = {}
    for number, (layer, after) in enumerate(layers):
        neurons = np.array(_slots(layer.ffn, after.ffn, sizes.ffn))
        heads = np.array(_head_slots(layer, after, sizes))
        for block, slots, units in (
            (feed_forward_cuts(architecture), neurons, sizes.ffn),
            (attention_cuts(architecture), heads, sizes.heads + sizes.kv_heads),
        ):
            if np.array_equal(slots, np.arange(units)):
                continue  # nothing goes
            for cut in block:
                name = architecture.tensor(number, cut.tensor)
                cuts[name] = _cut(cut, sizes, after, slots)
    return cuts


def _slots(kept: Sequence[int], room: int, total: int) -> tuple[int, ...]:
    """For each unit that there is room for, which one stands there.

    Where nothing is narrower than before, every unit stays in its own place.
    """
    if room == total:
        present = set(kept)
        return tuple(unit if unit in present else NOTHING for unit in range(total))
    return (*kept, *[NOTHING] * (room - len(kept)))


def _head_slots(layer: LayerPlan, after: Dimensions, sizes: Dimensions) -> tuple[int, ...]:
    groups = _slots(layer.kv_heads, after.kv_heads, sizes.kv_heads)
    return (
        *_slots(layer.query_heads, after.heads, sizes.heads),
        *(NOTHING if group == NOTHING else sizes.heads + group for group in groups),
    )


def _cut(cut: Cut, sizes: Dimensions, after: Dimensions, slots: Indices) -> TensorCut:
    before, now = _axis(cut.layout, sizes), _axis(cut.layout, after)
    unit = slots[now.unit]  # of the base, for each entry after the cut
    stays = unit != NOTHING
    entries = np.full(len(now.unit), NOTHING)
    entries[stays] = before.order[before.start[unit[stays]] + now.rank[stays]]
    return TensorCut(cut.axis, tuple(entries.tolist()), len(before.unit))


class _Axis(NamedTuple):
    """The entries of an axis.

    Attributes:
        unit: unit of each entry.
        rank: which of its unit's entries it is.
        order: entries, unit by unit.
        start: where each unit begins in `order`.
    """

    unit: Indices
    rank: Indices
    order: Indices
    start: Indices


@cache
def _axis(layout: Layout, sizes: Dimensions) -> _Axis:
    unit = np.asarray(layout(sizes))
    order = np.argsort(unit, kind="stable")
    start = np.searchsorted(unit[order], np.arange(unit.max() + 1))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(unit)) - start[unit[order]]
    return _Axis(unit, rank, order, start)
