"""Activation statistics: per-unit sums over tokens, which can be merged, saved and loaded.

Shape suffixes: L layers, U units (FFN neurons, or head-dimension coordinates of the attention
output), G key/value groups, D coordinates of a group, E routed experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SUMS = ("total", "absolute", "squared", "positive")


@dataclass
class UnitSums:
    """Sums over tokens of every unit of one kind, in float64.

    Attributes:
        total_LU: Σ x.
        absolute_LU: Σ |x|.
        squared_LU: Σ x².
        positive_LU: number of tokens with x > 0.
    """

    total_LU: Tensor
    absolute_LU: Tensor
    squared_LU: Tensor
    positive_LU: Tensor

    @classmethod
    def zeros(cls, layers: int, units: int) -> UnitSums:
        """No tokens seen yet."""
        return cls(*(torch.zeros(layers, units, dtype=torch.float64) for _ in SUMS))

    def merge(self, other: UnitSums) -> None:
        """Add the sums of other tokens."""
        for name in SUMS:
            getattr(self, f"{name}_LU").add_(getattr(other, f"{name}_LU"))


@dataclass
class Statistics:
    """Everything that one pass over one corpus measured.

    Attributes:
        tokens: positions that were counted.
        ffn: sums of every FFN neuron.
        attention: sums of every coordinate of the attention output (heads × head_dim).
        groups_LGDD: Σ x xᵀ of every key/value group's coordinates, from which the contribution of
            any head or group to the residual stream follows; G is 0 where no heads are ranked.
        experts_LE: Σ ‖y‖² of what every routed expert adds to the residual stream.
    """

    tokens: int
    ffn: UnitSums
    attention: UnitSums
    groups_LGDD: Tensor
    experts_LE: Tensor

    @classmethod
    def zeros(
        cls,
        layers: int,
        ffn: int,
        attention: int,
        groups: int,
        group_width: int,
        experts: int = 0,
    ) -> Statistics:
        """No tokens seen yet."""
        return cls(
            tokens=0,
            ffn=UnitSums.zeros(layers, ffn),
            attention=UnitSums.zeros(layers, attention),
            groups_LGDD=torch.zeros(layers, groups, group_width, group_width, dtype=torch.float64),
            experts_LE=torch.zeros(layers, experts, dtype=torch.float64),
        )

    def merge(self, other: Statistics) -> None:
        """Add the statistics of other tokens; shards and processes add up."""
        self.tokens += other.tokens
        self.ffn.merge(other.ffn)
        self.attention.merge(other.attention)
        self.groups_LGDD.add_(other.groups_LGDD)
        self.experts_LE.add_(other.experts_LE)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors = {
            "tokens": torch.tensor([self.tokens]),
            "groups": self.groups_LGDD,
            "experts": self.experts_LE,
        }
        for kind in ("ffn", "attention"):
            for name in SUMS:
                tensors[f"{kind}.{name}"] = getattr(getattr(self, kind), f"{name}_LU")
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote."""
        tensors = load_file(path)
        ffn, attention = (
            UnitSums(*(tensors[f"{kind}.{name}"] for name in SUMS)) for kind in ("ffn", "attention")
        )
        groups, experts = tensors["groups"], tensors["experts"]
        return cls(int(tensors["tokens"]), ffn, attention, groups, experts)


@dataclass
class SecondMoments:
    """Σ x xᵀ over tokens of the inputs of a layer's output projections, in float32.

    Attributes:
        tokens: positions that were counted.
        layer: number of the layer.
        moments: tensors of shape [U, U] by the projection's name in the layer: "ffn", "attention",
            "ffn.shared" or "ffn.<expert>". A kind that is not cut is left out.
    """

    tokens: int
    layer: int
    moments: dict[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write one safetensors file a layer, so that compensation can load one at a time."""
        if self.moments:
            tensors = {**self.moments, "tokens": torch.tensor([self.tokens])}
            save_file(tensors, folder / _layer_file(self.layer))


def load_second_moments(folder: Path, layer: int) -> dict[str, Tensor]:
    """Mean second moments E[x xᵀ] of one layer, by the projection's name in it, in float64."""
    tensors = load_file(folder / _layer_file(layer))
    tokens = max(int(tensors.pop("tokens")), 1)
    return {kind: moments.double() / tokens for kind, moments in tensors.items()}


def _layer_file(layer: int) -> str:
    return f"layer_{layer:03d}.safetensors"
