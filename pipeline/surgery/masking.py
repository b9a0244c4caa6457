"""The plan as a mask on a loaded model: the reference for the proof, and for iterative scoring.

Works at full width: removed units are zeroed at the input of their output projection, and the
kept columns of compensated projections are replaced. Weights are always derived from the original
ones, never from already compensated ones, so that steps do not pile up rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pipeline.architectures.description import Architecture, Attention, Dimensions, FeedForward
from pipeline.architectures.registry import output_modules
from pipeline.placement import replaced_weight
from pipeline.selection.plan import Plan, complement
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.coordinates import head_coordinates

Maps = Mapping[str, CompensationMap]  # by full name of the output projection's weight


@contextmanager
def masked(
    model: nn.Module, architecture: Architecture, sizes: Dimensions, plan: Plan, maps: Maps
) -> Iterator[None]:
    """Make `model` compute what the cut (and compensated) model will compute.

    Args:
        model: the causal language model at full width; restored when the block ends.
        architecture: its description.
        sizes: its sizes.
        plan: what is kept.
        maps: compensation of output projections; empty for none.
    """
    with ExitStack() as stack:
        for block, removed in _removed_inputs(architecture, sizes, plan):
            modules = output_modules(model, architecture, block.output)
            for layer, module in enumerate(modules):
                if removed[layer]:
                    hook = module.register_forward_pre_hook(_zero(removed[layer]))
                    stack.callback(hook.remove)
                full = architecture.tensor(layer, f"{block.output}.weight")
                if full in maps:
                    stack.enter_context(_compensated(module, block.output_axis, maps[full]))
        yield


def _removed_inputs(
    architecture: Architecture, sizes: Dimensions, plan: Plan
) -> Iterator[tuple[FeedForward | Attention, list[tuple[int, ...]]]]:
    yield (
        architecture.feed_forward,
        [complement(kept.ffn, plan.ffn) for kept in plan.layers],
    )
    yield (
        architecture.attention,
        [
            head_coordinates(complement(kept.query_heads, plan.heads), sizes.head_dim)
            for kept in plan.layers
        ],
    )


def _zero(removed: tuple[int, ...]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    indices = torch.tensor(removed)

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        return (x.index_fill(-1, indices.to(x.device), 0.0),)

    return hook


def _compensated(
    module: nn.Module, axis: int, compensation: CompensationMap
) -> AbstractContextManager[None]:
    def change(original: Tensor) -> Tensor:
        replaced = original.clone()
        kept_HS = compensation.kept_columns(original.movedim(axis, 1))
        replaced.movedim(axis, 1)[:, list(compensation.kept)] = kept_HS
        return replaced

    return replaced_weight(module, change)
