"""The proof: the reloaded pruned checkpoint against the masked original, as logits.

Both hold weights rounded to the release type and run in float32. The reference is the original at
full width, masked and compensated in memory; nothing that surgery wrote is read for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import BrokenError
from pipeline.placement import input_device

# float32 logits of the two differ by the order of summation alone: 9e-5 (FFN cut) and 7e-4 (heads
# cut) were measured on a 135M model whose logits reach 40. Weights that were rounded differently
# moved them by 0.2.
TOLERANCE = 5e-3


@dataclass(frozen=True)
class Proof:
    """How far the pruned checkpoint's logits are from the masked original's.

    Attributes:
        max_difference: largest absolute difference of any logit.
        mean_difference: mean absolute difference.
        logit_scale: largest absolute logit of the reference.
        same_top1: share of positions at which both predict the same token.
        tokens: positions that were compared.
        tolerance: largest difference that is accepted.
        dtype: type in which both ran.
    """

    max_difference: float
    mean_difference: float
    logit_scale: float
    same_top1: float
    tokens: int
    tolerance: float = TOLERANCE
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def prove(
    load_base: Callable[[], nn.Module],
    load_pruned: Callable[[], nn.Module],
    masking: Callable[[nn.Module], AbstractContextManager[None]],
    sequences_NS: Tensor,
) -> Proof:
    """Compare logits on held-out text; the two models are not in memory at once.

    Args:
        load_base: loads the original in float32.
        load_pruned: loads the pruned checkpoint in float32.
        masking: masks and compensates the original.
        sequences_NS: token ids of held-out text, or random ones.

    Raises:
        BrokenError: the largest difference exceeds the tolerance.
    """
    base = load_base()
    with masking(base):
        expected = _logits(base, sequences_NS)
    del base
    actual = _logits(load_pruned(), sequences_NS)
    difference = (expected - actual).abs()
    proof = Proof(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        logit_scale=float(expected.abs().max()),
        same_top1=float((expected.argmax(-1) == actual.argmax(-1)).float().mean()),
        tokens=sequences_NS.numel(),
    )
    if not proof.max_difference <= TOLERANCE:  # NaN fails too
        raise BrokenError(
            f"the pruned checkpoint does not compute what the masked original computes: logits "
            f"differ by up to {proof.max_difference:.3g}, tolerated are {TOLERANCE:g}",
            remedy="nothing was released; please report this with the recipe",
        )
    return proof


@torch.inference_mode()
def _logits(model: nn.Module, sequences_NS: Tensor) -> Tensor:
    device = input_device(model)
    return torch.cat(
        [model(input_ids=ids[None].to(device)).logits.float().cpu() for ids in sequences_NS]
    )
