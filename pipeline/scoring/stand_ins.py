"""Compensation maps, learned by gradients through the whole model.

In closed form a map brings back what one projection gave, each by itself, as the base's activations
are. Here the maps of all projections begin with that, and are trained together as `learning` says:
towards what the whole model said on retain text, and away from the forget text. What is trained is
on a scale where every unit has second moment 1, so that one learning rate suits them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.scoring.learning import Batches, Logits, Manner, descend

WARMUP = 5  # steps until the learning rate is whole; then it falls to nothing


@dataclass(frozen=True)
class StandIn:
    """What stands in for the removed inputs of one output projection.

    Attributes:
        module: runs the projection.
        kept: indices of its inputs, [S].
        removed: likewise, [P].
        map_PS: M, with which x_P is taken to be M x_S.
        scale_U: root mean square of each input on retain text.
    """

    module: nn.Module
    kept: Tensor
    removed: Tensor
    map_PS: Tensor
    scale_U: Tensor


def learn_maps(
    logits: Logits,
    stand_ins: Sequence[StandIn],
    masking: Callable[[], AbstractContextManager[None]],
    batches: Batches,
    manner: Manner,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Return a map for each projection, float32 [P, S].

    Args:
        logits: runs the model.
        stand_ins: of every projection that loses inputs, with the map that its own begins with.
        masking: a block inside which what is removed gives nothing.
        batches: one for each step.
        manner: how they are trained.
        advance: called with 1 after each step.

    Raises:
        InputError: the loss, or a gradient, is not finite any more.
    """
    trained = [_Trained(each) for each in stand_ins]

    @contextmanager
    def changed(_step: int) -> Iterator[None]:
        with masking(), ExitStack() as stack:
            for each in trained:
                stack.callback(each.module.register_forward_pre_hook(each.standing_in).remove)
            yield

    rate = partial(share_of_rate, steps=manner.steps)
    descend([each.scaled_PS for each in trained], changed, logits, batches, manner, advance, rate)
    return [each.map() for each in trained]


def share_of_rate(step: int, steps: int) -> float:
    """Share of the learning rate in a step, counted from 0."""
    return min(1.0, (step + 1) / WARMUP) * (1 - step / steps)


class _Trained:
    """A map that is trained, on the device of its projection.

    Inputs that never fire have scale 0 and inverse 0: nothing stands in for them, nor they for any.
    """

    def __init__(self, first: StandIn) -> None:
        self.module = first.module
        device = next(first.module.parameters()).device
        self.kept, self.removed = first.kept.to(device), first.removed.to(device)
        scale_U = first.scale_U.float().to(device)
        inverse_U = torch.where(scale_U > 0, 1.0 / scale_U, 0.0)
        self.scale_P, self.inverse_S = scale_U[self.removed], inverse_U[self.kept]
        scaled_PS = first.map_PS.float().to(device) * scale_U[self.kept]
        self.scaled_PS = (inverse_U[self.removed][:, None] * scaled_PS).requires_grad_()

    def standing_in(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """What the projection is given: removed inputs are those that the map gives."""
        x = inputs[0]
        kept_S = (x.index_select(-1, self.kept) * self.inverse_S).to(x.dtype)
        found_P = (kept_S @ self.scaled_PS.to(x.dtype).T) * self.scale_P
        return (x.index_copy(-1, self.removed, found_P.to(x.dtype)),)

    def map(self) -> Tensor:
        """M, float32 [P, S], on the CPU."""
        return (self.scaled_PS.detach() * self.scale_P[:, None] * self.inverse_S).cpu()
