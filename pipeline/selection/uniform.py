"""The uniform shape policy: every layer keeps the same number of units.

The result loads with the stock class of its family, because one config value says the width.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from pipeline.errors import InputError


def kept_width(total: int, fraction: float, multiple_of: int) -> int:
    """Nearest multiple of `multiple_of` to the share that is kept.

    Never below one multiple. A fraction above 0 always removes at least one multiple.

    Raises:
        InputError: no multiple lies below `total`.
    """
    if fraction == 0:
        return total
    # Fractions of the decimal that was written: 1536 · (1 − 0.15) is not a hair off 1305.6.
    exact = total * (1 - Fraction(str(fraction)))
    rounded = round(exact / multiple_of) * multiple_of
    largest = (total - 1) // multiple_of * multiple_of
    if largest < multiple_of:
        raise InputError(
            f"a width of {total} cannot shrink to a multiple of {multiple_of}",
            where="select.ffn.multiple_of",
            remedy=f"choose a multiple below {total}",
        )
    return min(max(rounded, multiple_of), largest)


def keep_lowest(
    scores_LU: Tensor, keep: int, protected_LU: Tensor | None = None
) -> list[list[int]]:
    """Keep the `keep` units with the lowest scores in each layer; ties keep the lower index.

    Args:
        scores_LU: higher means "remove first".
        keep: units that stay in every layer.
        protected_LU: mask of units that are never removed.

    Returns:
        ascending kept indices of each layer.

    Raises:
        InputError: more units are protected than may stay.
    """
    scores = scores_LU.clone()
    if protected_LU is not None:
        crowded = (protected_LU.sum(dim=1) > keep).nonzero().flatten().tolist()
        if crowded:
            raise InputError(
                f"layer {crowded[0]} has more protected neurons than the {keep} that stay",
                where="select.ffn.protect_massive",
                remedy="raise protect_massive or lower the fraction",
            )
        scores[protected_LU] = -torch.inf
    order = torch.argsort(scores, dim=1, stable=True)
    return [sorted(row) for row in order[:, :keep].tolist()]


def kept_groups(
    groups: int, heads: int, fraction: float, legal_heads: Callable[[int], bool]
) -> int:
    """Key/value groups that stay: the nearest legal number to the share that is kept.

    Args:
        groups: key/value groups in a layer.
        heads: query heads in a layer.
        fraction: share of the heads to remove.
        legal_heads: whether a checkpoint can have a number of query heads.

    Raises:
        InputError: no smaller number of groups is legal.
    """
    per_group = heads // groups
    legal = [n for n in range(1, groups) if legal_heads(n * per_group)]
    return _nearest(groups, fraction, legal, f"{groups} key/value groups of {per_group} heads")


def kept_per_group(
    groups: int, heads: int, fraction: float, legal_heads: Callable[[int], bool]
) -> int:
    """Query heads that stay in each group: the nearest legal number to the share that is kept.

    Arguments and errors as for `kept_groups`.
    """
    per_group = heads // groups
    legal = [n for n in range(1, per_group) if legal_heads(n * groups)]
    return _nearest(
        per_group, fraction, legal, f"{per_group} query heads in each of {groups} groups"
    )


def kept_experts(experts: int, chosen: int, fraction: float) -> int:
    """Routed experts that stay: as many as a token takes at least, and one goes at least.

    Args:
        experts: routed experts of a layer.
        chosen: those that a token takes.
        fraction: share to remove.

    Raises:
        InputError: a token takes all of them.
    """
    if fraction == 0:
        return experts
    if chosen >= experts:
        raise InputError(
            f"each token takes {chosen} of {experts} experts, so that none can go",
            where="select.experts.fraction",
            remedy="set it to 0",
        )
    wanted = round(experts * (1 - Fraction(str(fraction))))
    return min(max(wanted, chosen, 1), experts - 1)


def _nearest(total: int, fraction: float, legal: list[int], what: str) -> int:
    if fraction == 0:
        return total
    if not legal:
        raise InputError(
            f"{what}: no smaller number can be expressed in this architecture's config",
            where="select.attention",
            remedy="choose the other select.attention.unit, select.attention.relabel: true (for a "
            "Llama), select.policy: ragged (with a modeling file) or padded (which leaves zeros in "
            "the place of heads), or fraction: 0",
        )
    wanted = total * (1 - Fraction(str(fraction)))
    return min(legal, key=lambda count: (abs(count - wanted), count))
