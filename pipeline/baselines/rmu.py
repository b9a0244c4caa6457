"""Representation misdirection: forget text is led astray inside of one layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architectures.registry import output_modules
from pipeline.baselines.objective import Objective, Subject

DEPTH = 0.22  # of the steered layer: the paper's 7 of 32
TRAINED = 3  # layers: it and the two before
RETAIN_WEIGHT = 100.0  # the paper's α


def representation_misdirection(subject: Subject, strength: float) -> Objective:
    """RMU (arXiv 2403.03218): ‖h(forget) − c·u‖² + α·‖h(retain) − h₀(retain)‖², means of squares.

    h is the output of one layer, h₀ what it was before, u a random unit vector of positive numbers.
    Only the output projections of the FFNs of that layer and the two before are trained.

    Args:
        subject: the model; a copy of it as it is now gives h₀.
        strength: c, in norms of a token's h₀ (of the first forget rows, on average).
    """
    model, reference = subject.model, copy.deepcopy(subject.model)
    layer = steered_layer(model.config.num_hidden_layers)
    generator = torch.Generator().manual_seed(subject.seed)
    direction_D = functional.normalize(
        torch.rand(model.config.hidden_size, generator=generator), dim=0
    ).to(model.device)
    goal_D: Tensor | None = None

    def loss(forget_NT: Tensor, retain_NT: Tensor) -> Tensor:
        nonlocal goal_D
        with torch.no_grad():
            if goal_D is None:
                norm = _hidden(reference, forget_NT, layer).norm(dim=-1).mean()
                goal_D = strength * norm * direction_D
            before_NTD = _hidden(reference, retain_NT, layer)
        forget_NTD, retain_NTD = (_hidden(model, ids, layer) for ids in (forget_NT, retain_NT))
        astray = functional.mse_loss(forget_NTD, goal_D.expand_as(forget_NTD))
        return astray + RETAIN_WEIGHT * functional.mse_loss(retain_NTD, before_NTD)

    return Objective(trained_parameters(subject, layer), loss)


def steered_layer(layers: int) -> int:
    """The layer whose output is steered."""
    return max(min(round(layers * DEPTH), layers - 1), 0)


def trained_parameters(subject: Subject, layer: int) -> list[nn.Parameter]:
    """Weights of the FFN's output projection in the steered layer and those before it."""
    name = subject.architecture.feed_forward.output
    modules = output_modules(subject.model, subject.architecture, name)
    chosen = modules[max(0, layer + 1 - TRAINED) : layer + 1]
    return [each for module in chosen for key, each in module.named_parameters() if key != "bias"]


def _hidden(model: Any, ids_NT: Tensor, layer: int) -> Tensor:
    """Output of a layer, [N, T, D]."""
    found = model.get_decoder()(
        input_ids=ids_NT.to(model.device), output_hidden_states=True, use_cache=False
    )
    hidden_NTD: Tensor = found.hidden_states[layer + 1]
    return hidden_NTD
