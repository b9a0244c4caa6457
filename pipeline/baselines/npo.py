"""Negative preference optimisation: forget rows are answers that nobody prefers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.baselines.objective import Objective, Subject
from pipeline.evaluation.tuning import language_loss

BETA = 0.1  # the paper's


def negative_preference(subject: Subject, strength: float) -> Objective:
    """NPO with a retain term (NPO+RT, arXiv 2404.05868): L_NPO(forget) + strength · L(retain).

    Args:
        subject: the model; a copy of it as it is now is the reference.
        strength: weight of the retain text.
    """
    reference = copy.deepcopy(subject.model)

    def loss(forget_NT: Tensor, retain_NT: Tensor) -> Tensor:
        with torch.no_grad():
            before_N = log_probability(reference, forget_NT)
        now_N = log_probability(subject.model, forget_NT)
        return npo_loss(now_N, before_N) + strength * language_loss(subject.model, retain_NT)

    return Objective(list(subject.model.parameters()), loss)


def npo_loss(now_N: Tensor, before_N: Tensor, beta: float = BETA) -> Tensor:
    """The L_NPO,β of the paper: the mean of 2/β · log(1 + (π / π_ref)^β).

    Args:
        now_N: log π, log-probability of each row.
        before_N: log π_ref, that of the reference.
        beta: the smaller, the more like gradient ascent.
    """
    return 2 / beta * functional.softplus(beta * (now_N - before_N)).mean()


def log_probability(model: Any, ids_NT: Tensor) -> Tensor:
    """Log-probability of each row after its first token, in nats; [N]."""
    ids_NT = ids_NT.to(model.device)
    logits_NTV = model(input_ids=ids_NT, use_cache=False).logits[:, :-1]
    chosen_NT = logits_NTV.gather(2, ids_NT[:, 1:, None])[..., 0] - logits_NTV.logsumexp(dim=2)
    total_N: Tensor = chosen_NT.sum(dim=1)
    return total_N
