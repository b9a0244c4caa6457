"""What would stop a run after hours, found before anything long begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.experts import GROUPED_MULTIPLE
from pipeline.errors import InputError
from pipeline.evaluation.gates import check_metrics
from pipeline.evaluation.next_token import METRICS
from pipeline.evaluation.tasks import digest_of_task, load_tasks
from pipeline.export.checkpoint import why_not_relabelled
from pipeline.recipe import Recipe, next_token_task
from pipeline.recipe_file import LoadedRecipe
from pipeline.selection import uniform
from pipeline.sources.packing import as_chat
from pipeline.stages.base import Base
from pipeline.stages.choose import legal_heads

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
    check_relabel(recipe, base.architecture, base.config)
    check_context(recipe, getattr(base.config, CONTEXT, None), base.model.name)
    check_chat_template(recipe, base.tokenizer, base.model.name)
    folders = [loaded.folder / name for name in recipe.evaluate.task_folders]
    tasks = load_tasks(recipe.evaluate, folders, recipe.seed)
    check_gates(recipe, {task.name: task.metrics for task in tasks})
    return [digest_of_task(task, recipe.seed) for task in tasks]


def kept_sizes(recipe: Recipe, architecture: Architecture, sizes: Dimensions) -> Dimensions:
    """Units of each kind that a layer keeps; of FFN neurons where layers may differ, on average.

    Raises:
        InputError: the architecture cannot have so few, or there are more steps than units.
    """
    select, ffn, attention = recipe.select, recipe.select.ffn, recipe.select.attention
    if select.policy == "uniform" and ffn.fraction and architecture.feed_forward.width is None:
        raise InputError(
            "the number of FFN neurons is fixed in this architecture",
            where="select.ffn.fraction",
            remedy="set select.policy to ragged (with a modeling file), or to padded, which leaves "
            "zeros in their place",
        )
    if attention.fraction and architecture.attention.untouchable:
        raise InputError(
            f"heads cannot be removed: {architecture.attention.untouchable}",
            where="select.attention.fraction",
            remedy="set it to 0 and remove FFN neurons alone",
        )
    _check_experts(recipe, architecture)
    if select.policy != "uniform":
        neurons = sizes.ffn - int(sizes.ffn * ffn.fraction)
    else:
        neurons = uniform.kept_width(sizes.ffn, ffn.fraction, ffn.multiple_of)
    if sizes.experts and ffn.fraction and neurons % GROUPED_MULTIPLE:
        raise InputError(
            f"experts of {neurons} neurons cannot be multiplied in groups, as transformers does; "
            "their rows must be multiples of 16 bytes",
            where="select.ffn.multiple_of",
            remedy=f"choose a multiple of {GROUPED_MULTIPLE}",
        )
    heads, groups = sizes.heads, sizes.kv_heads
    legal = legal_heads(recipe, architecture, sizes)
    if attention.unit == "kv_group":
        groups = uniform.kept_groups(groups, heads, attention.fraction, legal)
        heads = groups * sizes.heads_per_group
    else:
        heads = groups * uniform.kept_per_group(groups, heads, attention.fraction, legal)
    shared, experts = sizes.shared, sizes.experts
    if shared:
        shared = uniform.kept_width(shared, ffn.fraction, ffn.multiple_of)
    if experts:
        experts = uniform.kept_experts(experts, sizes.chosen, select.experts.fraction)
    removed = sizes.ffn - neurons + sizes.heads - heads + sizes.experts - experts
    if select.steps > removed:
        raise InputError(
            f"{select.steps} steps cannot share the {removed} units that each layer loses",
            where="select.steps",
            remedy=f"choose at most {removed}; 2 to 4 are common",
        )
    return replace(sizes, ffn=neurons, heads=heads, kv_heads=groups, experts=experts, shared=shared)


def _check_experts(recipe: Recipe, architecture: Architecture) -> None:
    routed = architecture.feed_forward.experts is not None
    if recipe.select.experts.fraction and not routed:
        raise InputError(
            "this model is no mixture of experts",
            where="select.experts.fraction",
            remedy="set it to 0",
        )
    if recipe.select.policy != "uniform" and routed:
        raise InputError(
            f"a mixture of experts cannot have the shape {recipe.select.policy}",
            where="select.policy",
            remedy="set it to uniform: the same number of neurons goes from every expert",
        )


def check_relabel(recipe: Recipe, architecture: Architecture, config: Any) -> None:
    """Check that a checkpoint can be written as one of another family, if the recipe asks for it.

    Raises:
        InputError: there is no family that computes the same.
    """
    if not recipe.select.attention.relabel:
        return
    if (why := why_not_relabelled(architecture, config)) is not None:
        raise InputError(
            why,
            where="select.attention.relabel",
            remedy="set it to false; select.policy: ragged cuts heads too, with a modeling file",
        )


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
