"""Paired comparison of a metric on base and pruned model: an interval for its drop.

Both models answer the same documents, so what varies is the difference on each document. A
metric is a ratio of sums over documents (of a plain mean, the denominators are 1), and a drop on a
relative scale is a ratio again. A bound δ is tested by the contrast

    θ(δ) = sign · (m_base − m_pruned) − δ · w,   w = 1, m_base or its distance to chance

and the interval is all δ for which θ(δ) is not significantly different from 0 (E. C. Fieller, "Some
problems in interval estimation", J. R. Stat. Soc. B 16, 1954): test and interval always agree.

Means of documents between 0 and 1 have a test of their own (`bounded.py`), which needs no more than
that: it holds for few documents and where hardly any differs. Other metrics, losses and ratios over
tokens, get a t-test on jackknifed residuals that is corrected for skewness (`studentised.py`).
Nothing can be said of how much a document may lose there that is not among those that were asked,
so too few documents that differ from the rest say nothing at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.bounded import bounded_drop
from pipeline.evaluation.studentised import jackknifed_ratio, moments, studentised_bounds

Numbers = NDArray[np.float64]
AT_BOUND = 1e-9  # a drop that is its bound up to rounding is never told from it
MIN_DIFFERING = 10  # benchmarks/error_rates.py: with fewer, the level does not hold


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
    def is_bounded(self) -> bool:
        """Whether the metric is a mean of documents that all lie between 0 and 1."""
        both = np.concatenate([self.base_N2, self.pruned_N2])
        top, bottom = both.T
        return bool(((top >= 0) & (top <= 1)).all() and (bottom == 1).all())

    @property
    def differing(self) -> int:
        """Documents whose difference is not the commonest one."""
        base_N, pruned_N = (
            np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)
            for top, bottom in (self.base_N2.T, self.pruned_N2.T)
        )
        return self.n - int(np.unique((base_N - pruned_N).round(12), return_counts=True)[1].max())

    def difference(self) -> tuple[float, float]:
        """The metric of the second model minus that of the first, and its standard error."""
        (one, one_N), (other, other_N) = map(jackknifed_ratio, (self.base_N2, self.pruned_N2))
        square, _, _ = moments(other_N - one_N, np.zeros(self.n))
        return other - one, math.sqrt(square)


@dataclass(frozen=True)
class Interval:
    """Drop of a metric, on a gate's scale, with one-sided bounds.

    Attributes:
        drop: the estimate.
        low: the drop is at least this, at the level.
        high: the drop is at most this, at the level.
        n: documents.
        error_at: standard error of θ(δ)/w, as a function's three coefficients in δ.
        one_document: by how much one document more could move n times the drop; 0 if unknown.
        unknown: why the bounds are infinite; empty if they are not.
    """

    drop: float
    low: float
    high: float
    n: int
    error_at: tuple[float, float, float]
    one_document: float = 0.0
    unknown: str = ""

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
            self.one_document + other.one_document,
            self.unknown or other.unknown,
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
        # The bound is off by quantiles · spread / √n and by the document that is added, over n;
        # where no document differs, by that of a rare one: P(none of n) = level.
        quantiles = float(stats.norm.ppf(1 - level) + stats.norm.ppf(power))
        spread = quantiles * self.standard_error(bound) * math.sqrt(self.n)
        root = spread + math.sqrt(spread**2 + 4 * distance * self.one_document)
        rare = -math.log(level) * self.one_document / distance
        return math.ceil(max((root / (2 * distance)) ** 2, rare, self.n + 1))


def interval_of_drop(
    paired: Paired,
    *,
    level: float,
    higher_is_better: bool,
    relative: bool,
    chance: float | None = None,
    min_differing: int = MIN_DIFFERING,
) -> Interval:
    """Return the drop of a metric with bounds that each fail with probability `level`.

    Args:
        paired: the metric on each document.
        level: one-sided level.
        higher_is_better: of the metric.
        relative: as a share of the base's value, or of its distance to `chance` if there is one.
        chance: value of a model that knows nothing.
        min_differing: if the documents have no bounds, how many must differ from the commonest
            difference for the drop to be known.
    """
    sign = 1.0 if higher_is_better else -1.0
    (base, base_N), (pruned, pruned_N) = map(jackknifed_ratio, (paired.base_N2, paired.pruned_N2))
    slope, constant = 0.0, 1.0
    if relative:
        slope = math.copysign(1.0, base) if chance is None else sign
        constant = -slope * (chance or 0.0)
    numerator, numerator_N = sign * (base - pruned), sign * (base_N - pruned_N)
    whole, whole_N = slope * base + constant, slope * base_N

    def found(low: float, high: float, unknown: str = "") -> Interval:
        drop = numerator / whole if whole > 0 else math.nan
        square = whole**2 if whole > 0 else math.nan
        first, second, third = moments(numerator_N, whole_N)
        errors = first / square, second / square, third / square
        one_document = 1 / whole if paired.is_bounded and whole > 0 else 0.0
        if not unknown:
            low, high = min(low, drop), max(high, drop)
        return Interval(drop, low, high, paired.n, errors, one_document, unknown)

    nothing = "the base is not shown to be " + (
        "anything but 0" if chance is None else f"better than chance ({chance:g})"
    )
    if not whole > 0:
        return found(-math.inf, math.inf, nothing)
    if paired.is_bounded:
        drops = bounded_drop(
            paired.base_N2[:, 0],
            paired.pruned_N2[:, 0],
            sign=sign,
            slope=slope,
            constant=constant,
        )
        low, high = drops.low(level), drops.high(level)
    elif (differing := paired.differing) < min_differing:
        few = (
            f"{differing} of {paired.n} documents differ from the rest, {min_differing} are needed"
        )
        return found(-math.inf, math.inf, few)
    else:
        low, high = studentised_bounds(numerator, numerator_N, whole, whole_N, level)
    if not (math.isfinite(low) and math.isfinite(high)):
        return found(-math.inf, math.inf, nothing)
    return found(low, high)
