"""What a ranking of neurons becomes under each shape policy, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.architectures.description import Dimensions
from pipeline.errors import InputError
from pipeline.selection import uniform
from pipeline.selection.overall import keep_lowest_overall, keep_multiples_overall

Policy = Literal["uniform", "ragged", "padded"]
SAME_SHARE = 5e-4  # which prints as the same tenth of a percent


@dataclass(frozen=True)
class Ranked:
    """Scores of all FFN neurons, and how many are to go.

    Attributes:
        sizes: the model's sizes.
        scores_LU: higher means "remove first".
        protected_LU: mask of neurons that are never removed.
        fraction: share of the neurons to remove.
        multiple_of: what widths are rounded to.
    """

    sizes: Dimensions
    scores_LU: Tensor
    protected_LU: Tensor
    fraction: float
    multiple_of: int

    def kept(self, policy: Policy) -> list[list[int]]:
        """Ascending kept neurons of each layer.

        Raises:
            InputError: the policy cannot have so few, or more are protected than may stay.
        """
        if policy == "uniform":
            return self._kept_in_each_block()
        keep = keep_lowest_overall if policy == "padded" else keep_multiples_overall
        return keep(self.scores_LU, self.fraction, self.multiple_of, self.protected_LU)

    def costs(self) -> dict[str, float]:
        """What each policy makes of the ranking; of a mixture, its only one.

        Of each policy, `removed` is the share of all neurons that goes, `worst` the share of the
        worst `fraction` of all layers that is among them, and `room` the share by which the tensors
        shrink. A policy that is impossible for this ranking is left out.
        """
        policies = ("uniform",) if self.sizes.experts else get_args(Policy)
        kept = keep_lowest_overall(self.scores_LU, self.fraction, 1, self.protected_LU)
        worst_LU = removed(self.scores_LU, kept)
        found: dict[str, float] = {}
        for policy in policies:
            try:
                widths = self.kept(policy)
            except InputError:
                continue
            gone_LU = removed(self.scores_LU, widths)
            widest = max(map(len, widths)) if policy == "padded" else 0
            room = 1 - widest / self.sizes.ffn if widest else float(gone_LU.double().mean())
            found |= {
                f"{policy}.removed": float(gone_LU.double().mean()),
                f"{policy}.worst": float((gone_LU & worst_LU).sum() / worst_LU.sum().clamp(min=1)),
                f"{policy}.room": room,
            }
        return found

    def _kept_in_each_block(self) -> list[list[int]]:
        """Keep the same number of neurons in every layer, and in every expert of a mixture."""
        kept: list[list[int]] = [[] for _ in range(self.sizes.layers)]
        for block in self.sizes.blocks:
            columns = slice(block.start, block.stop)
            width = uniform.kept_width(len(block), self.fraction, self.multiple_of)
            scores_LU, protected_LU = self.scores_LU[:, columns], self.protected_LU[:, columns]
            for layer, row in enumerate(uniform.keep_lowest(scores_LU, width, protected_LU)):
                kept[layer] += [block.start + unit for unit in row]
        return kept


def removed(scores_LU: Tensor, kept: list[list[int]]) -> Tensor:
    """Mask [L, U] of the units that are not kept."""
    removed_LU = torch.ones_like(scores_LU, dtype=torch.bool)
    for layer, row in enumerate(kept):
        removed_LU[layer, row] = False
    return removed_LU


def cost_lines(costs: dict[str, float], fraction: float, chosen: str) -> Iterator[str]:
    """Yield what `Ranked.costs` found, a line a policy, the chosen one first."""
    names = [name.removesuffix(".removed") for name in costs if name.endswith(".removed")]
    for name in sorted(names, key=lambda name: name != chosen):
        gone, worst, room = (costs[f"{name}.{each}"] for each in ("removed", "worst", "room"))
        line = f"{name} removes {gone:.1%}, {worst:.1%} of the worst {fraction:.1%} of all layers"
        yield f"{line} among them; its tensors shrink by {room:.1%}"


def head_note(asked: float, kept: int, total: int, *, by_config: bool = True) -> str:
    """Why another share of the heads goes than a recipe asked for; empty if none does.

    Args:
        asked: share of the heads to remove.
        kept: query heads of a layer that stay.
        total: query heads of a layer.
        by_config: the model's config must be able to say their number.
    """
    if abs(1 - kept / total - asked) <= SAME_SHARE:
        return ""
    limits = "whole groups and this model's config" if by_config else "whole groups"
    return f"; {asked:.1%} asked, {kept} a layer is the nearest number that {limits} can have"
