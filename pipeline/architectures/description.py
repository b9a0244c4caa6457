"""The vocabulary in which a model family is described.

A description is data. The same description drives the mask (for iterative scoring and the proof)
and the slice (for surgery), so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# `any`: with an explicit head_dim. `divides_hidden`: only counts that divide hidden_size.
# `fixed`: the model derives head_dim from the number of heads, so that none can go.
HeadCounts = Literal["any", "divides_hidden", "fixed"]


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model's prunable parts.

    Attributes:
        layers: number of layers.
        hidden: width of the residual stream.
        ffn: FFN neurons in each layer; in a mixture of experts, in each expert.
        heads: query heads in each layer.
        kv_heads: key/value heads in each layer.
        head_dim: width of one head.
        experts: routed experts in each layer; 0 in a dense model.
        chosen: routed experts that a token takes.
        shared: neurons of the expert that all tokens take besides; 0 if there is none.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0
    chosen: int = 0
    shared: int = 0

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def neurons(self) -> int:
        """FFN neurons of a layer, those of all its experts together."""
        return self.ffn * max(self.experts, 1) + self.shared

    @property
    def blocks(self) -> tuple[range, ...]:
        """Neurons of a layer by the output projection whose inputs they are.

        Those of the routed experts come first, in order, and those of the shared one last.
        """
        routed = self.ffn * max(self.experts, 1)
        own = [range(start, start + self.ffn) for start in range(0, routed, self.ffn)]
        return (*own, range(routed, self.neurons)) if self.shared else tuple(own)


# The unit to which each entry of an axis belongs: a neuron, an expert, or a head. Query head i is
# unit i, and key/value head j is unit `heads` + j. See `pipeline.architectures.layouts`.
Layout = Callable[[Dimensions], Sequence[int]]


@dataclass(frozen=True)
class Cut:
    """A tensor whose entries along an axis belong to units.

    Attributes:
        tensor: its name in the layer. With `{expert}` in it there is one such tensor an expert, and
            the layout is that of the expert's own neurons.
        layout: which entry belongs to which unit.
        axis: the axis.
        optional: only some models of the family have it, such as a bias.
        stacked: the first axis counts the experts, and is read together with `axis`.
    """

    tensor: str
    layout: Layout
    axis: int = 0
    optional: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class ExpertTensors:
    """How a checkpoint stores the routed experts of a layer.

    Attributes:
        output: their output projections: one tensor an expert, or all of them stacked.
        inputs: other tensors with entries for each neuron.
        rows: tensors with a row for each expert and none for neurons, the router's among them.
    """

    output: Cut
    inputs: tuple[Cut, ...]
    rows: tuple[Cut, ...]


@dataclass(frozen=True)
class Experts:
    """Routed experts, of which each token takes a few.

    Attributes:
        counts: keys of `config.json`, one of which holds their number.
        output: parameter of the experts' module that stacks their output projections.
        router: module that chooses experts; all its parameters have a row for each, and the last
            thing it returns are the numbers of the chosen ones.
        held: their tensors as the loaded module names them.
        stored: other layouts in which checkpoints store them.
        shared: the expert that all tokens take besides.
    """

    counts: tuple[str, ...]
    output: str
    router: str
    held: ExpertTensors
    stored: tuple[ExpertTensors, ...] = ()
    shared: FeedForward | None = None


@dataclass(frozen=True)
class FeedForward:
    """Where FFN neurons live in a layer.

    Attributes:
        width: key of `config.json` that holds the number of neurons; None if it is not free.
        output: module whose input is a neuron's activation; its weight's `output_axis` is cut.
        inputs: tensors with entries for each neuron.
        output_axis: axis of the output projection's weight along which its inputs lie.
        multiple_of_hidden: number of neurons where the config says none, in hidden sizes.
        experts: the routed experts whose neurons they are; `output` is then the module that runs
            them, and `inputs` are empty.
    """

    width: str | None
    output: str
    inputs: tuple[Cut, ...]
    output_axis: int = 1
    multiple_of_hidden: int | None = None
    experts: Experts | None = None

    @property
    def projection(self) -> str:
        """Name of the output projection's weight, in a layer of a dense model."""
        return f"{self.output}.weight"


@dataclass(frozen=True)
class HeadCount:
    """A module's attribute that follows from the number of heads, for the ragged export.

    Attributes:
        module: the module, in the layer.
        attribute: its name; `config.…` if the module reads it from the model's config.
        value: its value in a layer of such sizes.
    """

    module: str
    attribute: str
    value: Callable[[Dimensions], int]


@dataclass(frozen=True)
class Relabel:
    """Another family that computes the same, and whose config can say any number of heads.

    Attributes:
        model_type: its `model_type`.
        model_class: its class.
        adds: keys of its `config.json` that must be there.
        keeps: keys whose default differs between the two families.
        requires: config attributes that must have these values, since it has nothing like them.
    """

    model_type: str
    model_class: str
    adds: tuple[tuple[str, Any], ...]
    keeps: tuple[str, ...]
    requires: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Attention:
    """Where attention heads live in a layer.

    Attributes:
        output: module whose input is the heads' output; its weight's `output_axis` is cut.
        inputs: tensors with entries for each query head or key/value head.
        head_counts: which numbers of heads a `config.json` can say.
        heads: config attribute that holds the number of query heads.
        key_value_heads: config attribute that holds the number of key/value heads, or that number;
            where the config leaves it out, each query head has its own.
        head_dim: config attribute that holds the width of a head; written when heads are cut. None
            if it follows from the number of heads.
        output_axis: axis of the output projection's weight along which its inputs lie.
        counts: attributes that count heads, by which a layer of a ragged checkpoint can have fewer
            than its config says; None if it cannot.
        relabel: the family as which a checkpoint can be written whose number of heads its own
            config cannot say.
        untouchable: why no head can be removed at all; empty if heads can be.
    """

    output: str
    inputs: tuple[Cut, ...]
    head_counts: HeadCounts = "any"
    heads: str = "num_attention_heads"
    key_value_heads: str | int = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    output_axis: int = 1
    counts: tuple[HeadCount, ...] | None = None
    relabel: Relabel | None = None
    untouchable: str = ""

    @property
    def projection(self) -> str:
        """Name of the output projection's weight, in a layer."""
        return f"{self.output}.weight"


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        model_types: `model_type` values of `config.json` that this description fits.
        prefix: start of the names of a layer's modules, with `{layer}`.
        when: config attributes that must have these values, where a family has several layouts; a
            dot leads into a section.
        unlike: values of config attributes with which the family computes otherwise than described.
        stored_prefix: start of the names of a layer's tensors in the checkpoint at hand. Older
            checkpoints are of the decoder alone, without the first words of `prefix`.
    """

    model_types: tuple[str, ...]
    prefix: str
    feed_forward: FeedForward
    attention: Attention
    when: tuple[tuple[str, Any], ...] = ()
    unlike: tuple[tuple[str, Any], ...] = ()
    stored_prefix: str = ""

    def module(self, layer: int, name: str) -> str:
        """Full name of a layer's module in the loaded model."""
        return self.prefix.format(layer=layer) + name

    def tensor(self, layer: int, name: str) -> str:
        """Full name of a layer's tensor in the checkpoint."""
        return (self.stored_prefix or self.prefix).format(layer=layer) + name
