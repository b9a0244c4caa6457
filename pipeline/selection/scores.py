"""Scores: importance on forget against importance on retain.

All arrays are float64 tensors of shape [L, U] (layers, units); higher means "remove first".
"""

from __future__ import annotations

import torch
from torch import Tensor


def ratio(forget_LU: Tensor, retain_LU: Tensor, epsilon: float) -> Tensor:
    """Importance ratio r (arXiv 2403.01267, equation 4), with a scale-free ε.

    Args:
        forget_LU: importance on the forget corpus.
        retain_LU: importance on the retain corpus.
        epsilon: added to both, as a share of the layer's mean retain importance.
    """
    floor_L1 = epsilon * retain_LU.mean(dim=1, keepdim=True) + torch.finfo(torch.float64).tiny
    return (forget_LU + floor_L1) / (retain_LU + floor_L1)


def contribution(forget_LU: Tensor, retain_LU: Tensor, norms_LU: Tensor, epsilon: float) -> Tensor:
    """Log r · √c: how specialised a unit is, weighted by what it contributes.

    c is the unit's contribution to the residual stream on the forget corpus: its importance times
    the norm of its output column, relative to the layer's mean.
    """
    weight_LU = forget_LU * norms_LU
    mean_L1 = weight_LU.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return ratio(forget_LU, retain_LU, epsilon).log() * (weight_LU / mean_L1).sqrt()


def random(layers: int, units: int, seed: int) -> Tensor:
    """Uniform random scores: the baseline of the same shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, units, generator=generator, dtype=torch.float64)


def magnitude(norms_LU: Tensor) -> Tensor:
    """Smallest weight norm first."""
    return -norms_LU


def massive(retain_LU: Tensor, norms_LU: Tensor, times_median: float) -> Tensor:
    """Mask of units whose retain contribution exceeds `times_median` times the layer's median.

    They carry massive activations: a few units on which everything downstream rests. Removing one
    costs far more than its score says, so selection leaves them alone.
    """
    contribution_LU = retain_LU * norms_LU
    median_L1 = contribution_LU.median(dim=1, keepdim=True).values
    return contribution_LU > times_median * median_L1
