"""Pruning and other ways to unlearn, each made and judged in the same way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.baselines.ways import Way
from pipeline.cache import Cache
from pipeline.evaluation.curves import Judges
from pipeline.evaluation.relearning import area_between, steps_to_regain
from pipeline.evaluation.tuning import Manner, rows_of
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.sources.model_folder import digest_of_weights
from pipeline.stages.base import Base
from pipeline.stages.choose import choose
from pipeline.stages.cut import kept_cut
from pipeline.stages.measure import Measurer
from pipeline.stages.points import Judge, judges_by
from pipeline.stages.relearning import Learner
from pipeline.stages.search import search
from pipeline.stages.texts import Texts
from pipeline.stages.trained import Budget, Trained, Trainer
from pipeline.surgery.cut import parameters_of
from pipeline.surgery.safetensors_stream import stored_tensors

BASE, PRUNED = "base", "pruning"
LEAST_BUDGET = 0.02  # retain drop that is allowed where pruning costs less than that


@dataclass(frozen=True)
class Terms:
    """How the ways are compared.

    Attributes:
        minutes: that each trained way may use.
        retain_drop: what it may cost on selection text; None: what pruning costs there.
        every: steps between two measurements on selection text.
        judged: tokens of each text, of selection and of judging.
        relearning: how all learn again; None: they do not.
        tokens: of forget text that they learn again.
    """

    minutes: float
    retain_drop: float | None
    every: int
    judged: int
    relearning: Manner | None
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """What each way came to.

    Attributes:
        recipe: the recipe's name.
        terms: how they were compared.
        budget: the retain drop on selection text that the trained ways were allowed.
        judges: the texts that judged, and what the base hits in them.
        rows: by way, its figures; pruning first.
        tried: by trained way, all that was measured on selection text.
    """

    recipe: str
    terms: Terms
    budget: float
    judges: Judges
    rows: dict[str, dict[str, Any]]
    tried: dict[str, list[dict[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and `compare.json`."""
        return {
            "recipe": self.recipe,
            "terms": asdict(self.terms),
            "retain_budget": round(self.budget, 6),
            "texts": dict(self.judges.sides),
            "ways": self.rows,
            "tried": self.tried,
        }


class Comparing:
    """Makes the model of each way, and asks all of them the same.

    Args:
        base: the base model.
        recipe: that prunes.
        texts: the recipe's, with selection text.
        terms: how the ways are compared.
        cache: keeps scoring, checkpoints and what was measured.
        progress: where to report.

    Raises:
        InputError: a side has no held-out text.
    """

    def __init__(
        self,
        base: Base,
        recipe: Recipe,
        texts: Texts,
        terms: Terms,
        cache: Cache,
        progress: Progress,
    ) -> None:
        self.base, self.recipe, self.texts = base, recipe, texts
        self.terms, self.cache, self.progress = terms, cache, progress
        self.judge = Judge(base, self.recipe, texts.held_out, terms.judged, cache, progress)
        self.selection = Judge(base, self.recipe, texts.selection, terms.judged, cache, progress)

    def all(self, ways: Sequence[Way]) -> Comparison:
        """Compare pruning with other ways."""
        with self.progress.stage("Base"):
            judges, selecting = self.judge.judges(), self.selection.judges()
        with self.progress.stage("Pruning"):
            folder, seconds, scored, cost = self._pruned(selecting)
        allowed = self.terms.retain_drop
        budget = max(cost, LEAST_BUDGET) if allowed is None else allowed
        trained = self._trained(ways, selecting, budget)
        folders = {PRUNED: folder, **{name: each.folder for name, each in trained.items()}}
        times = {PRUNED: seconds, **{name: each.seconds for name, each in trained.items()}}
        again = self._relearned(folders) if self.terms.relearning else {}
        rows = {}
        for name, place in folders.items():
            with self.progress.stage(f"Judging: {name}"):
                row = self._judged(place, judges)
            chosen = trained[name].chosen if name in trained else None
            rows[name] = {
                **row,
                "seconds": round(times[name], 1),
                "scoring_was_cached": name == PRUNED and not scored,
                **{key: (chosen or {}).get(key) for key in ("learning_rate", "strength", "step")},
                **again.get(name, {}),
            }
        tried = {name: each.tried for name, each in trained.items()}
        return Comparison(self.recipe.name, self.terms, budget, judges, rows, tried)

    def _pruned(self, selecting: Judges) -> tuple[Path, float, bool, float]:
        """The pruned checkpoint, its seconds, whether these hold the scoring, and its cost."""
        started = time.monotonic()
        base, texts, cache, progress = self.base, self.texts, self.cache, self.progress
        measurer = Measurer(base, self.recipe, texts.sequences, cache, progress)
        recipe = self.recipe
        if recipe.select.until is not None:
            recipe = search(base, recipe, texts, measurer, cache, progress).recipe
        choice = choose(base, recipe, measurer, progress)
        folder = kept_cut("cut", base, recipe, choice, cache)
        seconds = time.monotonic() - started
        point = self.selection.point(0.0, choice)
        forget, retain = selecting.drop(point.hits)
        progress.say(f"  on selection text: forget −{forget:.1%}, retain −{retain:.1%}")
        return folder, seconds, measurer.has_run, retain

    def _trained(
        self, ways: Sequence[Way], selecting: Judges, retain_drop: float
    ) -> dict[str, Trained]:
        rows = {
            side: rows_of(ids_NS, ids_NS.numel(), self.recipe.seed)
            for side in ("forget", "retain")
            for ids_NS in [self.texts.sequences[side]]
        }
        budget = Budget(60 * self.terms.minutes, round(retain_drop, 6), self.terms.every)
        trainer = Trainer(
            self.base,
            self.recipe,
            rows,
            self.selection.documents,
            selecting,
            budget,
            self.cache,
            self.progress,
        )
        found = {}
        for way in ways:
            with self.progress.stage(f"Training: {way.name}, {way.about}"):
                found[way.name] = trainer.trained(way)
        return found

    def _judged(self, folder: Path | None, judges: Judges) -> dict[str, Any]:
        if folder is None:
            return dict.fromkeys(("forget_drop", "retain_drop", "parameters"))
        hits = self.judge.hits(folder, digest_of_weights(folder, str(folder)))
        forget, retain = (round(drop, 6) for drop in judges.drop(hits))
        count = parameters_of(stored_tensors(folder))
        return {"forget_drop": forget, "retain_drop": retain, "parameters": count}

    def _relearned(self, folders: Mapping[str, Path | None]) -> dict[str, dict[str, Any]]:
        """How fast each way's model learns again, by way; of one that forgot nothing, no figure."""
        manner = self.terms.relearning
        assert manner is not None
        rows_NT = rows_of(self.texts.sequences["forget"], self.terms.tokens, manner.seed)
        learner = Learner(
            self.base,
            self.recipe,
            self.texts.held_out,
            self.terms.judged,
            rows_NT,
            manner,
            self.cache,
            self.progress,
        )
        places = {BASE: self.base.model.path} | {
            name: each for name, each in folders.items() if each
        }
        learned = {}
        for name, folder in places.items():
            with self.progress.stage(f"Relearning: {name}"):
                learned[name] = learner.learned(folder, digest_of_weights(folder, str(folder)))
        before = judges_by(learner.sides, learned[BASE].hits[0], self.base.model.name)
        drops = {name: before.drops(each.hits)[0] for name, each in learned.items()}
        steps, found = manner.measured_at(), {}
        for name in folders:
            half = steps_to_regain(steps, drops[name]) if name in drops else None
            area = area_between(steps, drops[name], drops[BASE]) if name in drops else None
            found[name] = {
                "steps_to_half": None if half is None else round(half, 2),
                "area": None if area is None else round(area, 6),
            }
        return found
