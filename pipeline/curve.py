"""`unlearn curve`: forgetting against what it costs, over the whole range of fractions.

Points are masks on the loaded model: no checkpoint is written. Each is cached by what determined
it, so that a killed run goes on where it was, and another setting costs its own points alone.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import Cache, digest_of, new_folder, read_json, write_json
from pipeline.errors import InputError
from pipeline.evaluation.curves import LIMIT, Figure, Hits, Judges, figures
from pipeline.evaluation.loading import default_device, key_of_model
from pipeline.evaluation.model import TokenBudgetLM, load_lm
from pipeline.evaluation.next_token import Document, predict, read_documents
from pipeline.progress import Progress
from pipeline.recipe import Recipe, Side
from pipeline.recipe_file import LoadedRecipe, load_recipe
from pipeline.selection.plan import Plan
from pipeline.sources.models import resolve_model
from pipeline.stages.base import Base, open_base, within
from pipeline.stages.choose import Choice, choices, choose, masking
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import Texts, prepare

FORMAT = 1
FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)
TOKENS = 4000  # of each judged text


@dataclass(frozen=True)
class Setting:
    """A way to select, whose fraction is varied.

    Attributes:
        name: what tables call it.
        about: in words.
        overrides: what it sets in the recipe.
        key: the fraction that is varied.
        step: the share that is removed at a time, with another scoring after each; None if all is
            selected at once.
    """

    name: str
    about: str
    overrides: tuple[str, ...] = ()
    key: str = "select.ffn.fraction"
    step: float | None = None


FFN_ALONE = ("select.attention.fraction=0", "select.experts.fraction=0")
# The paper's: the ratio of mean absolute activations, all layers ranked together, nothing protected
# and nothing compensated.
TAKER = (
    *FFN_ALONE,
    "select.policy=padded",
    "select.ffn.multiple_of=1",
    "select.ffn.score=ratio",
    "select.ffn.importance=abs",
    "select.ffn.epsilon=0.001",
    "select.ffn.protect_massive=1e9",
    "compensate.enabled=false",
)
SETTINGS = {
    each.name: each
    for each in (
        Setting("recipe", "the recipe's own selection"),
        Setting("taker-abs", "the paper's, 2 % at a time and scored again", TAKER, step=0.02),
        Setting("taker-abs-once", "the paper's score, at once", TAKER),
        Setting("random", "as many of every layer at random", ("select.ffn.score=random",)),
        Setting("magnitude", "the largest output columns", ("select.ffn.score=magnitude",)),
        Setting("uncompensated", "the recipe's, not compensated", ("compensate.enabled=false",)),
        Setting("ffn", "the recipe's, FFN neurons alone", FFN_ALONE),
        Setting(
            "heads",
            "key/value groups alone, of all layers together",
            ("select.ffn.fraction=0", "select.policy=ragged", "select.attention.unit=kv_group"),
            key="select.attention.fraction",
        ),
    )
}


@dataclass(frozen=True)
class Point:
    """One cut of a curve.

    Attributes:
        fraction: as asked for.
        removed: share of the kind's units that is gone.
        hits: by text, hits and tokens of each document.
        losses: by text, the loss a token in nats.
    """

    fraction: float
    removed: float
    hits: Hits
    losses: Mapping[str, float]


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
                        f"top1 {name}": round(float(hits[:, 0].sum() / hits[:, 1].sum()), 6)
                        for name, hits in sorted(point.hits.items())
                    },
                    **{f"loss {k}": round(v, 6) for k, v in sorted(point.losses.items())},
                }

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

    Whole sources that are held out judge where a side has any, else its held-out documents.

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
    for setting in settings:  # before anything long begins
        _recipe(loaded, setting, 0.1)
    with progress.stage("Base model"):
        base = open_base(resolve_model(loaded.recipe.model, loaded.folder, cache, progress))
    with progress.stage("Texts"):
        texts = prepare(base, loaded, cache, progress)
    with within(loaded.recipe.model.max_memory, base, cache) as base:
        judge = _Judge(base, loaded.recipe, texts, tokens, cache, progress)
        with progress.stage("Base"):
            whole = judge.point(0.0, None)
        judges = Judges(judge.sides, whole.hits)
        for name, hits in whole.hits.items():
            if not hits[:, 0].any():
                raise InputError(
                    f"the base predicts no token of {name} rightly, and no drop is a share of that",
                    where=base.model.name,
                    remedy="judge by other texts, or raise --tokens",
                )
        points = {}
        for setting in settings:
            with progress.stage(f"Curve {setting.name}: {setting.about}"):
                points[setting.name] = list(
                    _sweep(setting, loaded, base, texts, fractions, judge, judges, cache, progress)
                )
    found = {name: figures(judges, [point.hits for point in own]) for name, own in points.items()}
    return Curves(loaded.recipe.name, judges, points, found)


def write(curves: Curves, target: Path) -> None:
    """Write `points.csv` and `figures.json` into a folder that appears whole or not at all."""
    rows = list(curves.rows())
    with new_folder(target) as folder:
        with (folder / "points.csv").open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        write_json(folder / "figures.json", curves.as_dict())


def _sweep(
    setting: Setting,
    loaded: LoadedRecipe,
    base: Base,
    texts: Texts,
    fractions: Sequence[float],
    judge: _Judge,
    judges: Judges,
    cache: Cache,
    progress: Progress,
) -> Iterator[Point]:
    """Yield points until the retain drop is beyond `LIMIT`."""
    for fraction, choice in _cuts(setting, loaded, base, texts, fractions, cache, progress):
        point = judge.point(fraction, choice)
        forget, retain = (float(drop[0]) for drop in judges.drops([point.hits]))
        progress.say(f"  {fraction:.1%}: forget −{forget:.1%}, retain −{retain:.1%}")
        yield point
        if retain > LIMIT:
            return


def _cuts(
    setting: Setting,
    loaded: LoadedRecipe,
    base: Base,
    texts: Texts,
    fractions: Sequence[float],
    cache: Cache,
    progress: Progress,
) -> Iterator[tuple[float, Choice]]:
    """Yield the cuts of a setting, each when it is asked for."""
    if setting.step is None:
        measurer = Measurer(base, _widest(loaded), texts.sequences, cache, progress)
        for fraction in fractions:
            yield fraction, choose(base, _recipe(loaded, setting, fraction), measurer, progress)
        return
    steps = round(1 / setting.step) - 1
    recipe = _recipe(loaded, setting, setting.step * steps, f"select.steps={steps}")
    measurer = Measurer(base, recipe, texts.sequences, cache, progress)
    for number, choice in enumerate(choices(base, recipe, measurer, progress), 1):
        yield setting.step * number, choice


def _recipe(loaded: LoadedRecipe, setting: Setting, fraction: float, *more: str) -> Recipe:
    overrides = (*loaded.overrides, *setting.overrides, f"{setting.key}={fraction:g}", *more)
    return load_recipe(str(loaded.path), overrides).recipe


def _widest(loaded: LoadedRecipe) -> Recipe:
    """A recipe whose scoring serves all settings that select at once."""
    recipe = loaded.recipe
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


class _Judge:
    """Masks the base by a choice, and asks it for the next tokens of the held-out texts."""

    def __init__(
        self,
        base: Base,
        recipe: Recipe,
        texts: Texts,
        tokens: int,
        cache: Cache,
        progress: Progress,
    ) -> None:
        self.base, self.recipe, self.cache, self.progress = base, recipe, cache, progress
        self.sides = _judging(recipe)
        self.documents: dict[str, list[Document]] = {
            name: read_documents(texts.held_out[name], base.tokenizer, tokens)
            for name in self.sides
        }

    @cached_property
    def _lm(self) -> TokenBudgetLM:
        settings = self.recipe.evaluate
        return load_lm(
            self.base.model.path,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            progress=self.progress,
            terms=self.base.terms,
        )

    def point(self, fraction: float, choice: Choice | None) -> Point:
        """Return a choice's point; of no choice, the base."""
        model, settings = self.base.model, self.recipe.evaluate
        key = {
            **key_of_model(
                model.path,
                model.weights_sha256,
                settings.dtype,
                default_device(),
                self.base.terms,
            ),
            "format": FORMAT,
            "lm_eval": version("lm_eval"),
            "documents": digest_of(self.documents),
            "plan": choice.plan.to_json() if choice else None,
            "maps": _maps_key(choice) if choice else None,
        }
        folder = self.cache.get("curve", key, lambda new: self._ask(new, choice))
        found = read_json(folder / "documents.json")
        removed = _share(choice.plan) if choice else 0.0
        hits = {name: np.array(own["top1"], dtype=float) for name, own in found.items()}
        sums = {name: np.array(own["loss"], dtype=float).sum(axis=0) for name, own in found.items()}
        losses = {name: float(total / tokens) for name, (total, tokens) in sums.items()}
        return Point(fraction, removed, hits, losses)

    def _ask(self, folder: Path, choice: Choice | None) -> None:
        lm = self._lm
        if choice is None:
            found = self._predict(lm)
        else:
            with masking(self.base, choice.plan, choice.maps, lm.model):
                found = self._predict(lm)
        write_json(folder / "documents.json", found)

    def _predict(self, lm: TokenBudgetLM) -> dict[str, Any]:
        found = {}
        for name, documents in self.documents.items():
            lm.label = name
            found[name] = predict(lm, documents)
        return found


def _judging(recipe: Recipe) -> dict[str, Side]:
    """The corpora that judge, by their side."""
    sides: dict[str, Side] = {}
    for side in ("forget", "retain"):
        own = [corpus for each, corpus in recipe.corpora if each == side and corpus.use != "scored"]
        whole = [corpus for corpus in own if corpus.use == "held_out"]
        if not own:
            raise InputError(
                f"no {side} text is held out, so that nothing judges a point",
                where=side,
                remedy="give a corpus use: both or held_out",
            )
        sides |= {corpus.name: side for corpus in whole or own}
    return sides


def _maps_key(choice: Choice) -> str | None:
    """Digest of the maps; None if there are none."""
    if not choice.maps:
        return None
    digest = hashlib.sha256()
    for name, each in sorted(choice.maps.items()):
        digest.update(name.encode() + each.map_PS.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _share(plan: Plan) -> float:
    """Share of the units that is gone, of the kind of which most is."""
    return max(1 - kept / total for kept, total in plan.counts().values())
