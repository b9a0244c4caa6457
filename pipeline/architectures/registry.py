"""Finding the description of a model, and checking that it fits the model.

A description that does not match is an error that names the module or tensor: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.architectures import bloom, gpt, llama
from pipeline.architectures.description import Architecture, Cut, Dimensions
from pipeline.architectures.layouts import neurons, query_heads
from pipeline.errors import InputError

ARCHITECTURES = (*llama.FAMILIES, *gpt.FAMILIES, *bloom.FAMILIES)


def check_described(model_type: str, where: str) -> None:
    """Check that a model family is described at all.

    Args:
        model_type: `model_type` of the model's `config.json`.
        where: the model's name or path, for the error.

    Raises:
        InputError: no description fits.
    """
    known = {name for each in ARCHITECTURES for name in each.model_types}
    if model_type not in known:
        raise InputError(
            f"architecture {model_type!r} is not described; described are: "
            f"{', '.join(sorted(known))}",
            where=where,
            remedy="add its tensor names and config attributes as a file in "
            "pipeline/architectures/ and list it in pipeline/architectures/registry.py "
            "(docs/architectures.md)",
        )


def describe(config: Any, where: str) -> Architecture:
    """Return the description of a model's family, for the layout that its config chooses.

    Args:
        config: the model's config, or an object with the same attributes.
        where: the model's name or path, for the error.

    Raises:
        InputError: no description fits.
    """
    check_described(config.model_type, where)
    for architecture in ARCHITECTURES:
        chosen = all(getattr(config, key, None) == value for key, value in architecture.when)
        if config.model_type in architecture.model_types and chosen:
            return architecture
    raise InputError(
        f"no description of architecture {config.model_type!r} fits this model's layout",
        where=where,
        remedy="add the layout in pipeline/architectures/ (docs/architectures.md)",
    )


def as_stored(architecture: Architecture, names: Collection[str]) -> Architecture:
    """Return the description with the names that the checkpoint at hand uses.

    Checkpoints of the decoder alone lack the first words of the modules' names; transformers loads
    both.
    """
    prefix = architecture.prefix
    while not any(name.startswith(prefix.format(layer=0)) for name in names):
        _, dot, rest = prefix.partition(".")
        if not dot or "{layer}" not in rest:
            return architecture  # `check_tensors` says which tensor is missing
        prefix = rest
    return replace(architecture, stored_prefix=prefix)


def dimensions(config: Any, architecture: Architecture, where: str = "") -> Dimensions:
    """Read the sizes of the prunable parts from a transformers config.

    Args:
        config: the model's config, or an object with the same attributes.
        architecture: its description.
        where: the model's name or path, for errors.

    Raises:
        InputError: a size is missing or impossible.
    """
    feed_forward, attention = architecture.feed_forward, architecture.attention

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
    kv_heads = attention.key_value_heads
    if isinstance(kv_heads, str):
        kv_heads = size(kv_heads, heads)
    if heads % kv_heads:
        raise InputError(
            f"the model's config gives {heads} query heads to {kv_heads} key/value heads, which "
            "cannot share them evenly",
            where=where,
            remedy="download or copy the model again",
        )
    multiple = feed_forward.multiple_of_hidden
    ffn = hidden * multiple if multiple else None
    if feed_forward.width is not None:
        ffn = size(feed_forward.width, ffn)
    assert ffn is not None
    return Dimensions(
        layers=size("num_hidden_layers"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size(attention.head_dim, hidden // heads)
        if attention.head_dim
        else hidden // heads,
    )


def output_modules(model: nn.Module, architecture: Architecture, name: str) -> list[nn.Module]:
    """Return the module `name` of every layer, in order.

    Raises:
        InputError: a layer lacks it.
    """
    config: Any = model.config
    modules = dict(model.named_modules())
    found = []
    for layer in range(config.num_hidden_layers):
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
            full = architecture.tensor(layer, cut.tensor)
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
            if (full := architecture.tensor(layer, cut.tensor)) in names:
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
    feed_forward = architecture.feed_forward
    lengths = [(cut, len(cut.layout(sizes))) for cut in all_cuts(architecture)]
    across = Cut(f"{feed_forward.output}.weight", neurons, axis=1 - feed_forward.output_axis)
    wrong = [
        f"{full} has {shapes[full][cut.axis]} entries where its config says {length}"
        for layer in range(sizes.layers)
        for cut, length in [*lengths, (across, sizes.hidden)]
        if (full := architecture.tensor(layer, cut.tensor)) in shapes
        and shapes[full][cut.axis] != length
    ]
    beyond = architecture.tensor(sizes.layers, "")
    wrong += [f"{name} is beyond its config's layers" for name in shapes if name.startswith(beyond)]
    if wrong:
        raise InputError(
            f"the weights do not fit the model's config: {wrong[0]}",
            where=where,
            remedy="download or copy the model again: config.json and weights are of two models",
        )


def all_cuts(architecture: Architecture) -> tuple[Cut, ...]:
    """Every tensor of a layer that is cut, output projections included."""
    return (*feed_forward_cuts(architecture), *attention_cuts(architecture))


def feed_forward_cuts(architecture: Architecture) -> tuple[Cut, ...]:
    """Every tensor of a layer with entries of FFN neurons."""
    block = architecture.feed_forward
    return (*block.inputs, Cut(f"{block.output}.weight", neurons, axis=block.output_axis))


def attention_cuts(architecture: Architecture) -> tuple[Cut, ...]:
    """Every tensor of a layer with entries of attention heads."""
    block = architecture.attention
    return (*block.inputs, Cut(f"{block.output}.weight", query_heads, axis=block.output_axis))
