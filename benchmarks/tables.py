"""Right-or-wrong documents, summed up: the probability of every paired table, at the worst values.

A paired table counts the documents that both models have right, only the base (`worse`), only the
pruned model (`better`), or neither. Given the drop, its probability depends on what nobody asked:
on how many documents the models differ, and how good the base is. Here that is varied over a grid,
and the largest rate of wrong decisions is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.bounded import BoundedDrop

Counts = NDArray[np.int64]
CELLS = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
RARE = np.geomspace(1e-5, 0.01, 12)
SHARES = np.concatenate([RARE, np.linspace(0.015, 1, 60)])
BASES = (0.03, 0.1, 0.2, 0.26, 0.3, 0.45, 0.6, 0.76, 0.9, 0.98)


def worst_absolute(n: int, bound: float, level: float) -> tuple[float, float]:
    """Largest probabilities, at the bound, that the drop is shown below and shown above it.

    Args:
        n: documents.
        bound: the true drop, as a difference of the two shares of right documents.
        level: of the one-sided tests.
    """
    below, above = (_least_differing(n, bound, level, above=above) for above in (False, True))
    shares = SHARES * (1 - bound) / 2  # of documents that only the pruned model has right
    return (
        max(_shown(n, share + bound, share, below) for share in shares),
        max(_shown(n, share, share + bound, above) for share in shares),
    )


def pass_rate(n: int, worse: float, better: float, bound: float, level: float) -> float:
    """Probability that a retain gate on an absolute drop passes.

    Args:
        n: documents.
        worse: share of documents that only the base has right.
        better: share of documents that only the pruned model has right.
        bound: the gate's margin.
        level: of the gate.
    """
    return _shown(n, worse, better, _least_differing(n, bound, level, above=False))


def _shown(n: int, against: float, in_favour: float, least: Counts) -> float:
    """P(documents in favour are at least `least[documents against]`), by the shares of both."""
    others = np.arange(n + 1)
    share = min(in_favour / (1 - against), 1.0)
    enough = stats.binom.sf(least - 1, n - others, share)
    return float(stats.binom.pmf(others, n, against) @ enough)


def _least_differing(n: int, bound: float, level: float, *, above: bool) -> Counts:
    """By documents against it, how many in favour show it; n + 1 where no number does."""
    least = []
    enough = 0
    for against in range(n + 1):
        while enough <= n - against:
            worse, better = (enough, against) if above else (against, enough)
            found = BoundedDrop(CELLS, np.array([0.0, worse, better, n - worse - better]), 1, 0, 1)
            if (found.p_above if above else found.p_below)(bound) <= level:
                break
            enough += 1
        least.append(enough if enough <= n - against else n + 1)
    return np.array(least)


def worst_relative(n: int, bound: float, level: float, chance: float) -> tuple[float, float]:
    """The same as `worst_absolute` of a share of the base's distance to chance."""
    region = _least_only_base(n, bound, level, chance)
    rates = [_shown_relative(n, *region, *shares) for shares in _at_drop(bound, chance)]
    return max(rate for rate, _ in rates), max(rate for _, rate in rates)


def _at_drop(bound: float, chance: float) -> Iterator[tuple[float, float, float]]:
    """Share of the base, and of its right and its wrong documents that change, with that drop."""
    for base in BASES:
        for gained in (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0):
            lost = (bound * (base - chance) + (1 - base) * gained) / base
            if base > chance and lost <= 1:
                yield base, lost, gained


def _least_only_base(n: int, bound: float, level: float, chance: float) -> tuple[Counts, Counts]:
    """Documents that only the base must have right, by those it has and those only the other has.

    Returns:
        The most that show the drop below the bound, and the least that show it above.
    """
    most, least = np.full((n + 1, n + 1), -1), np.full((n + 1, n + 1), n + 1)

    def table(right: int, worse: int, better: int) -> BoundedDrop:
        counts = np.array([right - worse, worse, better, n - right - better], dtype=float)
        return BoundedDrop(CELLS, counts, 1, 1, -chance)

    for right in range(n + 1):
        low = high = 0  # more documents that only the other has right ask for more of these
        for better in range(n - right + 1):
            while low <= right and table(right, low, better).p_above(bound) > level:
                low += 1
            while high <= right and table(right, high, better).p_below(bound) <= level:
                high += 1
            least[right, better], most[right, better] = low, high - 1
    return most, least


def _shown_relative(
    n: int, most: Counts, least: Counts, base: float, lost: float, gained: float
) -> tuple[float, float]:
    right, better = np.arange(n + 1)[:, None], np.arange(n + 1)[None]
    tables = stats.binom.pmf(right, n, base) * stats.binom.pmf(better, n - right, gained)
    tables = np.where(better <= n - right, tables, 0.0)
    below = tables * stats.binom.cdf(most, right, lost)
    above = tables * stats.binom.sf(least - 1, right, lost)
    return float(below.sum()), float(above.sum())
