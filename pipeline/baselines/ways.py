"""The ways to unlearn that pruning is compared with, and what is tried of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.baselines.gradients import gradient_ascent, gradient_difference
from pipeline.baselines.npo import negative_preference
from pipeline.baselines.objective import Objective, Subject, Trial
from pipeline.baselines.rmu import representation_misdirection

RATES = (1e-4, 3e-5, 1e-5)  # what goes too far is over early, and leaves its time to the others


@dataclass(frozen=True)
class Way:
    """A way to train a model away from forget text.

    Attributes:
        name: what tables call it.
        about: in words, with its source.
        prepare: makes its objective of a model and a strength.
        grid: what is tried, in this order; each gets the same share of the time, and what earlier
            ones left of theirs.
    """

    name: str
    about: str
    prepare: Callable[[Subject, float], Objective]
    grid: tuple[Trial, ...]


WAYS = {
    way.name: way
    for way in (
        Way(
            "ga",
            "gradient ascent, arXiv 2210.01504",
            gradient_ascent,
            tuple(Trial(rate, 1.0) for rate in RATES),
        ),
        Way(
            "gd",
            "gradient difference, arXiv 2203.12817",
            gradient_difference,
            tuple(Trial(rate, 1.0) for rate in RATES),
        ),
        Way(
            "npo",
            "negative preference optimisation with a retain term, arXiv 2404.05868",
            negative_preference,
            tuple(Trial(rate, 1.0) for rate in RATES),
        ),
        Way(
            "rmu",
            "representation misdirection, arXiv 2403.03218",
            representation_misdirection,
            (Trial(1e-3, 20.0), Trial(1e-3, 5.0), Trial(3e-4, 5.0)),
        ),
    )
}
