"""From units to the entries of a tensor's axis that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.architectures.description import Architecture, Dimensions, Layout
from pipeline.architectures.registry import Located, expert_rows, head_tensors, neuron_tensors
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.surgery.tensor_cut import NOTHING, TensorCut

Indices = NDArray[np.int64]


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
    widest = max((_own_sizes(sizes, layer) for layer in plan.layers), key=lambda own: own.ffn)
    if architecture.feed_forward.width is None:
        widest = replace(widest, ffn=sizes.ffn)
    heads, kv_heads = sizes.heads, sizes.kv_heads
    counts = {(len(layer.query_heads), len(layer.kv_heads)) for layer in plan.layers}
    if len(counts) == 1 and can_have_heads(architecture, sizes, next(iter(counts))[0]):
        heads, kv_heads = counts.pop()
    return replace(widest, heads=heads, kv_heads=kv_heads)


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
        after = _own_sizes(sizes, layer)
        if architecture.attention.counts is not None:
            after = replace(after, heads=len(layer.query_heads), kv_heads=len(layer.kv_heads))
        own.append(after)
    return tuple(own)


def _own_sizes(sizes: Dimensions, layer: LayerPlan) -> Dimensions:
    """Sizes of a layer's feed-forward block after the cut."""
    if not sizes.experts:
        return replace(sizes, ffn=len(layer.ffn))
    routed = sum(neuron < sizes.experts * sizes.ffn for neuron in layer.ffn)
    return replace(
        sizes,
        ffn=routed // len(layer.experts),
        experts=len(layer.experts),
        shared=len(layer.ffn) - routed,
    )


def can_have_heads(architecture: Architecture, sizes: Dimensions, heads: int) -> bool:
    """Whether the family's stock config can say a number of query heads."""
    if heads == sizes.heads:
        return True
    allowed = architecture.attention.head_counts
    return allowed == "any" or (allowed == "divides_hidden" and sizes.hidden % heads == 0)


def tensor_cuts(
    architecture: Architecture, sizes: Dimensions, plan: Plan, *, ragged: bool = False
) -> dict[str, TensorCut]:
    """Every stored tensor that the plan changes, by its full name before the cut.

    Args:
        architecture: the base's description.
        sizes: sizes of the base.
        plan: what is kept.
        ragged: layers may differ in width.
    """
    layers = zip(plan.layers, layer_sizes(architecture, sizes, plan, ragged=ragged), strict=True)
    cuts = {}
    for number, (layer, after) in enumerate(layers):
        for located, own, slots in _slotted(architecture, sizes, layer, after):
            name = architecture.tensor(number, located.name)
            renamed: str | None = name
            if located.expert is not None:
                renamed = None
                if located.expert in layer.experts:
                    place = layer.experts.index(located.expert)
                    renamed = architecture.tensor(number, located.cut.tensor.format(expert=place))
            cut = _cut(located, own, np.array(slots, dtype=np.int64), layer.experts, renamed)
            if (
                renamed != name
                or cut.entries != tuple(range(len(cut.entries)))
                or (cut.after != cut.before)
            ):
                cuts[name] = cut
    return cuts


def _slotted(
    architecture: Architecture, sizes: Dimensions, layer: LayerPlan, after: Dimensions
) -> Iterator[tuple[Located, Dimensions, Sequence[int]]]:
    """Yield each tensor of a layer, its own sizes after the cut, and which unit stands where."""
    for located in neuron_tensors(architecture, sizes):
        own, width = after, located.sizes.ffn
        if located.cut.stacked:
            width = sizes.experts * sizes.ffn
        elif located.sizes is not sizes:  # the shared expert
            own = replace(after, ffn=after.shared)
        first = located.first
        kept = [neuron - first for neuron in layer.ffn if first <= neuron < first + width]
        room = own.experts * own.ffn if located.cut.stacked else own.ffn
        if located.expert is not None and located.expert not in layer.experts:
            own, room = replace(own, ffn=0), 0
        yield located, own, _slots(kept, room, width)
    for located in expert_rows(architecture, sizes):
        yield located, after, layer.experts
    heads = _head_slots(layer, after, sizes)
    for located in head_tensors(architecture, sizes):
        yield located, after, heads


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


def _cut(
    located: Located,
    after: Dimensions,
    slots: Indices,
    experts: tuple[int, ...],
    renamed: str | None,
) -> TensorCut:
    layout, axis = located.cut.layout, located.cut.axis
    before, now = _axis(layout, located.sizes), _axis(layout, after)
    unit = slots[now.unit]  # of the base, for each entry after the cut
    stays = unit != NOTHING
    entries = np.full(len(now.unit), NOTHING)
    entries[stays] = before.order[before.start[unit[stays]] + now.rank[stays]]
    whole = TensorCut(
        axes=(axis,),
        entries=tuple(entries.tolist()),
        before=(len(before.unit),),
        after=(len(now.unit),),
        name=renamed,
    )
    if not located.cut.stacked:
        return whole
    return replace(
        whole,
        axes=(0, axis),
        before=(located.sizes.experts, len(before.unit) // located.sizes.experts),
        after=(after.experts, len(now.unit) // after.experts),
        experts=experts,
    )


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
    unit = np.asarray(layout(sizes), dtype=np.int64)
    order = np.argsort(unit, kind="stable")
    start = np.searchsorted(unit[order], np.arange(unit.max(initial=-1) + 1))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(unit)) - start[unit[order]]
    return _Axis(unit, rank, order, start)
