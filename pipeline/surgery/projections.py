"""The output projections of a layer: where each is stored, and which units are its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import neuron_tensors
from pipeline.selection.plan import Indices, Plan
from pipeline.surgery.coordinates import head_coordinates
from pipeline.surgery.tensor_cut import key_of

Kind = Literal["ffn", "attention"]


@dataclass(frozen=True)
class Projection:
    """An output projection: the weight that turns activations of units into the residual stream.

    Attributes:
        key: what maps call it: the tensor's name, with the expert where it stacks several.
        tensor: full name of the tensor that holds it.
        module: name in the layer of the module that runs it.
        kind: kind of its inputs.
        axis: axis of its inputs, in its own matrix.
        units: its inputs, as neurons or coordinates of the layer.
        expert: the routed expert to which it belongs.
        stacked: the tensor stacks the matrices of all experts.
    """

    key: str
    tensor: str
    module: str
    kind: Kind
    axis: int
    units: range
    expert: int | None = None
    stacked: bool = False

    @property
    def name(self) -> str:
        """Its name in the layer, by which statistics call it."""
        if self.expert is not None:
            return f"{self.kind}.{self.expert}"
        return f"{self.kind}.shared" if self.units.start else self.kind

    def columns(self, tensor: Tensor) -> Tensor:
        """Its weight [hidden, U] as a view of the stored tensor."""
        matrix = tensor[self.expert] if self.stacked else tensor
        return matrix.movedim(self.axis, 1)

    def units_of(self, plan: Plan, layer: int, head_dim: int) -> tuple[Indices, Indices]:
        """Its kept and its removed inputs under a plan, ascending, counted from its own first."""
        if self.kind == "attention":
            heads = plan.layers[layer].query_heads, plan.removed_heads(layer)
            return head_coordinates(heads[0], head_dim), head_coordinates(heads[1], head_dim)
        present = set(plan.layers[layer].ffn)
        kept = tuple(unit - self.units.start for unit in self.units if unit in present)
        gone = tuple(unit - self.units.start for unit in self.units if unit not in present)
        return kept, gone


def projections(architecture: Architecture, sizes: Dimensions, layer: int) -> Iterator[Projection]:
    """Yield the output projections of a layer: of its FFN neurons, then of its heads."""
    for located in neuron_tensors(architecture, sizes):
        if located.module is None:
            continue
        name = architecture.tensor(layer, located.name)
        one = Projection(
            key=name,
            tensor=name,
            module=located.module,
            kind="ffn",
            axis=located.cut.axis,
            units=range(located.first, located.first + located.sizes.ffn),
            expert=located.expert,
        )
        if not located.cut.stacked:
            yield one
            continue
        for expert in range(sizes.experts):
            yield replace(
                one,
                key=key_of(name, expert),
                axis=one.axis - 1,
                units=range(expert * sizes.ffn, (expert + 1) * sizes.ffn),
                expert=expert,
                stacked=True,
            )
    attention = architecture.attention
    name = architecture.tensor(layer, attention.projection)
    units, axis = range(sizes.heads * sizes.head_dim), attention.output_axis
    yield Projection(name, name, attention.output, "attention", axis, units)
