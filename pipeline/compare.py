"""`unlearn compare`: a recipe's pruning beside other ways to unlearn, which train the base.

All have the same base, texts and evaluation. What pruning costs on selection text is what the
others may cost there; on the text that judges each is asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.baselines.ways import Way
from pipeline.cache import Cache, new_folder, write_csv, write_json
from pipeline.progress import Progress
from pipeline.recipe.selection import Until
from pipeline.recipe_file import LoadedRecipe
from pipeline.sources.models import resolve_model
from pipeline.stages.base import open_base
from pipeline.stages.compared import LEAST_BUDGET, Comparing, Comparison, Terms
from pipeline.stages.learning import check_learning
from pipeline.stages.texts import prepare

FILES = ("compare.csv", "compare.json")


def compare(
    loaded: LoadedRecipe, ways: Sequence[Way], terms: Terms, cache: Cache, progress: Progress
) -> Comparison:
    """Prune the base and train it away from forget text, and judge what came of each.

    Args:
        loaded: the recipe.
        ways: the others.
        terms: how they are compared.
        cache: keeps scoring, checkpoints and what was measured.
        progress: where to report.

    Raises:
        InputError: a side has no held-out text, or too little to keep some apart.
        BrokenError: the Hub cannot be reached.
    """
    with progress.stage("Base model"):
        base = open_base(resolve_model(loaded.recipe.model, loaded.folder, cache, progress))
        check_learning(loaded.recipe, base.architecture)
    with progress.stage("Texts"):
        texts = prepare(base, _with_selection(loaded, terms.judged), cache, progress)
    return Comparing(base, loaded.recipe, texts, terms, cache, progress).all(ways)


def write(found: Comparison, target: Path) -> list[str]:
    """Write what was compared into a folder that appears whole or not at all; return the files."""
    rows = [{"way": name, **row} for name, row in found.rows.items()]
    with new_folder(target) as folder:
        write_csv(folder / "compare.csv", rows)
        write_json(folder / "compare.json", found.as_dict())
    return sorted(path.name for path in target.iterdir())


def _with_selection(loaded: LoadedRecipe, tokens: int) -> LoadedRecipe:
    """The recipe with selection text kept apart from what judges, as a search of it would have."""
    recipe = loaded.recipe
    if recipe.select.until is not None:
        return loaded
    until = Until(retain_drop=LEAST_BUDGET, tokens=tokens)
    select = recipe.select.model_copy(update={"until": until})
    return replace(loaded, recipe=recipe.model_copy(update={"select": select}))
