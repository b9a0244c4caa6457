"""Learning by gradients: the loss by which gates and compensation maps are trained.

Both change what a model computes, and are trained by Adam, no weight of the model among them, down

    α · KL(model ‖ changed) on retain text − min(CE, 8 nats) of the changed model on forget text

per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError

Logits = Callable[[Tensor], Tensor]  # of token ids [N, T], logits [N, T, V]
Batches = Iterable[tuple[Tensor, Tensor]]  # token ids of forget and of retain text, [N, T] each

MOST_LOSS = 8.0  # nats; a forget token that is lost so far is lost


@dataclass(frozen=True)
class Manner:
    """How something is learned.

    Attributes:
        steps: batches.
        learning_rate: Adam's.
        retain_weight: α.
        where: the section of the recipe that says so, for errors.
    """

    steps: int
    learning_rate: float
    retain_weight: float
    where: str


def descend(
    parameters: Sequence[Tensor],
    changed: Callable[[int], AbstractContextManager[None]],
    logits: Logits,
    batches: Batches,
    manner: Manner,
    advance: Callable[[int], None],
    share: Callable[[int], float] = lambda _: 1.0,
) -> None:
    """Train what changes a model.

    Args:
        parameters: what is trained, in place.
        changed: given a step, a block inside which the model is as the parameters change it.
        logits: runs the model.
        batches: one for each step.
        manner: how.
        advance: called with 1 after each step.
        share: of the learning rate, given a step.

    Raises:
        InputError: the loss, or a gradient, is not finite any more.
    """
    optimiser = torch.optim.Adam(parameters, manner.learning_rate, betas=(0.9, 0.95))
    for step, (forget_NT, retain_NT) in zip(range(manner.steps), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = manner.learning_rate * share(step)
        with torch.no_grad():
            before_NTV = logits(retain_NT[:, :-1]).float().softmax(dim=-1)
        with torch.enable_grad():
            with changed(step):
                found_NTV = logits(torch.cat([forget_NT, retain_NT])[:, :-1]).float()
            lost_NTV, kept_NTV = found_NTV.split([len(forget_NT), len(retain_NT)])
            loss = manner.retain_weight * _divergence(before_NTV, kept_NTV)
            loss = loss - _forgetting(lost_NTV, forget_NT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if not all(each.isfinite().all() for each in (loss, *parameters)):
            raise InputError(
                f"nothing can be learned: step {step + 1} has a loss or gradients that are not "
                "finite",
                where=manner.where,
                remedy="lower retain_weight or learning_rate, or set model.dtype to bfloat16 or "
                "float32",
            )
        advance(1)


def _divergence(before_NTV: Tensor, after_NTV: Tensor) -> Tensor:
    """KL divergence of the next token's distribution, a token, in nats, plus a constant.

    The constant is the entropy of what the model said before, which nothing here changes.
    """
    return functional.cross_entropy(after_NTV.flatten(0, 1), before_NTV.flatten(0, 1))


def _forgetting(logits_NTV: Tensor, ids_NT: Tensor) -> Tensor:
    """Mean loss of the next tokens, none of which counts for more than `MOST_LOSS`."""
    next_M = ids_NT[:, 1:].flatten().to(logits_NTV.device)
    losses_M = functional.cross_entropy(logits_NTV.flatten(0, 1), next_M, reduction="none")
    return losses_M.clamp(max=MOST_LOSS).mean()
