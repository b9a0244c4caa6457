"""The plan as a mask on a loaded model: the reference for the proof, and for iterative scoring.

Works at full width: removed units are zeroed at the input of their output projection, and the
kept columns of compensated projections are replaced. Weights are always derived from the original
ones, never from already compensated ones, so that steps do not pile up rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import layer_module
from pipeline.placement import replaced_parameter
from pipeline.selection.plan import Indices, Plan
from pipeline.surgery.compensation import CompensationMap
from pipeline.surgery.projections import Projection, projections

Maps = Mapping[str, CompensationMap]  # by the projection's key


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
        for layer in range(len(plan.layers)):
            own = list(projections(architecture, sizes, layer))
            for each in own:
                if each.expert is None:
                    module = layer_module(model, architecture, layer, each.module)
                    _, removed = each.units_of(plan, layer, sizes.head_dim)
                    _mask_module(stack, module, each, removed, maps)
            if architecture.feed_forward.experts is not None:
                of_experts = [each for each in own if each.expert is not None]
                _mask_experts(stack, model, architecture, plan, layer, of_experts, maps)
        yield


def _mask_module(
    stack: ExitStack, module: nn.Module, projection: Projection, removed: Indices, maps: Maps
) -> None:
    """Zero inputs of a module that is one output projection, and compensate it."""
    if removed:
        stack.callback(module.register_forward_pre_hook(_zero(removed)).remove)
    if (own := maps.get(projection.key)) is not None:
        change = partial(_compensated, axis=projection.axis, compensation=own)
        stack.enter_context(replaced_parameter(module, "weight", change))


def _mask_experts(
    stack: ExitStack,
    model: nn.Module,
    architecture: Architecture,
    plan: Plan,
    layer: int,
    of_experts: Sequence[Projection],
    maps: Maps,
) -> None:
    """Zero columns of the stacked output projections, which no module has inputs for, and route."""
    block, kept = architecture.feed_forward, plan.layers[layer]
    routed = block.experts
    assert routed is not None
    if len(kept.ffn) < plan.ffn:

        def change(weight: Tensor) -> Tensor:
            replaced = weight.clone()
            for matrix, each in zip(replaced, of_experts, strict=True):
                if each.key in maps:
                    matrix.copy_(_compensated(matrix, block.output_axis, maps[each.key]))
                _, removed = each.units_of(plan, layer, 0)
                matrix.movedim(block.output_axis, 1)[:, list(removed)] = 0.0
            return replaced

        module = layer_module(model, architecture, layer, block.output)
        stack.enter_context(replaced_parameter(module, routed.output, change))
    if len(kept.experts) < plan.experts:
        router = layer_module(model, architecture, layer, routed.router)
        stack.enter_context(_routed_to(router, kept.experts))


def _zero(removed: Indices) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    indices = torch.tensor(removed)

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        return (x.index_fill(-1, indices.to(x.device), 0.0),)

    return hook


def _compensated(weight: Tensor, axis: int, compensation: CompensationMap) -> Tensor:
    """A projection at full width whose kept inputs stand in for the removed ones."""
    replaced = weight.clone()
    kept_HS = compensation.kept_columns(weight.movedim(axis, 1))
    replaced.movedim(axis, 1)[:, list(compensation.kept)] = kept_HS
    return replaced


@contextmanager
def _routed_to(router: nn.Module, kept: Indices) -> Iterator[None]:
    """Let a router choose among some experts alone; it still calls them by their old numbers.

    What is replaced is what runs once the router's own weights are in place, offloaded or not.
    """
    own: Any = router
    name = "_old_forward" if hasattr(router, "_old_forward") else "forward"
    inner, shadowed = getattr(own, name), name in vars(router)
    numbers = torch.tensor(kept)

    def among_kept(*arguments: Any, **settings: Any) -> tuple[Any, ...]:
        with ExitStack() as stack:
            for parameter in router.parameters(recurse=False):
                stack.callback(setattr, parameter, "data", parameter.data)
                parameter.data = parameter.data[list(kept)]
            *others, chosen = inner(*arguments, **settings)
        return (*others, numbers.to(chosen.device)[chosen])

    setattr(own, name, among_kept)
    try:
        yield
    finally:
        delattr(own, name)
        if shadowed:
            setattr(own, name, inner)
