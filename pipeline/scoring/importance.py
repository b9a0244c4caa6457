"""Importance of units, from their statistics.

`abs`, `rms`, `std` and `freq` are the statistics of arXiv 2403.01267, section 3; `std` and `rms`
are the true ones, not the variance and the mixture that the authors' code computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.scoring.statistics import Statistics, UnitSums


def unit_importance(sums: UnitSums, tokens: int, kind: str) -> Tensor:
    """Importance of every unit.

    Args:
        sums: sums over `tokens` tokens.
        tokens: number of tokens.
        kind: "abs" E|x|, "rms" √E[x²], "std" √Var[x] or "freq" P(x > 0).

    Returns:
        float64 tensor of shape [L, U].
    """
    count = max(tokens, 1)
    if kind == "abs":
        return sums.absolute_LU / count
    if kind == "rms":
        return (sums.squared_LU / count).sqrt()
    if kind == "std":
        mean_LU = sums.total_LU / count
        return (sums.squared_LU / count - mean_LU.square()).clamp(min=0.0).sqrt()
    if kind == "freq":
        return sums.positive_LU / count
    raise ValueError(f"unknown importance {kind!r}")


def expert_importance(statistics: Statistics) -> Tensor:
    """Importance of every routed expert: √E‖y‖² of what it adds to the residual stream.

    Tokens that do not take the expert count as zeros.

    Returns:
        float64 tensor of shape [L, E].
    """
    return (statistics.experts_LE / max(statistics.tokens, 1)).sqrt()


def head_importance(
    statistics: Statistics, kind: str, heads: int, grams_LHDD: Tensor | None = None
) -> Tensor:
    """Importance of every attention head, or of every key/value group.

    For "rms" it is the root mean square of the contribution to the residual stream,
    √E‖W_O[:, h] x_h‖² = √tr(W_O[:, h]ᵀ W_O[:, h] · E[x_h x_hᵀ]); for the others the mean over the
    head's coordinates.

    Args:
        statistics: of one corpus.
        kind: "abs", "rms", "std" or "freq".
        heads: heads (or groups) in a layer.
        grams_LHDD: W_O[:, h]ᵀ W_O[:, h] of every head (or group); needed for "rms".

    Returns:
        float64 tensor of shape [L, H].
    """
    if kind != "rms":
        coordinates_LU = unit_importance(statistics.attention, statistics.tokens, kind)
        layers = coordinates_LU.shape[0]
        return coordinates_LU.reshape(layers, heads, -1).mean(dim=2)
    if grams_LHDD is None:
        raise ValueError("rms importance of heads needs the output projections' gram matrices")
    moments_LHDD = _head_moments(statistics.groups_LGDD, heads) / max(statistics.tokens, 1)
    return (grams_LHDD.double() * moments_LHDD).sum(dim=(2, 3)).clamp(min=0.0).sqrt()


def _head_moments(groups_LGDD: Tensor, heads: int) -> Tensor:
    layers, groups, width, _ = groups_LGDD.shape
    per_group = heads // groups
    head = width // per_group
    blocks = groups_LGDD.reshape(layers, groups, per_group, head, per_group, head)
    own = torch.diagonal(blocks, dim1=2, dim2=4)  # [L, G, head, head, per_group]
    return own.permute(0, 1, 4, 2, 3).reshape(layers, heads, head, head)
