"""The distribution of scores: how many kept and removed units of each layer lie where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 40


def histogram(scores_LU: Tensor, removed_LU: Tensor) -> dict[str, Any] | None:
    """Count the units of each layer in bins that are narrow about zero and wide far from it.

    A few units score a hundred times as high as most, so bins of one width would show nothing.

    Args:
        scores_LU: higher means "remove first"; units without a finite one are left out.
        removed_LU: mask of those that go.

    Returns:
        JSON-able: the edges of the bins, and by layer the numbers of kept and of removed units in
        each; None if no score is known.
    """
    known_LU = scores_LU.isfinite()
    if not known_LU.any():
        return None
    edges = _edges(scores_LU[known_LU])
    inner = torch.tensor(edges[1:-1], dtype=scores_LU.dtype)
    bin_LU = torch.bucketize(scores_LU, inner, right=True)
    return {
        "edges": edges,
        **{
            name: [
                torch.bincount(bins[mask], minlength=BINS).tolist()
                for bins, mask in zip(bin_LU, chosen_LU & known_LU, strict=True)
            ]
            for name, chosen_LU in (("kept", ~removed_LU), ("removed", removed_LU))
        },
    }


def _edges(known: Tensor) -> list[float]:
    """Edges at equal distances of asinh(score / a typical score)."""
    typical = known.abs().median().clamp(min=torch.finfo(known.dtype).tiny)
    lowest, highest = (each / typical for each in torch.aminmax(known))
    if lowest == highest:
        highest = lowest + 1
    ends = lowest.asinh().item(), highest.asinh().item()
    places = torch.linspace(*ends, BINS + 1, dtype=torch.float64)
    return [float(edge) for edge in places.sinh() * typical]
