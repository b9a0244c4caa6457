"""Forgetting against its cost around a released cut, as card and report show it."""

from __future__ import annotations

from typing import Any

from pipeline.cache import Cache
from pipeline.evaluation.curves import Judges
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.recipe_file import LoadedRecipe
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice
from pipeline.stages.cuts import Cuts, changed_recipes
from pipeline.stages.points import Judge, Point
from pipeline.stages.settings import SETTINGS
from pipeline.stages.texts import Texts


def drawn_recipes(loaded: LoadedRecipe) -> list[Recipe]:
    """The recipe as each point of its `curve` will change it, if it has one.

    Raises:
        InputError: a setting cannot be had of this recipe.
    """
    if (wanted := loaded.recipe.curve) is None:
        return []
    return changed_recipes(loaded, [SETTINGS[name] for name in wanted.settings], wanted.fractions)


def drawn_curve(
    loaded: LoadedRecipe,
    base: Base,
    texts: Texts,
    choice: Choice,
    cache: Cache,
    progress: Progress,
) -> dict[str, Any]:
    """The points of a recipe's `curve`, and that of what is released; for the manifest.

    Raises:
        InputError: the base predicts nothing of a text, so that no drop is a share of that.
    """
    wanted = loaded.recipe.curve
    assert wanted is not None
    judge = Judge(base, loaded.recipe, texts.held_out, wanted.tokens, cache, progress)
    judges = judge.judges()
    settings = [SETTINGS[name] for name in wanted.settings]
    cuts = Cuts(loaded, base, texts, settings, wanted.fractions, cache, progress)
    points = {setting.name: cuts.points(setting, judge, judges) for setting in settings}
    return {
        "texts": dict(judge.sides),
        "tokens": wanted.tokens,
        "settings": {name: _as_dicts(own, judges) for name, own in points.items()},
        "chosen": _as_dict(judge.point(0.0, choice), judges),
    }


def _as_dicts(points: list[Point], judges: Judges) -> list[dict[str, float]]:
    """The points, of fractions that come to the same width one."""
    widths = {point.removed: point for point in points}
    return [_as_dict(point, judges) for point in widths.values()]


def _as_dict(point: Point, judges: Judges) -> dict[str, float]:
    forget, retain = (round(drop, 6) for drop in judges.drop(point.hits))
    return {"removed": point.removed, "forget_drop": forget, "retain_drop": retain}
