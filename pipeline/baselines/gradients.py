"""Gradient ascent and gradient difference: up the loss of forget text."""

from __future__ import annotations

from torch import Tensor

from pipeline.baselines.objective import Objective, Subject
from pipeline.evaluation.tuning import language_loss


def gradient_ascent(subject: Subject, strength: float) -> Objective:
    """Gradient ascent (GA, arXiv 2210.01504): the loss is −L(forget).

    Args:
        subject: the model.
        strength: weight of the forget text; AdamW divides it out, so that one value is enough.
    """

    def loss(forget_NT: Tensor, retain_NT: Tensor) -> Tensor:
        return -strength * language_loss(subject.model, forget_NT)

    return Objective(list(subject.model.parameters()), loss)


def gradient_difference(subject: Subject, strength: float) -> Objective:
    """Gradient difference (GD, arXiv 2203.12817): the loss is −L(forget) + strength · L(retain).

    Args:
        subject: the model.
        strength: weight of the retain text.
    """

    def loss(forget_NT: Tensor, retain_NT: Tensor) -> Tensor:
        model = subject.model
        return strength * language_loss(model, retain_NT) - language_loss(model, forget_NT)

    return Objective(list(subject.model.parameters()), loss)
