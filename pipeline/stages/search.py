"""The search for how much to remove: as much as a recipe's `select.until` allows, or asks for.

All fractions of the recipe are scaled together. Points are masks on the loaded model, and what asks
them are held-out documents that are kept apart from those which judge the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.evaluation.curves import Judges, top1
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe.selection import Until
from pipeline.stages.base import Base
from pipeline.stages.choose import choose
from pipeline.stages.learning import learns
from pipeline.stages.measure import Measurer
from pipeline.stages.points import Judge, Point
from pipeline.stages.texts import Texts

PORTIONS = 64  # of the fractions, among which the search chooses
PROBES = 1 + PORTIONS.bit_length() - 1  # that bisection takes: all of them, and a half each time


@dataclass(frozen=True)
class Probe:
    """What a share of the fractions does to the selection text.

    Attributes:
        portion: share of the recipe's fractions.
        removed: share of the kind's units that is gone, of the kind of which most is.
        accuracy: top-1 of the forget text.
        forget_drop: relative drop of it.
        retain_drop: that of the retain text.
    """

    portion: float
    removed: float
    accuracy: float
    forget_drop: float
    retain_drop: float


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        recipe: the recipe, whose fractions are scaled.
        portion: by how much.
        reason: why there.
        probes: all that was tried, by portion.
    """

    recipe: Recipe
    portion: float
    reason: str
    probes: list[Probe]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "portion": self.portion,
            "reason": self.reason,
            "probes": [vars(probe) for probe in self.probes],
        }


def scaled(recipe: Recipe, portion: float) -> Recipe:
    """The recipe with a share of each fraction, and no search."""
    select = recipe.select
    parts = {
        kind: part.model_copy(update={"fraction": round(part.fraction * portion, 9)})
        for kind, part in (
            ("ffn", select.ffn),
            ("attention", select.attention),
            ("experts", select.experts),
        )
    }
    return recipe.model_copy(update={"select": select.model_copy(update=parts | {"until": None})})


def as_found(recipe: Recipe, manifest: Mapping[str, Any]) -> Recipe:
    """The recipe with the fractions that a release's search is said to have found."""
    found = manifest.get("search")
    return recipe if recipe.select.until is None or not found else scaled(recipe, found["portion"])


def search(
    base: Base, recipe: Recipe, texts: Texts, measurer: Measurer, cache: Cache, progress: Progress
) -> Found:
    """Find the share of the fractions that `select.until` asks for, by bisection.

    Forgetting and its cost are taken to grow with what is removed. A wish for little forget
    accuracy is granted with the least that does it; if retain text would pay more than it may, as
    much goes as it may pay for.

    Raises:
        InputError: even the least that can be removed costs more than retain text may lose.
    """
    until = recipe.select.until
    assert until is not None
    judge = Judge(base, recipe, texts.selection, until.tokens, cache, progress)
    judges = judge.judges()
    measurer.measure()
    measurer.release()
    short = recipe.select.steps == 1 and not list(learns(recipe))  # each finds its scoring cached
    quiet = Progress("quiet") if short else progress
    again = Measurer(base, recipe, texts.sequences, cache, quiet)
    trial = _Trial(base, recipe, again, judge, judges, progress, quiet)
    least, reason = PORTIONS, "all that the fractions allow"
    if until.forget is not None:
        reached = trial.first(lambda probe: _forgets(probe, until))
        least = reached or PORTIONS
        reason = f"forget accuracy is {until.forget.accuracy:g} or less"
        if reached is None:
            reason = f"the fractions end before forget accuracy is {until.forget.accuracy:g}"
    if until.retain_drop is not None and trial.probe(least).retain_drop > until.retain_drop:
        over = trial.first(lambda probe: _costs(probe, until), least)
        least = (over or PORTIONS) - 1
        reason = f"more would cost retain text more than {until.retain_drop:g}"
        if least == 0 or trial.probe(least).removed == 0.0:
            cost = trial.probe(least + 1)
            raise InputError(
                f"{cost.removed:.1%} removed cost retain text {cost.retain_drop:.1%} already, "
                "and less cannot be removed",
                where="select.until.retain_drop",
                remedy="allow more, or score more and broader retain text",
            )
    portion = least / PORTIONS
    progress.say(f"  {portion:.0%} of the fractions: {reason}")
    return Found(scaled(recipe, portion), portion, reason, trial.tried())


class _Trial:
    """Probes of a search, each made when it is asked for."""

    def __init__(
        self,
        base: Base,
        recipe: Recipe,
        measurer: Measurer,
        judge: Judge,
        judges: Judges,
        progress: Progress,
        quiet: Progress,
    ) -> None:
        self._base, self._recipe, self._measurer = base, recipe, measurer
        self._judge, self._judges, self._progress, self._quiet = judge, judges, progress, quiet
        self._probes: dict[int, Probe] = {}

    def probe(self, number: int) -> Probe:
        """What `number` of all portions do."""
        if number not in self._probes:
            portion = number / PORTIONS
            recipe = scaled(self._recipe, portion)
            choice = choose(self._base, recipe, self._measurer, self._quiet)
            probe = self._probe(portion, self._judge.point(portion, choice))
            self._probes[number] = probe
            self._progress.say(
                f"  {probe.removed:.1%} removed: forget accuracy {probe.accuracy:.3f} "
                f"(−{probe.forget_drop:.1%}), retain −{probe.retain_drop:.1%}"
            )
        return self._probes[number]

    def first(self, holds: Callable[[Probe], bool], last: int = PORTIONS) -> int | None:
        """The first portion, of those up to `last`, from which on something holds; None if none."""
        if not holds(self.probe(last)):
            return None
        low, high = 0, last  # it does not hold at `low`, which may be nothing, and does at `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(self.probe(middle)) else (middle, high)
        return high

    def tried(self) -> list[Probe]:
        """All probes, by portion."""
        return [probe for _, probe in sorted(self._probes.items())]

    def _probe(self, portion: float, point: Point) -> Probe:
        forget, retain = self._judges.drop(point.hits)
        accuracies = [
            top1(hits) for name, hits in point.hits.items() if self._judges.sides[name] == "forget"
        ]
        accuracy = sum(accuracies) / len(accuracies)
        return Probe(portion, point.removed, accuracy, forget, retain)


def _forgets(probe: Probe, until: Until) -> bool:
    return until.forget is not None and probe.accuracy <= until.forget.accuracy


def _costs(probe: Probe, until: Until) -> bool:
    return until.retain_drop is not None and probe.retain_drop > until.retain_drop
