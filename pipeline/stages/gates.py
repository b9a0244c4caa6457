"""Gates of a recipe's FFN neurons, learned on its scored text, and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.architectures.description import Architecture
from pipeline.architectures.registry import output_modules
from pipeline.cache import read_json, write_json
from pipeline.errors import BrokenError, InputError
from pipeline.evaluation.tuning import batches, rows_of
from pipeline.placement import input_device
from pipeline.recipe import Recipe
from pipeline.scoring.gates import Goal, learn_gates
from pipeline.selection.uniform import kept_width
from pipeline.stages.measure import Cost, Measurer, token_digest

FORMAT = 1
GATES, COST = "gates.safetensors", "cost.json"
MOMENTS_AND_GRADIENT = 4  # float32 numbers a neuron, beside the model: θ, its gradient, Adam's two


def check_gates_can_be_learned(recipe: Recipe, architecture: Architecture) -> None:
    """Check that gradients can be had of a model's FFN neurons, if a recipe asks for gates.

    Raises:
        InputError: it is a mixture of experts, or some of its weights may not be in memory.
    """
    if recipe.select.ffn.score != "learned" or not recipe.select.ffn.fraction:
        return
    if architecture.feed_forward.experts is not None:
        raise InputError(
            "gates are not learned for the neurons of experts",
            where="select.ffn.score",
            remedy="set it to contribution",
        )
    if recipe.model.max_memory is not None:
        raise InputError(
            "gates are learned by gradients, for which all weights must be in memory",
            where="model.max_memory",
            remedy="leave it out, or set select.ffn.score to contribution",
        )


def learned(
    measurer: Measurer, ranking_LU: Tensor, held_LU: Tensor, fraction: float
) -> tuple[Tensor, Cost]:
    """Scores of all FFN neurons, for a share of them that is to go: [L, U], higher goes first.

    Args:
        measurer: has the model, its texts and its recipe, which says how gates are learned.
        ranking_LU: scores with which they begin.
        held_LU: mask of neurons that stay.
        fraction: share of the neurons to remove.

    Raises:
        InputError: the model is none of which gates are learned.
        BrokenError: the gates did not stay finite.
    """
    recipe = measurer.recipe
    check_gates_can_be_learned(recipe, measurer.base.architecture)
    by_layer, settings = recipe.select.policy == "uniform", recipe.select.ffn.gates
    if by_layer:
        units = ranking_LU.shape[1]
        fraction = 1 - kept_width(units, fraction, recipe.select.ffn.multiple_of) / units
    order = ranking_LU if by_layer else ranking_LU.flatten()  # all that counts of the ranking
    key = {
        **measurer.model_key(),
        "gates": FORMAT,
        "tokens": {side: token_digest(measurer.sequences[side]) for side in ("forget", "retain")},
        "ranking": _digest(order.argsort(stable=True), held_LU),
        "fraction": fraction,
        "by_layer": by_layer,
        "settings": settings.model_dump(),
        "seed": recipe.seed,
    }
    if measurer.cache.find("gates", key):
        measurer.progress.say("  gates: learned before, found in the cache")

    def learn(folder: Path) -> None:
        started = perf_counter()
        measurer.has_run = True
        goal = Goal(
            fraction, by_layer, settings.retain_weight, settings.learning_rate, settings.steps
        )
        scores_LU = _learn(measurer, ranking_LU, held_LU, goal)
        save_file({"scores": scores_LU}, folder / GATES)
        room = MOMENTS_AND_GRADIENT * 4 * scores_LU.numel()
        write_json(folder / COST, Cost(perf_counter() - started, room)._asdict())

    folder = measurer.cache.get("gates", key, learn)
    return load_file(folder / GATES)["scores"], Cost(**read_json(folder / COST))


def _learn(measurer: Measurer, ranking_LU: Tensor, held_LU: Tensor, goal: Goal) -> Tensor:
    model, base = measurer.model(), measurer.base
    modules = output_modules(model, base.architecture, base.architecture.feed_forward.output)
    with _frozen(model), measurer.progress.bar("gates", goal.steps, "steps") as advance:
        scores_LU = learn_gates(
            lambda ids_NT: model(input_ids=ids_NT, use_cache=False).logits,
            modules,
            ranking_LU,
            held_LU,
            _batches(measurer, goal.steps),
            goal,
            advance,
        )
    if not scores_LU.isfinite().all():
        raise BrokenError(
            "the gates of FFN neurons did not stay finite while they were learned",
            remedy="set model.dtype to bfloat16 or float32, or lower "
            "select.ffn.gates.learning_rate",
        )
    return scores_LU


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach a model's own weights inside the block."""
    trainable = [each for each in model.parameters() if each.requires_grad]
    try:
        for each in trainable:
            each.requires_grad_(False)
        yield
    finally:
        for each in trainable:
            each.requires_grad_(True)


def _batches(measurer: Measurer, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of both sides, all over the scored text."""
    seed, settings = measurer.recipe.seed, measurer.recipe.select.ffn.gates
    device = input_device(measurer.model())
    forget, retain = (
        batches(rows_of(ids_NS, ids_NS.numel(), seed, settings.row_tokens), seed, settings.rows)
        for ids_NS in (measurer.sequences["forget"], measurer.sequences["retain"])
    )
    for forget_NT, retain_NT in islice(zip(forget, retain, strict=True), steps):
        yield forget_NT.to(device), retain_NT.to(device)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
