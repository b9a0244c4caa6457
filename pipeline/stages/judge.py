"""Evaluation of base and pruned model by a recipe, and the verdict of its gates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import Cache
from pipeline.evaluation.gates import Verdict, judge
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.run import evaluate
from pipeline.progress import Progress
from pipeline.recipe_file import LoadedRecipe
from pipeline.stages.base import Base
from pipeline.stages.texts import Texts


@dataclass(frozen=True)
class Judgement:
    """Both evaluations and what the gates say of them."""

    before: Evaluation
    after: Evaluation
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For `evaluation.json`; JSON-able."""
        return {
            "base": self.before.as_dict(),
            "pruned": self.after.as_dict(),
            **self.verdict.as_dict(),
        }


def evaluate_and_judge(
    base: Base,
    pruned: Path,
    pruned_sha256: str,
    texts: Texts,
    loaded: LoadedRecipe,
    cache: Cache,
    progress: Progress,
) -> Judgement:
    """Evaluate both models on a recipe's tasks and held-out texts; one is loaded at a time.

    Args:
        base: the base model.
        pruned: folder of the pruned model.
        pruned_sha256: digest of its weights, for the cache.
        texts: the recipe's texts.
        loaded: the recipe, whose tasks, limits and gates count.
        cache: keeps the results of finished tasks.
        progress: where to report.

    Raises:
        InputError: a task, a text or a model cannot be used.
        BrokenError: a task's documents cannot be fetched.
    """
    recipe = loaded.recipe
    results = []
    for name, folder, digest in (
        ("base", base.model.path, base.model.weights_sha256),
        ("pruned", pruned, pruned_sha256),
    ):
        with progress.stage(f"Evaluation of the {name} model"):
            results.append(
                evaluate(
                    folder,
                    digest,
                    recipe.evaluate,
                    sides=recipe.evaluated,
                    held_out=texts.held_out,
                    task_folders=[loaded.folder / each for each in recipe.evaluate.task_folders],
                    seed=recipe.seed,
                    cache=cache,
                    progress=progress,
                )
            )
    before, after = results
    return Judgement(before, after, judge(recipe.gates, before, after, recipe.statistics))
