"""`unlearn curve`: forgetting against what it costs, over the whole range of fractions.

Points are masks on the loaded model: no checkpoint is written. A killed run goes on where it was,
and another setting costs its own points alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import Cache, new_folder, write_csv, write_json
from pipeline.evaluation.curves import LIMIT, Figure, Judges, figures, selectivity, top1
from pipeline.progress import Progress
from pipeline.recipe_file import LoadedRecipe
from pipeline.release.report.curves import Place, curves_figure
from pipeline.release.report.png import as_png
from pipeline.sources.models import resolve_model
from pipeline.stages.base import open_base, within
from pipeline.stages.cuts import Cuts, changed_recipes
from pipeline.stages.learning import check_learning
from pipeline.stages.measure import Cost
from pipeline.stages.points import Judge, Point
from pipeline.stages.settings import RANDOM, Setting
from pipeline.stages.texts import prepare


@dataclass(frozen=True)
class Curves:
    """What was drawn.

    Attributes:
        recipe: the recipe's name.
        judges: the texts, and what the base hits in them.
        points: by setting, in the order of what they remove.
        figures: by setting, what its curve comes to.
    """

    recipe: str
    judges: Judges
    points: dict[str, list[Point]]
    figures: dict[str, dict[str, Figure]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the points, for a table and a CSV file."""
        for setting, points in self.points.items():
            forget, retain = self.judges.drops([point.hits for point in points])
            for point, lost, cost in zip(points, forget, retain, strict=True):
                yield {
                    "setting": setting,
                    "fraction": point.fraction,
                    "removed": round(point.removed, 6),
                    "forget_drop": round(float(lost), 6),
                    "retain_drop": round(float(cost), 6),
                    **{
                        f"top1 {name}": round(top1(hits), 6)
                        for name, hits in sorted(point.hits.items())
                    },
                    **{
                        f"drop {name}": round(1 - top1(hits) / top1(self.judges.base[name]), 6)
                        for name, hits in sorted(point.hits.items())
                    },
                    **{f"loss {k}": round(v, 6) for k, v in sorted(point.losses.items())},
                }

    def costs(self) -> dict[str, Cost]:
        """What the dearest cut of each setting took: scoring, selection, compensation."""
        return {
            setting: max(point.cost for point in points if point.cost)
            for setting, points in self.points.items()
        }

    def lines(self) -> dict[str, list[Place]]:
        """The points as a figure takes them."""
        lines: dict[str, list[Place]] = {}
        for row in self.rows():
            cost, forgotten = row["retain_drop"], row["forget_drop"]
            hint = f"{row['fraction']:.1%}: forgotten {forgotten:.1%}, cost {cost:.1%}"
            lines.setdefault(row["setting"], []).append(Place(cost, forgotten, hint))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and `figures.json`."""
        return {
            "recipe": self.recipe,
            "limit": LIMIT,
            "texts": dict(self.judges.sides),
            "figures": {
                setting: {name: figure._asdict() for name, figure in found.items()}
                for setting, found in self.figures.items()
            },
            "costs": {setting: cost._asdict() for setting, cost in self.costs().items()},
            "points": list(self.rows()),
        }


def draw(
    loaded: LoadedRecipe,
    settings: Sequence[Setting],
    fractions: Sequence[float],
    tokens: int,
    cache: Cache,
    progress: Progress,
) -> Curves:
    """Draw the curves of some settings, on the held-out texts of a recipe.

    Args:
        loaded: the recipe.
        settings: the ways to select.
        fractions: those of settings that select at once.
        tokens: of each text.
        cache: keeps scoring and points.
        progress: where to report.

    Raises:
        InputError: a side has no held-out text, or a setting cannot be had of this model.
        BrokenError: the Hub cannot be reached.
    """
    recipes = changed_recipes(loaded, settings)  # what cannot be is refused before anything long
    with progress.stage("Base model"):
        base = open_base(resolve_model(loaded.recipe.model, loaded.folder, cache, progress))
        for recipe in recipes:
            check_learning(recipe, base.architecture)
    with progress.stage("Texts"):
        texts = prepare(base, loaded, cache, progress)
    with within(loaded.recipe.model.max_memory, base, cache) as base:
        judge = Judge(base, loaded.recipe, texts.held_out, tokens, cache, progress)
        with progress.stage("Base"):
            judges = judge.judges()
        cuts = Cuts(loaded, base, texts, settings, fractions, cache, progress)
        points = {setting.name: cuts.points(setting, judge, judges) for setting in settings}
    return Curves(loaded.recipe.name, judges, points, _figures(judges, points))


def _figures(judges: Judges, points: dict[str, list[Point]]) -> dict[str, dict[str, Figure]]:
    hits = {name: [point.hits for point in own] for name, own in points.items()}
    found = {name: figures(judges, own) for name, own in hits.items()}
    if matched := hits.get(RANDOM):
        for name, own in hits.items():
            if own and name != RANDOM:
                found[name]["selectivity"] = selectivity(judges, own, matched)
    return found


def write(curves: Curves, target: Path, png: bool = False) -> list[str]:
    """Write what was drawn into a folder that appears whole or not at all; return the files."""
    rows = list(curves.rows())
    drawing = curves_figure(curves.lines()).file()
    with new_folder(target) as folder:
        write_csv(folder / "points.csv", rows)
        write_json(folder / "figures.json", curves.as_dict())
        (folder / "curve.svg").write_bytes(drawing)
        if png:
            (folder / "curve.png").write_bytes(as_png(drawing))
    return sorted(path.name for path in target.iterdir())
