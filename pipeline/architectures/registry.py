"""Finding the description of a model, and checking that it fits the model.

A description that does not match is an error that names the module or tensor: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from pipeline.architectures import bloom, experts, gpt, llama
from pipeline.architectures.description import (
    Architecture,
    Cut,
    Dimensions,
    ExpertTensors,
    FeedForward,
)
from pipeline.architectures.layouts import neurons, query_heads
from pipeline.errors import InputError

# Ends of the names of tensors that older checkpoints store and no model loads: causal masks and
# rotary frequencies, which follow from the config.
BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attn.causal_mask",
    ".attn.attention.bias",
    ".attn.attention.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    ".rotary.inv_freq",
)

ARCHITECTURES = (*llama.FAMILIES, *gpt.FAMILIES, *bloom.FAMILIES, *experts.FAMILIES)


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
    ours = getattr(
        config, "ragged", None
    )  # ragged checkpoints say their sizes so, and are described
    if getattr(config, "is_heterogeneous", False) and not ours:
        raise InputError(
            "its config says sizes layer by layer (per_layer_config), which no model of "
            "transformers reads",
            where=where,
            remedy="delete per_layer_config from its config.json, if its layers are all alike",
        )
    for architecture in ARCHITECTURES:
        chosen = all(_value(config, key) == value for key, value in architecture.when)
        if config.model_type in architecture.model_types and chosen:
            for key, value in architecture.unlike:
                if _value(config, key) == value:
                    raise InputError(
                        f"a {config.model_type} whose {key} is {value!r} computes otherwise than "
                        "is described",
                        where=where,
                        remedy=f"set {key} of its config.json to another value, if the model "
                        "may be computed so",
                    )
            return architecture
    raise InputError(
        f"no description of architecture {config.model_type!r} fits this model's layout",
        where=where,
        remedy="add the layout in pipeline/architectures/ (docs/architectures.md)",
    )


def _value(config: Any, key: str) -> Any:
    """An attribute of a config, or what is in a section of it; None if it is not there."""
    attribute, _, inner = key.partition(".")
    found = getattr(config, attribute, None)
    return found.get(inner) if inner and isinstance(found, dict) else found


def as_stored(architecture: Architecture, names: Collection[str]) -> Architecture:
    """Return the description with the names that the checkpoint at hand uses.

    Checkpoints of the decoder alone lack the first words of the modules' names, and experts are
    stored one by one or stacked; transformers loads all of them.
    """
    prefix = architecture.prefix
    while not any(name.startswith(prefix.format(layer=0)) for name in names):
        _, dot, rest = prefix.partition(".")
        if not dot or "{layer}" not in rest:
            return architecture  # `check_tensors` says which tensor is missing
        prefix = rest
    stored = replace(architecture, stored_prefix=prefix)
    routed = architecture.feed_forward.experts
    if routed is None:
        return stored
    for layout in (routed.held, *routed.stored):
        if stored.tensor(0, layout.output.tensor.format(expert=0)) in names:
            chosen = replace(routed, stored=(layout,))
            block = replace(architecture.feed_forward, experts=chosen)
            return replace(stored, feed_forward=block)
    return stored


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
    routed, of_experts = feed_forward.experts, {}
    if routed is not None:
        _check_every_layer_has_experts(config, where)
        shared = routed.shared.width if routed.shared else None
        named = [key for key in routed.counts if getattr(config, key, None) is not None]
        of_experts = {
            "experts": size((named or [*routed.counts])[0]),
            "chosen": size("num_experts_per_tok"),
            "shared": size(shared) if shared else 0,
        }
        if of_experts["chosen"] > of_experts["experts"]:
            raise InputError(
                f"the model's config lets each token take {of_experts['chosen']} of "
                f"{of_experts['experts']} experts",
                where=where,
                remedy="download or copy the model again",
            )
    return Dimensions(
        layers=size("num_hidden_layers"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size(attention.head_dim, hidden // heads)
        if attention.head_dim
        else hidden // heads,
        **of_experts,
    )


def _check_every_layer_has_experts(config: Any, where: str) -> None:
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise InputError(
            "some layers of this model have no experts (mlp_only_layers, decoder_sparse_step), and "
            "such a mixture is not described",
            where=where,
            remedy="describe it in pipeline/architectures/ (docs/architectures.md)",
        )


def output_modules(model: nn.Module, architecture: Architecture, name: str) -> list[nn.Module]:
    """Return the module `name` of every layer, in order.

    Raises:
        InputError: a layer lacks it.
    """
    config: Any = model.config
    layers = range(config.num_hidden_layers)
    return [layer_module(model, architecture, layer, name) for layer in layers]


def layer_module(model: nn.Module, architecture: Architecture, layer: int, name: str) -> nn.Module:
    """Return the module `name` of a layer.

    Raises:
        InputError: the layer lacks it.
    """
    full = architecture.module(layer, name)
    try:
        return model.get_submodule(full)
    except AttributeError as error:
        raise InputError(
            f"the model has no module {full!r}, which its description names",
            remedy="correct the family's description in pipeline/architectures/",
        ) from error


class Located(NamedTuple):
    """A tensor of a layer that may be cut.

    Attributes:
        name: its name in the layer.
        cut: how units lie in it.
        sizes: the sizes that its layout goes by.
        first: the first of the neurons that its layout counts.
        expert: the routed expert to which it belongs alone.
        module: of an output projection, the module in the layer that runs it.
    """

    name: str
    cut: Cut
    sizes: Dimensions
    first: int = 0
    expert: int | None = None
    module: str | None = None


def check_tensors(
    architecture: Architecture, layers: Sequence[Dimensions], names: Collection[str], where: str
) -> None:
    """Check that every tensor that the description cuts is stored.

    Args:
        architecture: the model's description.
        layers: sizes of each layer.
        names: stored tensors.
        where: the model's name or path, for the error.

    Raises:
        InputError: one is missing.
    """
    for layer, sizes in enumerate(layers):
        for located in all_tensors(architecture, sizes):
            full = architecture.tensor(layer, located.name)
            if located.cut.optional or full in names:
                continue
            first = located.cut.tensor.format(expert=0)
            if any(architecture.tensor(other, first) in names for other in range(len(layers))):
                raise _misfit(f"there is no tensor {full!r}", where)  # the description is right
            raise InputError(
                f"the checkpoint has no tensor {full!r}, which its description names",
                where=where,
                remedy="correct the family's description in pipeline/architectures/, or "
                "re-save the checkpoint with today's transformers",
            )


def cut_tensors(
    architecture: Architecture, layers: Sequence[Dimensions], names: Collection[str]
) -> Iterator[str]:
    """Yield the full name of every stored tensor that may be cut."""
    for layer, sizes in enumerate(layers):
        for located in all_tensors(architecture, sizes):
            if (full := architecture.tensor(layer, located.name)) in names:
                yield full


def check_shapes(
    architecture: Architecture,
    layers: Sequence[Dimensions],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Check that the stored tensors are as many and as long as the config says.

    Args:
        architecture: the model's description.
        layers: what its config says of each layer.
        shapes: stored tensors, by full name.
        where: the model's name or path, for the error.

    Raises:
        InputError: weights and config do not belong together.
    """
    expected = {sizes: list(_expected(architecture, sizes)) for sizes in set(layers)}
    wrong = [
        f"{full} has {found} entries where its config says {length}"
        for layer, sizes in enumerate(layers)
        for name, axis, length in expected[sizes]
        if (full := architecture.tensor(layer, name)) in shapes
        and (found := dict(enumerate(shapes[full])).get(axis)) != length
    ]
    beyond = architecture.tensor(len(layers), "")
    wrong += [f"{name} is beyond its config's layers" for name in shapes if name.startswith(beyond)]
    if wrong:
        raise _misfit(wrong[0], where)


def _misfit(what: str, where: str) -> InputError:
    return InputError(
        f"the weights do not fit the model's config: {what}",
        where=where,
        remedy="download or copy the model again: config.json and weights are of two models",
    )


def _expected(architecture: Architecture, sizes: Dimensions) -> Iterator[tuple[str, int, int]]:
    """Yield a layer's tensors by name, each with an axis and its length."""
    for located in all_tensors(architecture, sizes):
        for axis, length in _lengths(located).items():
            yield located.name, axis, length
    block = architecture.feed_forward
    if block.experts is None:
        yield block.projection, 1 - block.output_axis, sizes.hidden


def _lengths(located: Located) -> dict[int, int]:
    """Length of each axis along which a tensor has entries of units."""
    cut, entries = located.cut, len(located.cut.layout(located.sizes))
    if not cut.stacked:
        return {cut.axis: entries}
    return {0: located.sizes.experts, cut.axis: entries // located.sizes.experts}


def all_tensors(architecture: Architecture, sizes: Dimensions) -> Iterator[Located]:
    """Yield every tensor of a layer that is cut, output projections included."""
    yield from neuron_tensors(architecture, sizes)
    yield from expert_rows(architecture, sizes)
    yield from head_tensors(architecture, sizes)


def neuron_tensors(
    architecture: Architecture, sizes: Dimensions, *, held: bool = False
) -> Iterator[Located]:
    """Yield every tensor of a layer with entries of FFN neurons.

    Args:
        architecture: the model's description.
        sizes: its sizes.
        held: as the loaded module names them, where checkpoints store them otherwise.
    """
    block = architecture.feed_forward
    if block.experts is None:
        yield from _of_block(block, sizes, first=0)
        return
    layout = block.experts.held if held else _stored(architecture)
    for cut in (*layout.inputs, layout.output):
        module = block.output if cut is layout.output else None
        if "{expert}" not in cut.tensor:
            yield Located(cut.tensor, cut, sizes, module=module)
            continue
        for expert in range(sizes.experts):
            name = cut.tensor.format(expert=expert)
            yield Located(name, cut, sizes, expert * sizes.ffn, expert, module)
    if block.experts.shared is not None:
        first = sizes.experts * sizes.ffn
        yield from _of_block(block.experts.shared, replace(sizes, ffn=sizes.shared), first)


def expert_rows(architecture: Architecture, sizes: Dimensions) -> Iterator[Located]:
    """Yield every tensor of a layer with a row for each routed expert."""
    if architecture.feed_forward.experts is not None:
        for cut in _stored(architecture).rows:
            yield Located(cut.tensor, cut, sizes)


def head_tensors(architecture: Architecture, sizes: Dimensions) -> Iterator[Located]:
    """Yield every tensor of a layer with entries of attention heads."""
    block = architecture.attention
    for cut in block.inputs:
        yield Located(cut.tensor, cut, sizes)
    output = Cut(block.projection, query_heads, axis=block.output_axis)
    yield Located(output.tensor, output, sizes, module=block.output)


def _of_block(block: FeedForward, sizes: Dimensions, first: int) -> Iterator[Located]:
    for cut in block.inputs:
        yield Located(cut.tensor, cut, sizes, first)
    output = Cut(block.projection, neurons, axis=block.output_axis)
    yield Located(output.tensor, output, sizes, first, module=block.output)


def _stored(architecture: Architecture) -> ExpertTensors:
    """How the checkpoint at hand stores experts; of none at hand, as the module holds them."""
    routed = architecture.feed_forward.experts
    assert routed is not None
    return routed.stored[0] if architecture.stored_prefix and routed.stored else routed.held
