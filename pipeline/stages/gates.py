"""Gates of a recipe's FFN neurons, learned on its scored text, and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.architectures.description import Architecture
from pipeline.architectures.registry import output_modules
from pipeline.cache import read_json, write_json
from pipeline.errors import InputError
from pipeline.evaluation.tuning import batches, rows_of
from pipeline.placement import input_device
from pipeline.recipe import Recipe
from pipeline.recipe.fields import Side
from pipeline.scoring.gates import Goal, learn_gates
from pipeline.selection.uniform import kept_width
from pipeline.stages.measure import Cost, Measurer, token_digest

FORMAT = 2
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


def learned_for(recipe: Recipe) -> float:
    """Share of the neurons for which gates are learned: that which is cut, or another."""
    return recipe.select.ffn.gates.fraction or recipe.select.ffn.fraction


def learned(measurer: Measurer, ranking_LU: Tensor, held_LU: Tensor) -> tuple[Tensor, Cost]:
    """Scores of all FFN neurons: [L, U], higher goes first.

    Args:
        measurer: has the model, its texts and its recipe, which says how gates are learned.
        ranking_LU: scores with which they begin.
        held_LU: mask of neurons that stay.

    Raises:
        InputError: the loss did not stay finite while they were learned.
    """
    recipe = measurer.recipe
    by_layer, settings = recipe.select.policy == "uniform", recipe.select.ffn.gates
    fraction = learned_for(recipe)
    if by_layer:
        units = ranking_LU.shape[1]
        fraction = 1 - kept_width(units, fraction, recipe.select.ffn.multiple_of) / units
    order = ranking_LU if by_layer else ranking_LU.flatten()  # all that counts of the ranking
    key = {
        **measurer.model_key(),
        "gates": FORMAT,
        "tokens": {name: token_digest(ids_NS) for name, ids_NS in measurer.sequences.items()},
        "ranking": _digest(order.argsort(stable=True), held_LU),
        "fraction": fraction,
        "by_layer": by_layer,
        "settings": settings.model_dump(exclude={"fraction"}),
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
        return learn_gates(
            lambda ids_NT: model(input_ids=ids_NT, use_cache=False).logits,
            modules,
            ranking_LU,
            held_LU,
            training_rows(measurer, goal.steps),
            goal,
            advance,
        )


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


def training_rows(measurer: Measurer, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of both sides, all over the scored text.

    Rows of retain text are those of all of it and of each protected corpus in turn.
    """
    device, retain = input_device(measurer.model()), dict(measurer.sequences)
    forget_NT = _rows(measurer.recipe, [retain.pop("forget")], "forget")
    retain_NT = _rows(measurer.recipe, list(retain.values()), "retain")
    for one_NT, other_NT in islice(zip(forget_NT, retain_NT, strict=True), steps):
        yield one_NT.to(device), other_NT.to(device)


def _rows(recipe: Recipe, texts: Sequence[Tensor], side: Side) -> Iterator[Tensor]:
    """Yield batches without end, of rows of each text in turn, and of no more than there are."""
    settings = recipe.select.ffn.gates
    rows = [
        rows_of(ids_NS, ids_NS.numel(), recipe.seed, settings.row_tokens, side) for ids_NS in texts
    ]
    number = min(settings.rows, sum(map(len, rows)))
    in_turn = cycle([batches(each_NT, recipe.seed, 1) for each_NT in rows])
    while True:
        yield torch.cat([next(next(in_turn)) for _ in range(number)])


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
