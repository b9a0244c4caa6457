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

    def units(self) -> Tensor:
        """The unit of each entry of the map, [P, S]."""
        scale_U = torch.where(self.scale_U > 0, self.scale_U, 1.0).float()
        return scale_U[self.removed][:, None] / scale_U[self.kept][None, :]


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
    units = [each.units() for each in stand_ins]
    scaled = [
        (each.map_PS.float() / unit_PS).requires_grad_()
        for each, unit_PS in zip(stand_ins, units, strict=True)
    ]

    @contextmanager
    def changed(_step: int) -> Iterator[None]:
        with masking(), ExitStack() as stack:
            for each, own_PS, unit_PS in zip(stand_ins, scaled, units, strict=True):
                hook = _standing_in(each.kept, each.removed, own_PS * unit_PS)
                stack.callback(each.module.register_forward_pre_hook(hook).remove)
            yield

    def share(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * (1 - step / manner.steps)

    descend(scaled, changed, logits, batches, manner, advance, share)
    return [own_PS.detach() * unit_PS for own_PS, unit_PS in zip(scaled, units, strict=True)]


def _standing_in(
    kept: Tensor, removed: Tensor, map_PS: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        kept_S = x.index_select(-1, kept.to(x.device))
        found_P = kept_S @ map_PS.to(device=x.device, dtype=x.dtype).T
        return (x.index_copy(-1, removed.to(x.device), found_P),)

    return hook
