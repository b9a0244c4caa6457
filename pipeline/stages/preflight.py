"""What would stop a run after hours, found before anything long begins."""

from __future__ import annotations

from typing import Any

from pipeline.architectures.description import Architecture
from pipeline.architectures.registry import Dimensions
from pipeline.errors import InputError
from pipeline.evaluation.gates import check_metrics
from pipeline.evaluation.next_token import METRICS
from pipeline.evaluation.tasks import digest_of_task, load_tasks
from pipeline.recipe import Recipe, next_token_task
from pipeline.recipe_file import LoadedRecipe
from pipeline.selection import uniform
from pipeline.sources.packing import as_chat
from pipeline.stages.base import Base

CONTEXT = "max_position_embeddings"  # the config's name for it, in all described families


def preflight(base: Base, loaded: LoadedRecipe) -> list[str]:
    """Check everything that later stages ask of a recipe, and return a digest of each task.

    Raises:
        InputError: the shapes cannot be made, the model has no chat template, or a task or a
            gate's metric does not exist.
        BrokenError: a task's documents cannot be fetched.
    """
    recipe = loaded.recipe
    kept_sizes(recipe, base.architecture, base.dimensions)
    check_context(recipe, getattr(base.config, CONTEXT, None), base.model.name)
    check_chat_template(recipe, base.tokenizer, base.model.name)
    folders = [loaded.folder / name for name in recipe.evaluate.task_folders]
    tasks = load_tasks(recipe.evaluate, folders, recipe.seed)
    check_gates(recipe, {task.name: task.metrics for task in tasks})
    return [digest_of_task(task, recipe.seed) for task in tasks]


def kept_sizes(recipe: Recipe, architecture: Architecture, sizes: Dimensions) -> dict[str, int]:
    """Units of each kind that a layer keeps.

    Raises:
        InputError: the architecture cannot have so few, or there are more steps than units.
    """
    ffn, attention = recipe.select.ffn, recipe.select.attention
    hidden = sizes.hidden if architecture.attention.heads_divide_hidden else None
    kept = {
        "ffn": uniform.kept_width(sizes.ffn, ffn.fraction, ffn.multiple_of),
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
    }
    if attention.unit == "kv_group":
        groups = uniform.kept_groups(sizes.kv_heads, sizes.heads, attention.fraction, hidden)
        kept |= {"kv_heads": groups, "heads": groups * sizes.heads_per_group}
    else:
        each = uniform.kept_per_group(sizes.kv_heads, sizes.heads, attention.fraction, hidden)
        kept["heads"] = each * sizes.kv_heads
    removed = sizes.ffn - kept["ffn"] + sizes.heads - kept["heads"]
    if recipe.select.steps > removed:
        raise InputError(
            f"{recipe.select.steps} steps cannot share the {removed} units that each layer loses",
            where="select.steps",
            remedy=f"choose at most {removed}; 2 to 4 are common",
        )
    return kept


def check_context(recipe: Recipe, positions: int | None, where: str) -> None:
    """Check that the model knows as many positions as a scored sequence has.

    Raises:
        InputError: it does not: statistics of positions that it never learned would mean nothing.
    """
    length = recipe.scoring.sequence_length
    if positions is not None and length > positions:
        raise InputError(
            f"scoring.sequence_length is {length}, the model knows {positions} positions",
            where=where,
            remedy=f"set scoring.sequence_length to {positions} or less",
        )


def check_chat_template(recipe: Recipe, tokenizer: Any, where: str) -> None:
    """Check that the model has a chat template that works if the recipe asks for one.

    Raises:
        InputError: it has none, or the template is broken.
    """
    for section in ("scoring", "evaluate"):
        if getattr(recipe, section).chat_template:
            as_chat("text", tokenizer, where, f"{section}.chat_template")


def check_gates(recipe: Recipe, metrics: dict[str, list[str] | None]) -> None:
    """Check the metrics that gates name, given those of the recipe's lm-eval tasks.

    Raises:
        InputError: a gate names a metric that its task does not have.
    """
    for _, corpus in recipe.corpora:
        if corpus.use != "scored":
            metrics |= {next_token_task(corpus.name): list(METRICS)}
    check_metrics(recipe.gates, metrics)
