"""Finding the description of a model, and checking that it fits the model.

A description that does not match is an error that names the module or tensor: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.architectures.description import Architecture, Cut
from pipeline.architectures.llama import LLAMA, LLAMA_LIKE
from pipeline.errors import InputError

ARCHITECTURES = (LLAMA, LLAMA_LIKE)


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model's prunable parts.

    Attributes:
        layers: number of layers.
        hidden: width of the residual stream.
        ffn: FFN neurons in each layer.
        heads: query heads in each layer.
        kv_heads: key/value heads in each layer.
        head_dim: width of one head.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads


def describe(model_type: str, where: str) -> Architecture:
    """Return the description of a model family.

    Args:
        model_type: `model_type` of the model's `config.json`.
        where: the model's name or path, for the error.

    Raises:
        InputError: no description fits.
    """
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = sorted(name for each in ARCHITECTURES for name in each.model_types)
    raise InputError(
        f"architecture {model_type!r} is not described; described are: {', '.join(known)}",
        where=where,
        remedy="add its tensor names and config attributes as a file in pipeline/architectures/ "
        "and list it in pipeline/architectures/registry.py",
    )


def dimensions(config: Any, architecture: Architecture, where: str = "") -> Dimensions:
    """Read the sizes of the prunable parts from a transformers config.

    Args:
        config: the model's config, or an object with the same attributes.
        architecture: its description.
        where: the model's name or path, for errors.

    Raises:
        InputError: a size is missing or impossible.
    """
    attention = architecture.attention

    def size(name: str, default: int | None = None) -> int:
        value = getattr(config, name, None)
        value = default if value is None and default is not None else value
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"{name} of the model's config is {value!r}, not a number above 0",
                where=where,
                remedy="download or copy the model again",
            )
        return value

    hidden, heads = size("hidden_size"), size(attention.heads)
    kv_heads = size(attention.key_value_heads, heads)
    if heads % kv_heads:
        raise InputError(
            f"the model's config gives {heads} query heads to {kv_heads} key/value heads, which "
            "cannot share them evenly",
            where=where,
            remedy="download or copy the model again",
        )
    return Dimensions(
        layers=size(architecture.layers),
        hidden=hidden,
        ffn=size(architecture.feed_forward.width),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size(attention.head_dim, hidden // heads),
    )


def output_modules(model: nn.Module, architecture: Architecture, name: str) -> list[nn.Module]:
    """Return the module `name` of every layer, in order.

    Raises:
        InputError: a layer lacks it.
    """
    count = getattr(model.config, architecture.layers)
    modules = dict(model.named_modules())
    found = []
    for layer in range(count):
        full = architecture.module(layer, name)
        if full not in modules:
            raise InputError(
                f"the model has no module {full!r}, which its description names",
                remedy="correct the family's description in pipeline/architectures/",
            )
        found.append(modules[full])
    return found


def check_tensors(architecture: Architecture, layers: int, names: Collection[str]) -> None:
    """Check that every tensor that the description cuts is stored.

    Raises:
        InputError: one is missing.
    """
    for layer in range(layers):
        for cut in all_cuts(architecture):
            full = architecture.module(layer, cut.tensor)
            if not cut.optional and full not in names:
                raise InputError(
                    f"the checkpoint has no tensor {full!r}, which its description names",
                    remedy="correct the family's description in pipeline/architectures/, or "
                    "re-save the checkpoint with today's transformers",
                )


def cut_tensors(architecture: Architecture, layers: int, names: Collection[str]) -> Iterator[str]:
    """Yield the full name of every stored tensor that may be cut."""
    for layer in range(layers):
        for cut in all_cuts(architecture):
            if (full := architecture.module(layer, cut.tensor)) in names:
                yield full


def check_shapes(
    architecture: Architecture,
    sizes: Dimensions,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Check that the stored tensors are as many and as long as the config says.

    Args:
        architecture: the model's description.
        sizes: what its config says.
        shapes: stored tensors, by full name.
        where: the model's name or path, for the error.

    Raises:
        InputError: weights and config do not belong together.
    """
    feed_forward, attention = architecture.feed_forward, architecture.attention
    queries, keys_values = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    lengths = [
        *((cut, sizes.ffn) for cut in feed_forward.inputs),
        (Cut(f"{feed_forward.output}.weight", axis=1), sizes.ffn),
        (Cut(f"{feed_forward.output}.weight", axis=0), sizes.hidden),
        *((cut, queries) for cut in attention.queries),
        *((cut, keys_values) for cut in attention.keys_values),
        (Cut(f"{attention.output}.weight", axis=1), queries),
    ]
    wrong = [
        f"{full} has {shapes[full][cut.axis]} entries where its config says {length}"
        for layer in range(sizes.layers)
        for cut, length in lengths
        if (full := architecture.module(layer, cut.tensor)) in shapes
        and shapes[full][cut.axis] != length
    ]
    beyond = architecture.module(sizes.layers, "")
    wrong += [f"{name} is beyond its config's layers" for name in shapes if name.startswith(beyond)]
    if wrong:
        raise InputError(
            f"the weights do not fit the model's config: {wrong[0]}",
            where=where,
            remedy="download or copy the model again: config.json and weights are of two models",
        )


def all_cuts(architecture: Architecture) -> tuple[Cut, ...]:
    """Every tensor of a layer that is cut, output projections included."""
    feed_forward, attention = architecture.feed_forward, architecture.attention
    return (
        *feed_forward.inputs,
        Cut(f"{feed_forward.output}.weight", axis=1),
        *attention.queries,
        *attention.keys_values,
        Cut(f"{attention.output}.weight", axis=1),
    )
