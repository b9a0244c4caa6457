"""Bounds of a drop whose documents all lie between 0 and 1: right or wrong, pass@k, F1.

The drop is at most δ if the documents' contrasts

    z(δ) = sign · (base − pruned) − δ · w,   w = 1, base or its distance to chance

have a mean of at most 0. A contrast has a least and a largest value, which makes the test of its
mean one without suppositions on how it is distributed: to the n documents comes one with the least
value that any document could have, all n + 1 get random weights g (exponential, independent), and
the p-value is the probability that Σ g·z is at most 0 (N. Gaffke, "Three test statistics for a
nonparametric one-sided hypothesis on the mean of a nonnegative variable", Mathematical Methods of
Statistics 14, 2005; E. Learned-Miller & P. Thomas, "A new confidence interval for the mean of a
bounded random variable", arXiv 1905.06208). For two values, such as the documents that are wrong
where the base is always right, these are Clopper and Pearson's exact bounds. For more there is no
proof that a true condition is rejected at most as often as the level says, and no counterexample:
`benchmarks/error_rates.py` sums it up over all paired tables of right and wrong documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Numbers = NDArray[np.float64]
Complex = NDArray[np.complex128]
CORNERS = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
FARTHEST = 1e6  # a drop beyond a million times the base is no figure
STEP = 0.1  # of the integral; halving it squares the error
ENDS = np.array([0.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 40.0])
NEGLIGIBLE = 32.0  # as a logarithm; of what lies beyond the end


@dataclass(frozen=True)
class BoundedDrop:
    """Documents between 0 and 1, and the scale of their drop.

    Attributes:
        pairs_P2: the different pairs of values, of base and pruned model.
        counts_P: documents that have them.
        sign: 1 if a higher value is a better model, else -1.
        slope: the whole, of which the drop is a share, is `slope` times the base's value …
        constant: … plus this.
    """

    pairs_P2: Numbers
    counts_P: Numbers
    sign: float
    slope: float
    constant: float

    def low(self, level: float) -> float:
        """The drop is at least this, at the level; -inf if nothing is known of it."""
        return self._bound(self.p_above, level, -1)

    def high(self, level: float) -> float:
        """The drop is at most this, at the level; inf if nothing is known of it."""
        return self._bound(self.p_below, level, 1)

    def p_above(self, bound: float) -> float:
        """Probability of such documents if the drop were the bound or less."""
        return self._p_value(bound, 1)

    def p_below(self, bound: float) -> float:
        """Probability of such documents if the drop were the bound or more."""
        return self._p_value(bound, -1)

    @cached_property
    def _no_whole(self) -> float:
        """Probability of such documents if the base had nothing to lose."""
        whole_P = self._whole(self.pairs_P2[:, 0])
        return self._not_positive(whole_P, self._whole(CORNERS[:, 0]).min())

    def _p_value(self, bound: float, direction: int) -> float:
        values_P = direction * self._contrast(self.pairs_P2, bound)
        least = (direction * self._contrast(CORNERS, bound)).min()
        # Where the whole is not positive, a larger bound means a larger contrast, too: with the
        # probability of that, the p-value is one of all drops beyond the bound.
        return min(self._not_positive(values_P, least) + self._no_whole, 1.0)

    def _contrast(self, pairs_P2: Numbers, bound: float) -> Numbers:
        base_P, pruned_P = pairs_P2.T
        drop_P: Numbers = self.sign * (base_P - pruned_P) - bound * self._whole(base_P)
        return drop_P

    def _whole(self, base_P: Numbers) -> Numbers:
        return self.slope * base_P + self.constant

    def _not_positive(self, values_P: Numbers, least: float) -> float:
        return probability_not_positive(np.append(values_P, least), np.append(self.counts_P, 1.0))

    def _bound(self, p_value: Callable[[float], float], level: float, direction: int) -> float:
        if self._no_whole >= level:
            return direction * math.inf
        drop_P, whole_P = self._contrast(self.pairs_P2, 0.0), self._whole(self.pairs_P2[:, 0])
        estimate = float((self.counts_P @ drop_P) / (self.counts_P @ whole_P))
        inner, step = estimate, 1 / 16
        if p_value(inner) <= level:
            return estimate
        while p_value(outer := estimate + direction * step) > level:
            inner, step = outer, 2 * step
            if step > FARTHEST:
                return direction * math.inf
        return float(brentq(lambda bound: p_value(bound) - level, inner, outer, xtol=1e-10))


def bounded_drop(
    base_N: Numbers, pruned_N: Numbers, *, sign: float, slope: float, constant: float
) -> BoundedDrop:
    """Count the documents that are alike; the arguments are `BoundedDrop`'s, by document."""
    pairs_P2, counts_P = np.unique(np.stack([base_N, pruned_N], 1), axis=0, return_counts=True)
    return BoundedDrop(pairs_P2, counts_P.astype(float), sign, slope, constant)


def probability_not_positive(values_P: Numbers, counts_P: Numbers) -> float:
    """P(Σ g·z ≤ 0) of independent g ~ Gamma(count), to about 1e-10.

    The Laplace transform e^K of the sum's density is known, K(s) = −Σ count · log(1 − s·z), and

        P(Σ g·z > 0) = 1/2πi ∫ e^K(s) / s ds

    from below to above, right of 0; left of it, the integral is −P(Σ g·z ≤ 0). The path crosses the
    real line near the saddle point of e^K and bends as its steepest descent does, so that nothing
    oscillates, and its steps grow as sinh does, since e^K may fall as a power only (saddle point:
    R. Lugannani & S. Rice, "Saddle point approximation for the distribution of the sum of
    independent random variables", Advances in Applied Probability 12, 1980; the hyperbola:
    J. A. C. Weideman & L. N. Trefethen, "Parabolic and hyperbolic contours for computing the
    Bromwich integral", Mathematics of Computation 76, 2007).

    Args:
        values_P: z.
        counts_P: shape of each gamma variable, in documents.
    """
    used_P = (values_P != 0) & (counts_P > 0)
    z_P, counts_P = values_P[used_P], counts_P[used_P]
    if (z_P <= 0).all():
        return 1.0
    if (z_P >= 0).all():
        return 0.0
    z_P = z_P / np.abs(z_P).max()

    def slope(s: float) -> float:
        return float((counts_P * z_P / (1 - s * z_P)).sum())

    edge = 1 - 1e-12
    saddle = float(brentq(slope, edge / z_P.min(), edge / z_P.max()))
    pull_P = z_P / (1 - saddle * z_P)
    square = float(counts_P @ pull_P**2)
    width, third = 1 / math.sqrt(square), 2 * float(counts_P @ pull_P**3) / square**1.5 / 3
    lean = 2 * third / (1 + math.sqrt(1 + 4 * third**2))  # sine of the angle of the bend
    start = saddle
    if abs(saddle) < width / 2:  # 0 is a pole
        start += math.copysign(width / 2, saddle)

    def path(u_U: Numbers) -> tuple[Complex, Complex]:
        s_U = start + width * (
            1j * math.sqrt(1 - lean**2) * np.sinh(u_U) + lean * (np.cosh(u_U) - 1)
        )
        return s_U, -(counts_P @ np.log(1 - s_U * z_P[:, None]))

    heights = path(ENDS)[1].real
    reached = np.flatnonzero(heights < heights[0] - NEGLIGIBLE)
    u_U = np.arange(0.0, ENDS[reached[0]] if len(reached) else ENDS[-1], STEP)
    s_U, log_U = path(u_U)
    step_U = width * (1j * math.sqrt(1 - lean**2) * np.cosh(u_U) + lean * np.sinh(u_U))
    integrand_U = (np.exp(log_U) / s_U * step_U).imag
    integrand_U[0] /= 2  # the other half of the path mirrors this one
    integral = float(integrand_U.sum()) * STEP / math.pi
    return min(max(-integral if start < 0 else 1 - integral, 0.0), 1.0)
