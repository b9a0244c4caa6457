"""Gates: which neurons serve the forget text alone, learned by gradients through the whole model.

Scores look at one neuron at a time. Here each neuron's activation is multiplied by a gate
g = σ((θ − τ)/T), and all θ are trained together as `learning` says, while τ keeps the mean of 1 − g
at the share that is to be removed, in every layer or in all of them together. T falls, so that
gates end near 0 or 1, as the cut will have them. Gates that are trained to prune are those of L0
regularisation (arXiv 1712.01312); that a mask can be trained to lose some knowledge and keep the
rest is shown in arXiv 2310.03084.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.scoring.learning import Batches, Logits, Manner, descend

TEMPERATURES = (1.0, 0.25)  # T at first and at last
OPEN, SHUT, SLOPE = 6.0, -3.0, 15.0  # θ at first: from the ranking that is known before
SURELY = 40.0  # logits beyond which a gate is open, or shut
HALVINGS = 50  # of the interval in which τ lies


@dataclass(frozen=True)
class Goal:
    """How much gates are to remove.

    Attributes:
        share: of the neurons.
        by_layer: in each layer so many, and not of all layers together.
    """

    share: float
    by_layer: bool


def learn_gates(
    logits: Logits,
    modules: Sequence[nn.Module],
    ranking_LU: Tensor,
    held_LU: Tensor,
    batches: Batches,
    goal: Goal,
    manner: Manner,
    advance: Callable[[int], None],
) -> Tensor:
    """Return −θ of each neuron, float64 [L, U]: higher means "remove first".

    Args:
        logits: runs the model.
        modules: output projections of its FFNs, a layer each; their inputs are gated.
        ranking_LU: scores that the gates begin with, higher means "remove first".
        held_LU: mask of neurons whose gate stays open.
        batches: one for each step.
        goal: how much they are to remove.
        manner: how they are trained.
        advance: called with 1 after each step.

    Raises:
        InputError: the loss, or a gradient, is not finite any more.
    """
    theta_LU = first_gates(ranking_LU.masked_fill(held_LU, -torch.inf), goal).requires_grad_()

    def changed(step: int) -> AbstractContextManager[None]:
        temperature = _temperature(step, manner.steps)
        shift = _shift(theta_LU.detach(), held_LU, temperature, goal)
        return gated(modules, _gates(theta_LU, held_LU, temperature, shift))

    descend([theta_LU], changed, logits, batches, manner, advance)
    return -theta_LU.detach().double()


def first_gates(ranking_LU: Tensor, goal: Goal) -> Tensor:
    """θ at first, float32 [L, U]: shut for what ranks highest, and open far below the share.

    Only the order of the ranking counts; within a layer, if each layer loses the same share.
    """
    rows = ranking_LU if goal.by_layer else ranking_LU.reshape(1, -1)
    places = rows.argsort(dim=1, stable=True).argsort(dim=1) / rows.shape[1]
    theta = (SLOPE * (1 - goal.share - places)).clamp(SHUT, OPEN)
    return theta.reshape(ranking_LU.shape).float()


@contextmanager
def gated(modules: Sequence[nn.Module], gates_LU: Tensor) -> Iterator[None]:
    """Multiply the input of each module by its row of the gates inside the block."""

    def gate(row: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = inputs[0]
            return (x * gates_LU[row].to(device=x.device, dtype=x.dtype),)

        return hook

    with ExitStack() as stack:
        for row, module in enumerate(modules):
            stack.callback(module.register_forward_pre_hook(gate(row)).remove)
        yield


def _temperature(step: int, steps: int) -> float:
    first, last = TEMPERATURES
    return first + (last - first) * step / max(steps - 1, 1)


def _gates(theta_LU: Tensor, held_LU: Tensor, temperature: float, shift: Tensor) -> Tensor:
    return torch.sigmoid((theta_LU - shift) / temperature).masked_fill(held_LU, 1.0)


def _shift(theta_LU: Tensor, held_LU: Tensor, temperature: float, goal: Goal) -> Tensor:
    """τ, [L, 1]: with it the share is removed, of each layer or of all."""
    low_L1 = torch.full((len(theta_LU), 1), float(theta_LU.min()) - SURELY)
    high_L1 = torch.full_like(low_L1, float(theta_LU.max()) + SURELY)
    for _ in range(HALVINGS):
        middle_L1 = (low_L1 + high_L1) / 2
        removed_LU = 1 - _gates(theta_LU, held_LU, temperature, middle_L1)
        share = removed_LU.mean(dim=1, keepdim=True) if goal.by_layer else removed_LU.mean()
        low_L1 = torch.where(share > goal.share, low_L1, middle_L1)
        high_L1 = torch.where(share > goal.share, middle_L1, high_L1)
    return high_L1
