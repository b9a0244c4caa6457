"""What is learned of a recipe by gradients: what it takes, and on which text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from pipeline.architectures.description import Architecture
from pipeline.errors import InputError
from pipeline.evaluation.tuning import batches, rows_of
from pipeline.placement import input_device
from pipeline.recipe import Recipe
from pipeline.recipe.fields import Side
from pipeline.recipe.selection import Learning
from pipeline.scoring.learning import Logits, Manner
from pipeline.stages.measure import Measurer, Sequences, compensated_kinds, token_digest

GATES, MAPS = "select.ffn.score", "compensate.learning"  # keys that ask for them
ADAM = 4  # float32 numbers of each that is trained: itself, its gradient, and Adam's two


def learns(recipe: Recipe) -> Iterator[tuple[str, Learning]]:
    """Yield what a recipe learns by gradients: the key that asks for it, and how."""
    if recipe.select.ffn.score == "learned" and recipe.select.ffn.fraction:
        yield GATES, recipe.select.ffn.gates
    if recipe.compensate.learning is not None and compensated_kinds(recipe):
        yield MAPS, recipe.compensate.learning


def check_learning(recipe: Recipe, architecture: Architecture) -> None:
    """Check that gradients can be had of a model, if a recipe learns anything by them.

    Raises:
        InputError: it is of the neurons of experts, or some weights may not be in memory.
    """
    cuts_experts = architecture.feed_forward.experts is not None and recipe.select.ffn.fraction
    for key, _ in learns(recipe):
        instead = "set it to contribution" if key == GATES else "leave it out"
        if cuts_experts:
            raise InputError(
                "nothing is learned by gradients of the neurons of experts",
                where=key,
                remedy=instead,
            )
        if recipe.model.max_memory is not None:
            raise InputError(
                f"{key} asks for gradients, for which all weights must be in memory",
                where="model.max_memory",
                remedy=f"leave it out; or keep it, and of {key}, {instead}",
            )


def manner_of(learning: Learning, where: str) -> Manner:
    """How something is trained, by its section of a recipe."""
    return Manner(learning.steps, learning.learning_rate, learning.retain_weight, where)


def logits_of(model: nn.Module) -> Logits:
    """What runs a model."""
    return lambda ids_NT: model(input_ids=ids_NT, use_cache=False).logits


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach a model's own weights inside the block."""
    trainable = [each for each in model.parameters() if each.requires_grad]
    try:
        for each in trainable:
            each.requires_grad_(False)
        yield
    finally:
        for each in trainable:
            each.requires_grad_(True)


def texts_key(sequences: Sequences) -> dict[str, str]:
    """What of the texts decides what is learned, as part of a key."""
    return {name: token_digest(ids_NS) for name, ids_NS in sequences.items()}


def training_rows(
    measurer: Measurer, learning: Learning, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of both sides for each step, all over the scored text.

    Rows of retain text are those of all of it and of each protected corpus in turn.
    """
    device, retain = input_device(measurer.model()), dict(measurer.sequences)
    rows, kept = learning.rows, learning.retain_rows or learning.rows
    forget_NT = _rows([retain.pop("forget")], rows, learning.row_tokens, seed, "forget")
    retain_NT = _rows(list(retain.values()), kept, learning.row_tokens, seed, "retain")
    for one_NT, other_NT in islice(zip(forget_NT, retain_NT, strict=True), learning.steps):
        yield one_NT.to(device), other_NT.to(device)


def _rows(
    texts: Sequence[Tensor], number: int, tokens: int, seed: int, side: Side
) -> Iterator[Tensor]:
    """Yield batches without end, of rows of each text in turn, and of no more than there are."""
    rows = [rows_of(ids_NS, ids_NS.numel(), seed, tokens, side) for ids_NS in texts]
    number = min(number, sum(map(len, rows)))
    in_turn = cycle([batches(each_NT, seed, 1) for each_NT in rows])
    while True:
        yield torch.cat([next(next(in_turn)) for _ in range(number)])
