"""Gates: which neurons serve the forget text alone, learned by gradients through the whole model.

Scores look at one neuron at a time. Here each neuron's activation is multiplied by a gate
g = σ((θ − τ)/T), and all θ are trained together (AdamW's Adam, no weight of the model changes) down

    α · KL(model ‖ gated model) on retain text − min(CE, 8 nats) of the gated model on forget text

per token, while τ keeps the mean of 1 − g at the share that is to be removed, in every layer or in
all of them together. T falls, so that gates end near 0 or 1, as the cut will have them. Gates that
are trained to prune are those of L0 regularisation (arXiv 1712.01312); that a mask can be trained
to lose some knowledge and keep the rest is shown in arXiv 2310.03084.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError

Logits = Callable[[Tensor], Tensor]  # of token ids [N, T], logits [N, T, V]

MOST_LOSS = 8.0  # nats; a forget token that is lost so far is lost
TEMPERATURES = (1.0, 0.25)  # T at first and at last
OPEN, SHUT, SLOPE = 6.0, -3.0, 15.0  # θ at first: from the ranking that is known before
SURELY = 40.0  # logits beyond which a gate is open, or shut
HALVINGS = 50  # of the interval in which τ lies


@dataclass(frozen=True)
class Goal:
    """What gates are trained for.

    Attributes:
        share: of the neurons that is to be removed.
        by_layer: in each layer so many, and not of all layers together.
        retain_weight: α.
        learning_rate: of θ.
        steps: batches.
    """

    share: float
    by_layer: bool
    retain_weight: float
    learning_rate: float
    steps: int


def learn_gates(
    logits: Logits,
    modules: Sequence[nn.Module],
    ranking_LU: Tensor,
    held_LU: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    goal: Goal,
    advance: Callable[[int], None],
) -> Tensor:
    """Return −θ of each neuron, float64 [L, U]: higher means "remove first".

    Args:
        logits: runs the model.
        modules: output projections of its FFNs, a layer each; their inputs are gated.
        ranking_LU: scores that the gates begin with, higher means "remove first".
        held_LU: mask of neurons whose gate stays open.
        batches: token ids of forget text and of retain text, [N, T] each.
        goal: what they are trained for.
        advance: called with 1 after each step.

    Raises:
        InputError: the loss, or a gradient, is not finite any more.
    """
    theta_LU = first_gates(ranking_LU.masked_fill(held_LU, -torch.inf), goal).requires_grad_()
    optimiser = torch.optim.Adam([theta_LU], goal.learning_rate, betas=(0.9, 0.95))
    for step, (forget_NT, retain_NT) in zip(range(goal.steps), batches, strict=False):
        temperature = _temperature(step, goal.steps)
        with torch.no_grad():
            before = logits(retain_NT[:, :-1]).float().softmax(dim=-1)
        with torch.enable_grad():
            shift = _shift(theta_LU.detach(), held_LU, temperature, goal)
            gates_LU = _gates(theta_LU, held_LU, temperature, shift)
            with gated(modules, gates_LU):
                found = logits(torch.cat([forget_NT, retain_NT])[:, :-1]).float()
            lost, kept = found.split([len(forget_NT), len(retain_NT)])
            loss = goal.retain_weight * _divergence(before, kept) - _forgetting(lost, forget_NT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if not (loss.isfinite() and theta_LU.isfinite().all()):
            raise InputError(
                f"gates cannot be learned: step {step + 1} has a loss or gradients that are not "
                "finite",
                where="select.ffn.gates",
                remedy="lower retain_weight or learning_rate, or set model.dtype to bfloat16 or "
                "float32",
            )
        advance(1)
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


def _divergence(before_NTV: Tensor, after_NTV: Tensor) -> Tensor:
    """KL divergence of the next token's distribution, a token, in nats, plus a constant.

    The constant is the entropy of what the model said before, which no gate changes.
    """
    return functional.cross_entropy(after_NTV.flatten(0, 1), before_NTV.flatten(0, 1))


def _forgetting(logits_NTV: Tensor, ids_NT: Tensor) -> Tensor:
    """Mean loss of the next tokens, none of which counts for more than `MOST_LOSS`."""
    next_M = ids_NT[:, 1:].flatten().to(logits_NTV.device)
    losses_M = functional.cross_entropy(logits_NTV.flatten(0, 1), next_M, reduction="none")
    return losses_M.clamp(max=MOST_LOSS).mean()
