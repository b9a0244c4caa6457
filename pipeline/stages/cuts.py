"""The cuts of a curve: what each way to select removes, over a range of fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from pipeline.cache import Cache
from pipeline.errors import InputError
from pipeline.evaluation.curves import LIMIT, Judges
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe_file import LoadedRecipe, load_recipe
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice, choices, choose
from pipeline.stages.measure import Measurer
from pipeline.stages.points import Judge, Point
from pipeline.stages.settings import Setting
from pipeline.stages.texts import Texts, prepare


def changed_recipes(
    loaded: LoadedRecipe, settings: Sequence[Setting], fractions: Sequence[float] = (0.1,)
) -> list[Recipe]:
    """Return a recipe as each setting would change it, for each fraction.

    Raises:
        InputError: it cannot be changed so, or text would be scored that judges the other settings.
    """
    recipes = []
    for setting, fraction in product(settings, fractions):
        at_once = setting.step is None
        made = _changed(loaded, setting, fraction) if at_once else _stepped(loaded, setting)
        changed = made.recipe
        if _split(changed) != _split(loaded.recipe):
            raise InputError(
                "it changes which text is scored and which is held out, and all settings are "
                "judged on the same",
                where=f"setting {setting.name}",
                remedy="change how much is scored (scoring.forget_tokens, scoring.retain_tokens), "
                "or a corpus' weight or protect; other corpora belong into another recipe",
            )
        recipes.append(changed)
    return recipes


@dataclass(frozen=True)
class Cuts:
    """What settings select from a base, each cut when it is asked for.

    Attributes:
        loaded: the recipe that settings change.
        base: the base model.
        texts: the recipe's.
        settings: all that are drawn: those which select at once share a scoring.
        fractions: those of settings that select at once.
        cache: keeps scoring.
        progress: where to report.
    """

    loaded: LoadedRecipe
    base: Base
    texts: Texts
    settings: Sequence[Setting]
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
                self.progress.say(
                    f"  {point.removed:.1%} removed (asked for {fraction:.1%}): "
                    f"forget −{forget:.1%}, retain −{retain:.1%}"
                )
                points.append(point)
                if retain > LIMIT:
                    break
        return points

    def _of(self, setting: Setting) -> Iterator[tuple[float, Choice]]:
        """Yield the fractions of a setting with their cuts."""
        if setting.step is None:
            changed = _changed(self.loaded, setting, 0.1)
            measurer = self._measurer(changed, self._widest(changed.recipe))
            for fraction in self.fractions:
                recipe = _changed(self.loaded, setting, fraction).recipe
                yield fraction, choose(self.base, recipe, measurer, self.progress)
            return
        changed = _stepped(self.loaded, setting)
        measurer = self._measurer(changed, changed.recipe)
        made = choices(self.base, changed.recipe, measurer, self.progress)
        for number, choice in enumerate(made, 1):
            yield setting.step * number, choice

    @cached_property
    def _at_once(self) -> list[Recipe]:
        """The recipes of all settings that select at once."""
        settings = [each for each in self.settings if each.step is None]
        return [_changed(self.loaded, each, 0.1).recipe for each in settings]

    def _widest(self, recipe: Recipe) -> Recipe:
        """The recipe with a scoring that serves all which select at once and score alike."""
        recipes = [recipe, *self._at_once]
        select, compensate = recipe.select, recipe.compensate
        ffn = max(each.select.ffn.fraction for each in recipes)
        attention = max(each.select.attention.fraction for each in recipes)
        enabled = any(each.compensate.enabled for each in recipes)
        return recipe.model_copy(
            update={
                "select": select.model_copy(
                    update={
                        "ffn": select.ffn.model_copy(update={"fraction": ffn}),
                        "attention": select.attention.model_copy(update={"fraction": attention}),
                    }
                ),
                "compensate": compensate.model_copy(update={"enabled": enabled}),
            }
        )

    def _measurer(self, changed: LoadedRecipe, recipe: Recipe) -> Measurer:
        texts, own = self.texts, self.loaded.recipe
        if (recipe.corpora, recipe.scoring) != (own.corpora, own.scoring):  # other tokens to score
            texts = prepare(self.base, changed, self.cache, self.progress)
        return Measurer(self.base, recipe, texts.sequences, self.cache, self.progress)


def _changed(loaded: LoadedRecipe, setting: Setting, fraction: float, *more: str) -> LoadedRecipe:
    overrides = (*loaded.overrides, *setting.overrides, f"{setting.key}={fraction:g}", *more)
    return load_recipe(str(loaded.path), overrides)


def _stepped(loaded: LoadedRecipe, setting: Setting) -> LoadedRecipe:
    """The recipe as a setting changes it that scores again after each step, to the last."""
    assert setting.step is not None
    steps = round(1 / setting.step) - 1
    return _changed(loaded, setting, setting.step * steps, f"select.steps={steps}")


def _split(recipe: Recipe) -> tuple[Any, ...]:
    """What decides which text is scored and which is held out."""
    corpora = [
        (side, corpus.model_dump(exclude={"weight", "protect"})) for side, corpus in recipe.corpora
    ]
    return corpora, recipe.scoring.held_out_fraction, recipe.seed
