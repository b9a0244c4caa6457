"""The plan: the kept indices of every unit kind in every layer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

Indices = tuple[int, ...]


@dataclass(frozen=True)
class LayerPlan:
    """Kept units of one layer, ascending; a dense model has no experts."""

    ffn: Indices
    query_heads: Indices
    kv_heads: Indices
    experts: Indices = ()


@dataclass(frozen=True)
class Plan:
    """What is kept in every layer, and out of how many.

    Attributes:
        ffn: FFN neurons of a layer before the cut, those of all experts through.
        heads: query heads of a layer before the cut.
        kv_heads: key/value heads of a layer before the cut.
        layers: what is kept.
        experts: routed experts of a layer before the cut.
    """

    ffn: int
    heads: int
    kv_heads: int
    layers: tuple[LayerPlan, ...]
    experts: int = 0

    def removed_ffn(self, layer: int) -> Indices:
        """Removed FFN neurons of a layer, ascending."""
        return complement(self.layers[layer].ffn, self.ffn)

    def removed_heads(self, layer: int) -> Indices:
        """Removed query heads of a layer, ascending."""
        return complement(self.layers[layer].query_heads, self.heads)

    def removed_experts(self, layer: int) -> Indices:
        """Removed routed experts of a layer, ascending."""
        return complement(self.layers[layer].experts, self.experts)

    def counts(self) -> dict[str, tuple[int, int]]:
        """(kept, total) over all layers, by unit kind."""
        layers = self.layers
        experts = sum(len(x.experts) for x in layers), self.experts * len(layers)
        return {
            "ffn": (sum(len(x.ffn) for x in layers), self.ffn * len(layers)),
            "query_heads": (sum(len(x.query_heads) for x in layers), self.heads * len(layers)),
            "kv_heads": (sum(len(x.kv_heads) for x in layers), self.kv_heads * len(layers)),
            **({"experts": experts} if self.experts else {}),
        }

    def to_json(self) -> str:
        """Canonical text: the same plan gives the same bytes."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Plan:
        """Build a plan from the object that `to_json` describes."""
        layers = tuple(
            LayerPlan(**{kind: tuple(indices) for kind, indices in layer.items()})
            for layer in value["layers"]
        )
        sizes = value["ffn"], value["heads"], value["kv_heads"]
        return cls(*sizes, layers, value.get("experts", 0))


@dataclass(frozen=True)
class Shape:
    """What a checkpoint may say of a plan.

    Attributes:
        ragged: layers may differ in width; else the family's stock class loads the checkpoint.
        relabel: it may be written as one of another family that computes the same.
    """

    ragged: bool = False
    relabel: bool = False


def complement(kept: Indices, total: int) -> Indices:
    """Indices below `total` that are not in `kept`, ascending."""
    present = set(kept)
    return tuple(index for index in range(total) if index not in present)


def overlap(one: Plan, other: Plan) -> dict[str, float]:
    """Share of removed units that two plans have in common (Jaccard index), by unit kind.

    A kind of which neither removes anything is left out.
    """
    removed: dict[str, tuple[set[tuple[int, int]], set[tuple[int, int]]]] = {
        "ffn": (_all(one, Plan.removed_ffn), _all(other, Plan.removed_ffn)),
        "query_heads": (_all(one, Plan.removed_heads), _all(other, Plan.removed_heads)),
        "experts": (_all(one, Plan.removed_experts), _all(other, Plan.removed_experts)),
    }
    return {kind: len(a & b) / len(a | b) for kind, (a, b) in removed.items() if a | b}


def _all(plan: Plan, removed: Any) -> set[tuple[int, int]]:
    return {(layer, index) for layer in range(len(plan.layers)) for index in removed(plan, layer)}
