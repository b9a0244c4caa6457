"""Evaluation of base, pruned model and control by a recipe, and the verdict of its gates."""

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
from pipeline.selection.plan import Plan
from pipeline.sources.model_folder import digest_of_weights
from pipeline.stages.base import Base
from pipeline.stages.cut import make_control
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import Texts


@dataclass(frozen=True)
class Judgement:
    """The evaluations by model ("base", "pruned", "control"), and what the gates say of them.

    Attributes:
        evaluations: by model.
        verdict: of the gates.
        control: plan of the control, if there is one.
    """

    evaluations: dict[str, Evaluation]
    verdict: Verdict
    control: Plan | None

    def as_dict(self) -> dict[str, Any]:
        """For `evaluation.json`; JSON-able."""
        models = {name: evaluation.as_dict() for name, evaluation in self.evaluations.items()}
        return {**models, **self.verdict.as_dict()}


def evaluate_and_judge(
    base: Base,
    pruned: Path,
    pruned_sha256: str,
    texts: Texts,
    measurer: Measurer,
    loaded: LoadedRecipe,
    cache: Cache,
    progress: Progress,
) -> Judgement:
    """Evaluate the models on a recipe's tasks and held-out texts; one is loaded at a time.

    Args:
        base: the base model.
        pruned: folder of the pruned model.
        pruned_sha256: digest of its weights, for the cache.
        texts: the recipe's texts.
        measurer: scores them for the recipe's control, if it asks for one.
        loaded: the recipe, whose tasks, limits and gates count.
        cache: keeps the results of finished tasks.
        progress: where to report.

    Raises:
        InputError: a task, a text or a model cannot be used.
        BrokenError: a task's documents cannot be fetched.
    """
    recipe = loaded.recipe
    models = {
        "base": (base.model.path, base.model.weights_sha256),
        "pruned": (pruned, pruned_sha256),
    }
    control = None
    if recipe.control is not None:
        with progress.stage(f"Control ({recipe.control.score} cut of the same shape)"):
            folder, control = make_control(base, recipe, measurer, cache, progress)
        models["control"] = (folder, digest_of_weights(folder, str(folder)))
    evaluations = {}
    for name, (folder, digest) in models.items():
        with progress.stage(f"Evaluation of the {name} model"):
            evaluations[name] = evaluate(
                folder,
                digest,
                recipe.evaluate,
                sides=recipe.evaluated,
                held_out=texts.held_out,
                task_folders=[loaded.folder / each for each in recipe.evaluate.task_folders],
                seed=recipe.seed,
                cache=cache,
                progress=progress,
                terms=base.terms,
            )
    verdict = judge(
        recipe.gates,
        evaluations["base"],
        evaluations["pruned"],
        recipe.statistics,
        evaluations.get("control"),
    )
    return Judgement(evaluations, verdict, control)
