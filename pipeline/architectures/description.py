"""The vocabulary in which a model family is described.

A description is data. The same description drives the mask (for iterative scoring and the proof)
and the slice (for surgery), so the two cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """A tensor that has one entry (or one block of entries) per unit along `axis`.

    `optional` marks tensors that only some models of the family have, such as biases.
    """

    tensor: str
    axis: int
    optional: bool = False


@dataclass(frozen=True)
class FeedForward:
    """Where FFN neurons live in a layer.

    Attributes:
        width: config attribute that holds the number of neurons.
        output: module whose input is a neuron's activation; its weight's columns are cut.
        inputs: tensors with one entry per neuron.
    """

    width: str
    output: str
    inputs: tuple[Cut, ...]


@dataclass(frozen=True)
class Attention:
    """Where attention heads live in a layer.

    Attributes:
        heads: config attribute that holds the number of query heads.
        key_value_heads: config attribute that holds the number of key/value heads.
        head_dim: config attribute that holds the width of a head; written when heads are cut.
        output: module whose input is the heads' output; its weight's columns are cut.
        queries: tensors with `head_dim` entries per query head.
        keys_values: tensors with `head_dim` entries per key/value head.
        heads_divide_hidden: the config refuses head counts that do not divide `hidden_size`.
    """

    heads: str
    key_value_heads: str
    head_dim: str
    output: str
    queries: tuple[Cut, ...]
    keys_values: tuple[Cut, ...]
    heads_divide_hidden: bool = False


@dataclass(frozen=True)
class Architecture:
    """One model family.

    Attributes:
        model_types: `model_type` values of `config.json` that this description fits.
        layers: config attribute that holds the number of layers.
        prefix: start of the names of a layer's modules and tensors, with `{layer}`.
    """

    model_types: tuple[str, ...]
    layers: str
    prefix: str
    feed_forward: FeedForward
    attention: Attention

    def module(self, layer: int, name: str) -> str:
        """Full name of a layer's module or tensor."""
        return self.prefix.format(layer=layer) + name
