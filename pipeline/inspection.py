"""What a model is made of, and what can be cut out of it, found out without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.experts import GROUPED_MULTIPLE
from pipeline.architectures.registry import head_tensors, neuron_tensors
from pipeline.cache import Cache
from pipeline.export.checkpoint import changed_sizes
from pipeline.selection.uniform import kept_experts, kept_width
from pipeline.sources.models import ModelDescription, describe_alone
from pipeline.sources.releases import model_source
from pipeline.stages.described import described, parameter_counts
from pipeline.surgery.coordinates import can_have_heads

FRACTIONS = (0.05, 0.1, 0.2, 0.3)
MULTIPLE = 32
HEAD_COUNTS = 2  # of those that whole groups allow, the largest


def inspect(reference: str, cache: Cache) -> dict[str, Any]:
    """Say what a model is made of; JSON-able.

    Args:
        reference: a model as it is named on a command line.
        cache: where converted models are looked for.

    Raises:
        InputError: there is no such model, or its architecture is not described.
        BrokenError: the Hub cannot be reached.
    """
    source: Any = model_source(reference)
    model = describe_alone(source, cache)
    known = described(model)
    architecture, sizes = known.architecture, known.sizes
    counts = parameter_counts(model.config, model)
    parameters = _by_kind(counts, architecture, sizes)
    total = sum(counts.values())
    return {
        "model": model.name,
        "kind": model.kind,
        "architecture": known.config.model_type,
        "layers": sizes.layers,
        "hidden": sizes.hidden,
        "units_of_a_layer": {
            "ffn": sizes.ffn,
            "query_heads": sizes.heads,
            "kv_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            **({"experts": sizes.experts} if sizes.experts else {}),
            **({"shared_expert": sizes.shared} if sizes.shared else {}),
        },
        "parameters": {"total": total, **parameters},
        "parameters_of_a_unit": {
            "ffn": parameters["ffn"] // (sizes.layers * sizes.neurons),
            "kv_group": parameters["attention"] // (sizes.layers * sizes.kv_heads),
        },
        "ffn_widths": _ffn_widths(architecture, sizes),
        "head_counts": (heads := _head_counts(architecture, sizes)),
        "expert_counts": _expert_counts(sizes),
        "shrink": list(_shrink(model, architecture, sizes, heads, {"total": total, **parameters})),
    }


def _by_kind(
    counts: dict[str, int], architecture: Architecture, sizes: Dimensions
) -> dict[str, int]:
    """Parameters that have entries of units, by kind, and the others."""
    kinds = {
        "ffn": list(neuron_tensors(architecture, sizes, held=True)),
        "attention": list(head_tensors(architecture, sizes)),
    }
    found = {
        kind: sum(
            counts.get(architecture.module(layer, located.name), 0)
            for layer in range(sizes.layers)
            for located in tensors
        )
        for kind, tensors in kinds.items()
    }
    layer_words = architecture.prefix.partition("{layer}")[0]
    outside = sum(n for name, n in counts.items() if not name.startswith(layer_words))
    rest = sum(counts.values()) - outside - sum(found.values())
    return {**found, "outside_layers": outside, "other": rest}


def _ffn_widths(architecture: Architecture, sizes: Dimensions) -> str:
    if architecture.feed_forward.width is None:
        return f"{sizes.ffn} only; policy padded leaves zeros in their place, ragged cuts them"
    if sizes.experts:
        return (
            f"any multiple of {GROUPED_MULTIPLE} below {sizes.ffn}, the same in every expert; a "
            f"recipe rounds to multiples of {MULTIPLE}"
        )
    return f"any from 1 to {sizes.ffn}; a recipe rounds to multiples of {MULTIPLE}"


def _expert_counts(sizes: Dimensions) -> str | None:
    if not sizes.experts:
        return None
    least = f"{sizes.chosen}, as many as a token takes"
    if sizes.chosen == sizes.experts:
        return f"{least}: none can go"
    return f"any from {least}, to {sizes.experts}"


def _head_counts(architecture: Architecture, sizes: Dimensions) -> dict[str, Any]:
    """Numbers of query heads that a smaller checkpoint can have, by what is removed."""
    if architecture.attention.untouchable:
        return {"refused": architecture.attention.untouchable}
    per_group = sizes.heads_per_group
    ways = {
        "kv_group": [n * per_group for n in range(1, sizes.kv_heads)],
        "query_head": [n * sizes.kv_heads for n in range(1, per_group)],
    }
    legal: dict[str, Any] = {
        way: [heads for heads in counts if can_have_heads(architecture, sizes, heads)]
        for way, counts in ways.items()
    }
    if not any(legal.values()):
        legal["note"] = "no smaller number; policy padded leaves zeros in their place"
        if architecture.attention.counts is not None:
            legal["note"] += ", ragged cuts them"
    return legal


def _shrink(
    model: ModelDescription,
    architecture: Architecture,
    sizes: Dimensions,
    counts: dict[str, Any],
    parameters: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """Yield what is left after some cuts: the settings, the units of a layer, the parameters."""
    total = parameters["total"]

    def row(setting: str, units: str, left: int) -> dict[str, Any]:
        return {"setting": setting, "units": units, "parameters": left, "share": left / total}

    def after(**changed: int) -> int:
        keys = changed_sizes(model.config, architecture, sizes, replace(sizes, **changed))
        return sum(parameter_counts(model.config | keys, model).values())

    for fraction in FRACTIONS if sizes.ffn > MULTIPLE else ():
        width = kept_width(sizes.ffn, fraction, MULTIPLE)
        setting, units = f"select.ffn.fraction={fraction:g}", f"{width:,} neurons"
        if architecture.feed_forward.width is None:
            gone = parameters["ffn"] // sizes.ffn * (sizes.ffn - width)
            yield row(f"{setting} select.policy=ragged", units, total - gone)
        elif sizes.shared > MULTIPLE:
            shared = kept_width(sizes.shared, fraction, MULTIPLE)
            units += f" an expert, {shared:,} in the shared one"
            yield row(setting, units, after(ffn=width, shared=shared))
        else:
            yield row(setting, units, after(ffn=width))
    for heads in counts.get("kv_group", ())[::-1][:HEAD_COUNTS]:
        groups = heads // sizes.heads_per_group
        setting = f"select.attention.fraction={1 - heads / sizes.heads:.3g}"
        yield row(setting, f"{heads} query heads", after(heads=heads, kv_heads=groups))
    for fraction in FRACTIONS if sizes.experts > sizes.chosen else ():
        experts = kept_experts(sizes.experts, sizes.chosen, fraction)
        setting = f"select.experts.fraction={fraction:g}"
        yield row(setting, f"{experts} experts", after(experts=experts))
