"""Curves of forgetting against what it costs, and the figures that tell two of them apart.

A point is one cut. On each judged text its drop is 1 − accuracy / accuracy of the base, where
accuracy is the share of next tokens that are the likeliest; the drop of a side is the mean of its
texts'. The headline figure is that of selective pruning (arXiv 2403.01267): the largest difference
of the two drops, in points. Intervals are those of a bootstrap over documents, which draws the same
documents for base and point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe.fields import Side

Numbers = NDArray[np.float64]
Hits = Mapping[str, Numbers]  # by text, of each document its hits and its tokens [N, 2]

LIMIT = 0.3  # retain drop beyond which no point is looked at
BUDGETS = (0.01, 0.02, 0.05)  # retain drops at which forgetting is stated
GRID = np.linspace(0.0, LIMIT, 61)
DRAWS = 1000
LEVEL = 0.9  # share of the draws between an interval's ends


class Figure(NamedTuple):
    """A figure of a curve, and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judges:
    """The texts on which points are judged.

    Attributes:
        sides: by text, the side on which it is.
        base: what the base hits in them.
    """

    sides: Mapping[str, Side]
    base: Hits

    def drops(self, points: Sequence[Hits]) -> tuple[Numbers, Numbers]:
        """Drop of the forget side and of the retain side at each point, [P] each."""
        forget, retain = self._drops(points, None)
        return forget[:, 0], retain[:, 0]

    def drop(self, hits: Hits) -> tuple[float, float]:
        """Drop of the forget side and of the retain side at one point."""
        forget_P, retain_P = self.drops([hits])
        return float(forget_P[0]), float(retain_P[0])

    def drawn(self, points: Sequence[Hits], draws: int = DRAWS) -> tuple[Numbers, Numbers]:
        """The same of documents drawn with replacement, [P, draws] each."""
        generator = np.random.default_rng(0)
        weights = {
            name: generator.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), draws)
            for name, hits in sorted(self.base.items())
        }
        return self._drops(points, weights)

    def _drops(
        self, points: Sequence[Hits], weights: Mapping[str, NDArray[np.int64]] | None
    ) -> tuple[Numbers, Numbers]:
        sides: dict[Side, list[Numbers]] = {"forget": [], "retain": []}
        for name, side in self.sides.items():
            own = np.ones((1, len(self.base[name]))) if weights is None else weights[name]
            base_D = _accuracy(self.base[name], own)
            with np.errstate(divide="ignore", invalid="ignore"):
                dropped = [1 - _accuracy(point[name], own) / base_D for point in points]
            sides[side].append(np.array(dropped))
        forget, retain = (np.mean(sides[side], axis=0) for side in ("forget", "retain"))
        return forget, retain


def figures(judges: Judges, points: Sequence[Hits]) -> dict[str, Figure]:
    """The figures of a curve whose points are given in the order of what they remove.

    Returns:
        `headline`, the largest difference of the drops; `at_0.01` and so on, the forgetting at a
        retain drop; `area`, the mean forgetting over all retain drops up to `LIMIT`.
    """
    if not points:
        return {}
    forget_P, retain_P = judges.drops(points)
    forget_PD, retain_PD = judges.drawn(points)
    values = _figures(forget_P, retain_P)
    known_D = _known(forget_PD) & _known(retain_PD)
    pairs = zip(forget_PD.T[known_D], retain_PD.T[known_D], strict=True)
    drawn = [_figures(*pair) for pair in pairs] or [values]
    return {name: _figure(value, [each[name] for each in drawn]) for name, value in values.items()}


def selectivity(judges: Judges, points: Sequence[Hits], matched: Sequence[Hits]) -> Figure:
    """The area between a curve and that of random cuts: the same documents are drawn for both."""
    value = _area(*judges.drops(points)) - _area(*judges.drops(matched))
    own, other = judges.drawn(points), judges.drawn(matched)
    known_D = np.logical_and.reduce([_known(each_PD) for each_PD in (*own, *other)])
    draws = [
        _area(*(each_PD[:, draw] for each_PD in own))
        - _area(*(each_PD[:, draw] for each_PD in other))
        for draw in np.flatnonzero(known_D)
    ]
    return _figure(value, draws or [value])


def top1(hits_N2: Numbers) -> float:
    """Share of a text's tokens that are hit."""
    return float(hits_N2[:, 0].sum() / hits_N2[:, 1].sum())


def forgetting_at(forget_P: Numbers, retain_P: Numbers, budgets_B: Numbers) -> Numbers:
    """Forgetting at some retain drops, between the points around each; [B].

    The curve begins at the base. Beyond its last point the forgetting of the last one counts, which
    is a lower bound; where cutting more costs less again, the first point at the budget counts.
    """
    found_B = np.full(len(budgets_B), np.nan)
    last, spent = 0.0, 0.0
    for forget, retain in zip(forget_P, retain_P, strict=True):
        if retain > spent:
            share_B = (budgets_B - spent) / (retain - spent)
            crossed_B = np.isnan(found_B) & (retain > budgets_B)
            found_B[crossed_B] = (last + share_B * (forget - last))[crossed_B]
        last, spent = float(forget), float(retain)
    return np.where(np.isnan(found_B), last, found_B)


def _figures(forget_P: Numbers, retain_P: Numbers) -> dict[str, float]:
    within = retain_P <= LIMIT
    difference = (forget_P - retain_P)[within]
    at_B = forgetting_at(forget_P, retain_P, np.array(BUDGETS))
    return {
        "headline": float(difference.max()) if within.any() else 0.0,
        **{f"at_{budget:g}": float(at) for budget, at in zip(BUDGETS, at_B, strict=True)},
        "area": _area(forget_P, retain_P),
    }


def _area(forget_P: Numbers, retain_P: Numbers) -> float:
    return float(forgetting_at(forget_P, retain_P, GRID).mean())


def _figure(value: float, draws: Sequence[float]) -> Figure:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Figure(value, float(low), float(high))


def _known(drops_PD: Numbers) -> NDArray[np.bool_]:
    """Draws [D] that hold documents which the base predicts: else no drop is a share of that."""
    return np.asarray(np.isfinite(drops_PD).all(axis=0))


def _accuracy(hits_N2: Numbers, weights_DN: NDArray[np.int64] | Numbers) -> Numbers:
    sums_D2 = weights_DN @ hits_N2
    accuracy: Numbers = sums_D2[:, 0] / sums_D2[:, 1]
    return accuracy
