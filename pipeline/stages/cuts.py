"""The cuts of a curve: what each way to select removes, over a range of fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cache import Cache
from pipeline.evaluation.curves import LIMIT, Judges
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe_file import LoadedRecipe, load_recipe
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice, choices, choose
from pipeline.stages.measure import Measurer
from pipeline.stages.points import Judge, Point
from pipeline.stages.settings import Setting
from pipeline.stages.texts import Texts


def check_settings(loaded: LoadedRecipe, settings: Sequence[Setting]) -> None:
    """Check that a recipe can be changed as some settings would change it.

    Raises:
        InputError: it cannot.
    """
    for setting in settings:
        _recipe(loaded, setting, 0.1)


@dataclass(frozen=True)
class Cuts:
    """What settings select from a base, each cut when it is asked for.

    Attributes:
        loaded: the recipe that settings change.
        base: the base model.
        texts: the recipe's.
        fractions: those of settings that select at once.
        cache: keeps scoring.
        progress: where to report.
    """

    loaded: LoadedRecipe
    base: Base
    texts: Texts
    fractions: Sequence[float]
    cache: Cache
    progress: Progress

    def points(self, setting: Setting, judge: Judge, judges: Judges) -> list[Point]:
        """The points of a setting, until the retain drop is beyond `LIMIT`."""
        points = []
        with self.progress.stage(f"Curve {setting.name}: {setting.about}"):
            for fraction, choice in self._of(setting):
                point = judge.point(fraction, choice)
                forget, retain = judges.drop(point.hits)
                self.progress.say(f"  {fraction:.1%}: forget −{forget:.1%}, retain −{retain:.1%}")
                points.append(point)
                if retain > LIMIT:
                    break
        return points

    def _of(self, setting: Setting) -> Iterator[tuple[float, Choice]]:
        """Yield the fractions of a setting with their cuts."""
        if setting.step is None:
            measurer = self._measurer(_widest(_recipe(self.loaded, setting, 0.1)))
            for fraction in self.fractions:
                recipe = _recipe(self.loaded, setting, fraction)
                yield fraction, choose(self.base, recipe, measurer, self.progress)
            return
        steps = round(1 / setting.step) - 1
        recipe = _recipe(self.loaded, setting, setting.step * steps, f"select.steps={steps}")
        measurer = self._measurer(recipe)
        for number, choice in enumerate(choices(self.base, recipe, measurer, self.progress), 1):
            yield setting.step * number, choice

    def _measurer(self, recipe: Recipe) -> Measurer:
        return Measurer(self.base, recipe, self.texts.sequences, self.cache, self.progress)


def _recipe(loaded: LoadedRecipe, setting: Setting, fraction: float, *more: str) -> Recipe:
    overrides = (*loaded.overrides, *setting.overrides, f"{setting.key}={fraction:g}", *more)
    return load_recipe(str(loaded.path), overrides).recipe


def _widest(recipe: Recipe) -> Recipe:
    """The recipe with a scoring that serves all which select at once and score alike."""
    select, compensate = recipe.select, recipe.compensate
    ffn, attention = (
        part.model_copy(update={"fraction": 0.1}) for part in (select.ffn, select.attention)
    )
    return recipe.model_copy(
        update={
            "select": select.model_copy(update={"ffn": ffn, "attention": attention}),
            "compensate": compensate.model_copy(update={"enabled": True}),
        }
    )
