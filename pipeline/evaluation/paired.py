"""Paired comparison of a metric on base and pruned model: an interval for its drop.

Both models answer the same documents, so what varies is the difference on each document. A
metric is a ratio of sums over documents (of a plain mean, the denominators are 1), and a drop on a
relative scale is a ratio again. Its interval is Fieller's: all δ for which the contrast

    θ(δ) = sign · (m_base − m_pruned) − δ · w,   w = 1, m_base or its distance to chance

is not significantly different from 0 by a t-test on jackknifed residuals (E. C. Fieller, "Some
problems in interval estimation", J. R. Stat. Soc. B 16, 1954). A test of one bound δ and the
interval therefore always agree. A loss rises a little on most documents and much on a few, and t
supposes symmetry: its quantiles are corrected for the skewness of the residuals (P. Hall, "On the
removal of skewness by transformation", J. R. Stat. Soc. B 54, 1992). Few documents underrate it, so
it is taken as large as they do not exclude: two of its standard errors, √(6/n), more.

Where documents are right or wrong, models that happen to agree on all of a few would be certain to
be equal. So an absolute drop gets the score interval of a paired difference (T. Tango, "Equivalence
test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17, 1998), whose test of no difference is McNemar's. For a relative one, half
a document is added to each of the four cells of the paired table (A. Agresti & Y. Min, "Simple
improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

Numbers = NDArray[np.float64]
CELLS = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
CELL_WEIGHT = 0.5
SKEWNESS_ERRORS = 2.0
SKEWNESS_ROUNDS = 4
AT_BOUND = 1e-9  # a drop that is its bound up to rounding is never told from it


@dataclass(frozen=True)
class Paired:
    """A metric on the same n documents, for both models.

    Attributes:
        base_N2: numerator and denominator of each document for the base.
        pruned_N2: the same for the pruned model.
    """

    base_N2: Numbers
    pruned_N2: Numbers

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.base_N2)

    @property
    def is_binary(self) -> bool:
        """Whether each document is right or wrong."""
        both = np.concatenate([self.base_N2, self.pruned_N2])
        return bool(np.isin(both[:, 0], (0.0, 1.0)).all() and (both[:, 1] == 1.0).all())


@dataclass(frozen=True)
class Interval:
    """Drop of a metric, on a gate's scale, with one-sided bounds.

    Attributes:
        drop: the estimate.
        low: the drop is at least this, at the level.
        high: the drop is at most this, at the level.
        n: documents.
        error_at: standard error of θ(δ)/w, as a function's three coefficients in δ.
    """

    drop: float
    low: float
    high: float
    n: int
    error_at: tuple[float, float, float]

    def standard_error(self, bound: float) -> float:
        """Standard error of the drop's distance to a bound."""
        constant, mixed, square = self.error_at
        return math.sqrt(max(constant - 2 * bound * mixed + bound * bound * square, 0.0))

    def minus(self, other: Interval) -> Interval:
        """This drop minus that on other documents, by the distances of both from their bounds.

        The bounds need not be symmetric (G. Y. Zou & A. Donner, "Construction of confidence limits
        about effect measures: a general approach", Statistics in Medicine 27, 2008).
        """
        drop = self.drop - other.drop
        errors = (each.standard_error(each.drop) for each in (self, other))
        return Interval(
            drop,
            drop - math.hypot(self.drop - self.low, other.high - other.drop),
            drop + math.hypot(self.high - self.drop, other.drop - other.low),
            self.n + other.n,
            (sum(error**2 for error in errors), 0.0, 0.0),
        )

    def documents_needed(self, bound: float, level: float, power: float) -> int | None:
        """Documents at which a drop like this one would be told from `bound`; None if never.

        Args:
            bound: the gate's bound.
            level: one-sided level of the test.
            power: probability that the test should have to decide.
        """
        distance = abs(self.drop - bound)
        if not distance > AT_BOUND or not math.isfinite(distance):
            return None
        quantiles = float(stats.norm.ppf(1 - level) + stats.norm.ppf(power))
        needed = self.n * (quantiles * self.standard_error(bound) / distance) ** 2
        return math.ceil(max(needed, self.n + 1))


def interval_of_drop(
    paired: Paired,
    *,
    level: float,
    higher_is_better: bool,
    relative: bool,
    chance: float = 0.0,
) -> Interval:
    """Return the drop of a metric with bounds that each fail with probability `level`.

    Args:
        paired: the metric on each document.
        level: one-sided level.
        higher_is_better: of the metric.
        relative: as a share of the base's distance to `chance`, which is 0 for the plain share.
        chance: value of a model that knows nothing.
    """
    sign = 1.0 if higher_is_better else -1.0
    estimate = _plain_drop(paired, sign, relative, chance)
    base_N2, pruned_N2 = paired.base_N2, paired.pruned_N2
    weights_N = np.ones(paired.n)
    if paired.is_binary:
        base_N2, pruned_N2 = (
            np.concatenate([rows, np.stack([CELLS[:, side], np.ones(4)], axis=1)])
            for side, rows in enumerate((base_N2, pruned_N2))
        )
        weights_N = np.concatenate([weights_N, np.full(4, CELL_WEIGHT)])
    total = float(weights_N.sum())
    (base, base_N), (pruned, pruned_N) = (_ratio(rows, weights_N) for rows in (base_N2, pruned_N2))
    numerator, numerator_N = sign * (base - pruned), sign * (base_N - pruned_N)
    whole, whole_N = 1.0, np.zeros_like(base_N)
    if relative:
        direction = 1.0 if chance == 0.0 else sign
        whole, whole_N = direction * (base - chance), direction * base_N
    scale = weights_N.sum() * (total - 1)
    constant, mixed, square = (
        float((weights_N * one * other).sum() / scale)
        for one, other in (
            (numerator_N, numerator_N),
            (numerator_N, whole_N),
            (whole_N, whole_N),
        )
    )
    quantile = float(stats.t.ppf(1 - level, total - 1))

    def bound(side: int) -> float:
        corrected = quantile
        for _ in range(SKEWNESS_ROUNDS):  # the residuals' skewness depends on the bound
            found = _fieller(numerator, whole, constant, mixed, square, corrected)[side]
            if not math.isfinite(found):
                break
            skewness = (1, -1)[side] * _skewness(numerator_N - found * whole_N, weights_N)
            skewness -= SKEWNESS_ERRORS * math.sqrt(6 / total)
            corrected = _unskewed(quantile, skewness, total)
        return found

    low, high = bound(0), bound(1)
    if paired.is_binary and not relative:
        low, high = _tango(paired, sign, float(stats.norm.ppf(1 - level)))
    error_at = (constant / whole**2, mixed / whole**2, square / whole**2)
    return Interval(estimate, min(low, estimate), max(high, estimate), paired.n, error_at)


def _plain_drop(paired: Paired, sign: float, relative: bool, chance: float) -> float:
    """The drop of the metric as it is reported, without what is added for the interval."""
    ones = np.ones(paired.n)
    base, pruned = (_ratio(rows, ones)[0] for rows in (paired.base_N2, paired.pruned_N2))
    direction = 1.0 if chance == 0.0 else sign
    whole = direction * (base - chance) if relative else 1.0
    return sign * (base - pruned) / whole if whole > 0 else math.nan


def _ratio(rows_N2: Numbers, weights_N: Numbers) -> tuple[float, Numbers]:
    """A ratio of sums, and on each document what leaving it out would change (jackknife)."""
    top, bottom = (weights_N[:, None] * rows_N2).sum(axis=0)
    ratio, total = float(top / bottom), weights_N.sum()
    residual_N = (rows_N2[:, 0] - ratio * rows_N2[:, 1]) * total / bottom
    return ratio, residual_N * (1 - 1 / total) / (1 - rows_N2[:, 1] / bottom)


def _fieller(
    numerator: float, whole: float, constant: float, mixed: float, square: float, quantile: float
) -> tuple[float, float]:
    """Bounds of numerator / whole; infinite where `whole` may be 0."""
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


def _skewness(residual_N: Numbers, weights_N: Numbers) -> float:
    square, cube = (
        float((weights_N * residual_N**power).sum() / weights_N.sum()) for power in (2, 3)
    )
    return cube / square**1.5 if square > 0 else 0.0


def _unskewed(quantile: float, skewness: float, n: float) -> float:
    """The studentised value at which Hall's transformation of it reaches the quantile."""
    slope = skewness / (3 * math.sqrt(n))
    if abs(slope) < 1e-6:
        return quantile
    return float(np.cbrt(1 + 3 * slope * (quantile - slope / 2)) - 1) / slope


def _tango(paired: Paired, sign: float, quantile: float) -> tuple[float, float]:
    """Score interval of a difference of paired proportions."""
    difference_N = sign * (paired.base_N2[:, 0] - paired.pruned_N2[:, 0])
    n, worse, better = paired.n, int((difference_N > 0).sum()), int((difference_N < 0).sum())

    def score(delta: float) -> float:
        # The likelihood of the table is largest, given the difference, where P(better) is the
        # positive root of this quadratic.
        a, b = 2 * n, -worse - better + (2 * n - worse + better) * delta
        c = -better * delta * (1 - delta)
        likely = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * likely + delta * (1 - delta))
        return (worse - better - n * delta) / math.sqrt(max(variance, 1e-12))

    estimate, edge = (worse - better) / n, 1 - 1e-9
    bounds = []
    for target, end in ((quantile, -edge), (-quantile, edge)):
        beyond = (score(end) - target) * (score(estimate) - target) > 0
        bounds.append(
            end if beyond else brentq(lambda d, t=target: score(d) - t, *sorted((estimate, end)))
        )
    return bounds[0], bounds[1]
