"""From units to the entries of a tensor's axis that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.architectures.description import Architecture, Cut
from pipeline.selection.plan import LayerPlan, Plan


@dataclass(frozen=True)
class TensorCut:
    """Entries of one axis that stay.

    Attributes:
        axis: axis that is cut.
        keep: indices that stay, ascending.
        total: length of the axis before the cut.
    """

    axis: int
    keep: tuple[int, ...]
    total: int


def head_coordinates(heads: Sequence[int], head_dim: int) -> tuple[int, ...]:
    """Coordinates of whole heads in a concatenation of heads."""
    return tuple(h * head_dim + d for h in heads for d in range(head_dim))


def tensor_cuts(architecture: Architecture, plan: Plan, head_dim: int) -> dict[str, TensorCut]:
    """Every stored tensor that the plan changes, by its full name."""
    cuts = {}
    for layer, kept in enumerate(plan.layers):
        for cut, keep, total in _layer_cuts(architecture, plan, kept, head_dim):
            if len(keep) < total:
                cuts[architecture.module(layer, cut.tensor)] = TensorCut(cut.axis, keep, total)
    return cuts


def _layer_cuts(
    architecture: Architecture, plan: Plan, kept: LayerPlan, head_dim: int
) -> Iterator[tuple[Cut, tuple[int, ...], int]]:
    feed_forward, attention = architecture.feed_forward, architecture.attention
    queries = head_coordinates(kept.query_heads, head_dim)
    keys_values = head_coordinates(kept.kv_heads, head_dim)
    for cut in (*feed_forward.inputs, Cut(f"{feed_forward.output}.weight", axis=1)):
        yield cut, kept.ffn, plan.ffn
    for cut in (*attention.queries, Cut(f"{attention.output}.weight", axis=1)):
        yield cut, queries, plan.heads * head_dim
    for cut in attention.keys_values:
        yield cut, keys_values, plan.kv_heads * head_dim
