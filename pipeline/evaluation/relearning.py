"""How fast a model learns again what was taken from it: figures of its forget drop by step.

The drop at a step is 1 − accuracy / accuracy of the base before any step, as in `curves`. A model
that only hides what it knew regains it at once; one that has lost it learns like the base would
something new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.curves import Numbers


def steps_to_regain(steps: Sequence[int], drop_M: Numbers, share: float = 0.5) -> float | None:
    """The step at which a share of what was lost is regained, between the measured ones.

    Args:
        steps: after which the model was measured, ascending from 0.
        drop_M: its forget drop at each.
        share: of the first drop.

    Returns:
        None if nothing was lost at first, or the share is not regained by the last step.
    """
    wanted = drop_M[0] * (1 - share)
    if drop_M[0] <= 0:
        return None
    for number in range(1, len(steps)):
        before, now = float(drop_M[number - 1]), float(drop_M[number])
        if now <= wanted:
            way = (before - wanted) / (before - now)
            return float(steps[number - 1] + way * (steps[number] - steps[number - 1]))
    return None


def area_between(steps: Sequence[int], drop_M: Numbers, base_M: Numbers) -> float:
    """The area between a model's curve and the base's, by its width: their mean distance.

    It is positive where the model is behind the base.
    """
    distance_M, widths = drop_M - base_M, np.diff(np.array(steps, dtype=float))
    return float(((distance_M[1:] + distance_M[:-1]) / 2 @ widths) / widths.sum())
