"""Whether llama.cpp would compute what a checkpoint does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.architectures.description import Dimensions
from pipeline.errors import InputError
from pipeline.export.gguf.checkpoint import Checkpoint
from pipeline.export.gguf.families import FAMILIES, GgufFamily


def family_of(checkpoint: Checkpoint) -> GgufFamily:
    """Find out how a checkpoint is written.

    Raises:
        InputError: llama.cpp has no such model, or would compute something else.
    """
    config, where = checkpoint.config, str(checkpoint.folder)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise InputError(
            f"models of the family {config.model_type!r} cannot be written as GGUF here; those of "
            f"{_listed(FAMILIES)} can",
            where=where,
        )
    if checkpoint.ragged and family.ragged is None:
        raise InputError(
            f"llama.cpp wants the same width in all layers of a {config.model_type}; in those of "
            f"{_listed(name for name, each in FAMILIES.items() if each.ragged)} they may differ",
            where=where,
            remedy="cut it with select.policy: uniform",
        )
    for key, values in family.requires.items():
        if getattr(config, key, values[0]) not in values:
            raise InputError(
                f"llama.cpp has no {config.model_type} whose {key} is {getattr(config, key)!r}; "
                f"it computes with {values[0]!r}",
                where=where,
            )
    for key in family.needs:
        if getattr(config, key, None) is None:
            raise InputError(
                f"llama.cpp has no {config.model_type} without {key}: it would take a default",
                where=where,
            )
    interval = getattr(config, "no_rope_layer_interval", None)
    rotated = getattr(config, "no_rope_layers", None)
    if interval and rotated and rotated != [(i + 1) % interval != 0 for i in range(len(rotated))]:
        raise InputError(
            f"llama.cpp's {config.model_type} leaves out rotary positions in every {interval}th "
            "layer, this model in others",
            where=where,
        )
    sizes = checkpoint.sizes
    if not family.free_heads and sizes.heads * sizes.head_dim != sizes.hidden:
        raise InputError(
            f"llama.cpp's {config.model_type} wants heads · head_dim = hidden_size, this model has "
            f"{sizes.heads} · {sizes.head_dim} and {sizes.hidden}",
            where=where,
            remedy="cut FFN neurons alone, or heads of another family",
        )
    if family.ungrouped and sizes.heads_per_group > 1:
        raise InputError(
            f"llama.cpp's {config.model_type} wants a key/value head for each query head, this "
            f"model has {sizes.kv_heads} for {sizes.heads}",
            where=where,
        )
    _check_scale(config, family, sizes, where)
    return family


def _check_scale(config: Any, family: GgufFamily, sizes: Dimensions, where: str) -> None:
    scale = getattr(config, "query_pre_attn_scalar", None)
    theirs, name = sizes.head_dim, "head_dim"
    if sizes.layers == family.largest:
        theirs, name = sizes.hidden // sizes.heads, "hidden_size / num_attention_heads"
    if scale is not None and scale != theirs:
        depth = f" of {sizes.layers} layers" if sizes.layers == family.largest else ""
        raise InputError(
            f"llama.cpp scales queries of a {config.model_type}{depth} by {name} ({theirs}), this "
            f"model by query_pre_attn_scalar ({scale})",
            where=where,
            remedy="cut FFN neurons alone" if depth else "",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
