"""Bounds of a ratio of means over documents that know no largest value: Fieller's, with Hall's t.

A loss rises a little on most documents and much on a few, and t supposes symmetry: its quantiles
are corrected for the skewness of the residuals (P. Hall, "On the removal of skewness by
transformation", J. R. Stat. Soc. B 54, 1992). Few documents underrate it, so it is taken as large
as they do not exclude: two of its standard errors, √(6/n), more.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]
SKEWNESS_ERRORS = 2.0
SKEWNESS_ROUNDS = 4


def jackknifed_ratio(rows_N2: Numbers) -> tuple[float, Numbers]:
    """A ratio of sums, and n times what leaving each document out would change.

    Args:
        rows_N2: numerator and denominator of each document.
    """
    top, bottom = rows_N2.sum(axis=0)
    ratio, n = float(top / bottom), len(rows_N2)
    residual_N = (rows_N2[:, 0] - ratio * rows_N2[:, 1]) * n / bottom
    return ratio, residual_N * (1 - 1 / n) / (1 - rows_N2[:, 1] / bottom)


def moments(numerator_N: Numbers, whole_N: Numbers) -> tuple[float, float, float]:
    """Squared error of the mean numerator, its covariance with the mean whole, and that of both."""
    scale = len(numerator_N) * (len(numerator_N) - 1)
    pairs = ((numerator_N, numerator_N), (numerator_N, whole_N), (whole_N, whole_N))
    constant, mixed, square = (float((one * other).sum() / scale) for one, other in pairs)
    return constant, mixed, square


def studentised_bounds(
    numerator: float, numerator_N: Numbers, whole: float, whole_N: Numbers, level: float
) -> tuple[float, float]:
    """Bounds of numerator / whole that each fail with about the level's probability.

    Args:
        numerator: estimate.
        numerator_N: its residuals by document.
        whole: estimate of the denominator.
        whole_N: its residuals by document.
        level: one-sided level.
    """
    n = len(numerator_N)
    errors = moments(numerator_N, whole_N)
    quantile = float(stats.t.ppf(1 - level, n - 1))

    def bound(side: int) -> float:
        corrected = quantile
        for _ in range(SKEWNESS_ROUNDS):  # the residuals' skewness depends on the bound
            found = _fieller(numerator, whole, errors, corrected)[side]
            if not math.isfinite(found):
                break
            skewness = (1, -1)[side] * _skewness(numerator_N - found * whole_N)
            skewness -= SKEWNESS_ERRORS * math.sqrt(6 / n)
            corrected = _unskewed(quantile, skewness, n)
        return found

    return bound(0), bound(1)


def _fieller(
    numerator: float, whole: float, errors: tuple[float, float, float], quantile: float
) -> tuple[float, float]:
    """Bounds of numerator / whole; infinite where `whole` may be 0."""
    constant, mixed, square = errors
    squared = quantile**2
    a = whole**2 - squared * square
    if whole <= 0 or a <= 0:
        return -math.inf, math.inf
    middle = (numerator * whole - squared * mixed) / a
    # The discriminant without its largest terms, which cancel; it is not negative where a > 0.
    spread = whole**2 * constant - 2 * numerator * whole * mixed + numerator**2 * square
    root = squared * (spread + squared * (mixed**2 - constant * square))
    half = math.sqrt(max(root, 0.0)) / a
    return middle - half, middle + half


def _skewness(residual_N: Numbers) -> float:
    square_N = residual_N * residual_N
    square, cube = float(square_N.mean()), float((square_N * residual_N).mean())
    return cube / square**1.5 if square > 0 else 0.0


def _unskewed(quantile: float, skewness: float, n: float) -> float:
    """The studentised value at which Hall's transformation of it reaches the quantile."""
    slope = skewness / (3 * math.sqrt(n))
    if abs(slope) < 1e-6:
        return quantile
    return float(np.cbrt(1 + 3 * slope * (quantile - slope / 2)) - 1) / slope
