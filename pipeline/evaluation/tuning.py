"""Fine-tuning by a fixed recipe: AdamW at one rate, the same rows in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.recipe.fields import Side

ROW_TOKENS = 128  # of a row of text
ROWS = 4  # in a batch
LONGEST_STEP = 1.0  # norm beyond which a gradient is shortened


@dataclass(frozen=True)
class Manner:
    """How models are fine-tuned.

    Attributes:
        steps: batches.
        every: after so many of them the model is measured.
        learning_rate: the same for all of them.
        adapters: low-rank adapters (LoRA) are trained, and not the weights.
        seed: of the order of the rows, and of the adapters.
    """

    steps: int
    every: int
    learning_rate: float
    adapters: bool = False
    seed: int = 0

    def measured_at(self) -> list[int]:
        """The steps after which a model is measured: none, every so many, and the last."""
        return [*range(0, self.steps, self.every), self.steps]


def rows_of(
    ids_NS: Tensor, tokens: int, seed: int, length: int = ROW_TOKENS, side: Side = "forget"
) -> Tensor:
    """Rows of `length` tokens from all over some sequences, `tokens` in all; [N, T].

    Raises:
        InputError: there is not one whole row.
    """
    width = min(length, ids_NS.shape[1])
    rows_NT = torch.cat(list(ids_NS.split(width, dim=1)[: ids_NS.shape[1] // width]))
    if not len(rows_NT):
        raise InputError(f"there is no scored {side} text to learn from", where=side)
    order = torch.randperm(len(rows_NT), generator=torch.Generator().manual_seed(seed))
    return rows_NT[order[: max(1, tokens // width)]]


def batches(ids_NT: Tensor, seed: int, rows: int = ROWS) -> Iterator[Tensor]:
    """Yield batches of rows without end: all rows in a random order, then all in another."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < rows:
            waiting += torch.randperm(len(ids_NT), generator=generator).tolist()
        chosen, waiting = waiting[:rows], waiting[rows:]
        yield ids_NT[chosen]


def language_loss(model: Any, ids_NT: Tensor) -> Tensor:
    """Mean loss of the next tokens of a batch, in nats."""
    ids_NT = ids_NT.to(model.device)
    loss: Tensor = model(input_ids=ids_NT, labels=ids_NT, use_cache=False).loss
    return loss


def descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    learning_rate: float,
) -> Iterator[int]:
    """Take steps down a loss without end, and yield the number of each.

    Args:
        parameters: what is trained.
        loss: the loss of the next batch.
        learning_rate: of AdamW, without weight decay.

    Raises:
        InputError: the loss is not finite any more.
    """
    optimiser = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    for step in count(1):
        with torch.enable_grad():
            now = loss()
            if not math.isfinite(value := float(now.detach())):
                raise InputError(
                    f"training went astray: the loss of step {step} is {value}",
                    where="--learning-rate",
                    remedy=f"train at a lower rate than {learning_rate:g}",
                )
            optimiser.zero_grad()
            now.backward()
        nn.utils.clip_grad_norm_(parameters, LONGEST_STEP)
        optimiser.step()
        yield step


def tuned(model: nn.Module, ids_NT: Tensor, manner: Manner) -> Iterator[int]:
    """Fine-tune on the rows, and yield whenever the model is to be measured, at first too.

    The model is as it answers: nothing is dropped out, so that a row is a row for each model.
    """
    wanted = set(manner.measured_at())
    yield 0
    rows = batches(ids_NT, manner.seed)
    parameters = [each for each in model.parameters() if each.requires_grad]
    steps = descend(parameters, lambda: language_loss(model, next(rows)), manner.learning_rate)
    for step in islice(steps, manner.steps):
        if step in wanted:
            yield step
