"""What a way to unlearn is made of: parameters, and a loss of forget rows and retain rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.architectures.description import Architecture

Loss = Callable[[Tensor, Tensor], Tensor]  # of forget rows and retain rows, token ids [N, T] each


class Trial(NamedTuple):
    """What is tried of a way.

    Attributes:
        learning_rate: of AdamW.
        strength: what the way's docstring says.
    """

    learning_rate: float
    strength: float


@dataclass(frozen=True)
class Subject:
    """The model that is to forget.

    Attributes:
        model: a causal language model in float32.
        architecture: what its parts are called.
        seed: of what is random.
    """

    model: Any
    architecture: Architecture
    seed: int


@dataclass(frozen=True)
class Objective:
    """What is trained, and down which loss."""

    parameters: list[nn.Parameter]
    loss: Loss
