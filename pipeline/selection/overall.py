"""Shape policies that rank the units of all layers together, so that layers keep different numbers.

`padded`: a stock config says one width for all layers, so narrower ones are filled up with zeros.
`ragged`: each layer has its own width.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def removed_overall(units: int, fraction: float) -> int:
    """Units that a share of all layers' comes to."""
    return int(units * Fraction(str(fraction)))


def keep_lowest_overall(
    scores_LU: Tensor, fraction: float, multiple_of: int, protected_LU: Tensor
) -> list[list[int]]:
    """Remove the units with the highest scores of all layers; ties keep the lower index.

    A layer never keeps fewer than one multiple, and the widest keeps a multiple: what it would lose
    beyond that stays.

    Args:
        scores_LU: higher means "remove first"; comparable between layers.
        fraction: share of all units to remove.
        multiple_of: what the widest layer's width is rounded up to.
        protected_LU: mask of units that are never removed.

    Returns:
        ascending kept indices of each layer.
    """
    layers, units = scores_LU.shape
    scores = scores_LU.masked_fill(protected_LU, -torch.inf)
    order_LU = torch.argsort(scores, dim=1, stable=True)
    lowest = order_LU[:, : min(multiple_of, units)]
    scores = scores.scatter(1, lowest, -torch.inf)
    wanted = removed_overall(layers * units, fraction)
    first = torch.argsort(scores.flatten(), descending=True, stable=True)[:wanted]
    removed = torch.zeros(layers * units, dtype=torch.bool)
    removed[first] = True
    removed_LU = removed.view(layers, units) & (scores != -torch.inf)
    kept_L = units - removed_LU.sum(dim=1)
    widest = int(kept_L.argmax())
    room = min(-(-int(kept_L[widest]) // multiple_of) * multiple_of, units)
    for unit in order_LU[widest].tolist():
        if int(removed_LU[widest].sum()) <= units - room:
            break
        removed_LU[widest, unit] = False
    return [(~row).nonzero().flatten().tolist() for row in removed_LU]


def keep_multiples_overall(
    scores_LU: Tensor, fraction: float, multiple_of: int, protected_LU: Tensor
) -> list[list[int]]:
    """Remove the units with the highest scores of all layers, each layer to its nearest multiple.

    Arguments as for `keep_lowest_overall`; what loses less than half a multiple stays whole.

    Returns:
        ascending kept indices of each layer.
    """
    units = scores_LU.shape[1]
    scores = scores_LU.masked_fill(protected_LU, -torch.inf)
    kept = []
    for layer, row in enumerate(keep_lowest_overall(scores_LU, fraction, 1, protected_LU)):
        least = max(multiple_of, int(protected_LU[layer].sum()))
        room = max(round(len(row) / multiple_of), -(-least // multiple_of)) * multiple_of
        whole = room >= units or units - len(row) < multiple_of / 2
        order = torch.argsort(scores[layer], stable=True)
        kept.append(sorted(order[: units if whole else room].tolist()))
    return kept
