"""The plain export: an ordinary Hugging Face checkpoint of the family's stock class."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.cache import read_json
from pipeline.selection.plan import Plan
from pipeline.sources.licences import LICENCE_FILES
from pipeline.surgery.coordinates import can_have_heads, stored_sizes

COMPANION_PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    *LICENCE_FILES,
)
CODE_PATTERN = "*.py"


def pruned_config(
    base: Path, architecture: Architecture, sizes: Dimensions, plan: Plan, *, code: bool = False
) -> dict[str, Any]:
    """Return the base's `config.json` with the new sizes, and nothing else changed.

    Without its own code the checkpoint is of the stock class, so that `auto_map`, which names files
    that it does not have, goes too.

    Args:
        base: checkpoint folder of the base model.
        architecture: its description.
        sizes: sizes of the base.
        plan: what is kept.
        code: the checkpoint has the base's own code.
    """
    config: dict[str, Any] = read_json(base / "config.json")
    if not code:
        config.pop("auto_map", None)
    after = stored_sizes(architecture, sizes, plan)
    return config | changed_sizes(config, architecture, sizes, after)


def relabelled(architecture: Architecture) -> Architecture:
    """The description of the family as which a checkpoint can be written; itself, if of none."""
    if architecture.attention.relabel is None:
        return architecture
    return replace(architecture, attention=replace(architecture.attention, head_counts="any"))


def why_not_relabelled(architecture: Architecture, config: Any) -> str | None:
    """Why a checkpoint cannot be written as one of another family; None if it can.

    Args:
        architecture: the base's description.
        config: the base's config as transformers reads it.
    """
    relabel = architecture.attention.relabel
    if relabel is None:
        return f"no other family computes what a {config.model_type} does"
    for key, value in relabel.requires:
        if (found := getattr(config, key, value)) != value:
            return (
                f"{key} of the model's config is {found!r}, and a {relabel.model_type} has "
                "nothing like it"
            )
    return None


def relabelled_config(
    config: dict[str, Any], architecture: Architecture, sizes: Dimensions, heads: int, base: Any
) -> dict[str, Any]:
    """`config.json` in another family's name, where its own cannot say so many heads.

    Args:
        config: the content so far.
        architecture: the base's description.
        sizes: sizes of the base.
        heads: query heads after the cut.
        base: the base's config as transformers reads it, for what `config` leaves to a default.
    """
    relabel = architecture.attention.relabel
    if relabel is None or can_have_heads(architecture, sizes, heads):
        return config
    dropped = {key for key, _ in relabel.requires}
    return {
        **{key: value for key, value in config.items() if key not in dropped},
        **{key: getattr(base, key) for key in relabel.keeps if key not in config},
        **dict(relabel.adds),
        "model_type": relabel.model_type,
        "architectures": [relabel.model_class],
    }


def changed_sizes(
    config: Mapping[str, Any], architecture: Architecture, sizes: Dimensions, after: Dimensions
) -> dict[str, Any]:
    """Return the keys of `config.json` that say the sizes after a cut.

    Args:
        config: the base's.
        architecture: the base's description.
        sizes: sizes of the base.
        after: sizes of the checkpoint after the cut.
    """
    attention, feed_forward = architecture.attention, architecture.feed_forward
    changed: dict[str, Any] = {}
    if feed_forward.width is not None and after.ffn != sizes.ffn:
        changed[feed_forward.width] = after.ffn
    routed = feed_forward.experts
    if routed is not None and after.experts != sizes.experts:
        said = [key for key in routed.counts if config.get(key)] or [routed.counts[0]]
        changed |= dict.fromkeys(said, after.experts)
    if routed is not None and routed.shared is not None and after.shared != sizes.shared:
        assert routed.shared.width is not None
        changed[routed.shared.width] = after.shared
    if after.heads != sizes.heads:
        changed[attention.heads] = after.heads
        if isinstance(attention.key_value_heads, str):
            changed[attention.key_value_heads] = after.kv_heads
        if attention.head_dim is not None:
            changed[attention.head_dim] = sizes.head_dim
    return changed


def companions(folder: Path, *, code: bool = False) -> list[str]:
    """Names of a checkpoint's generation config, tokenizer, chat template and licence files.

    Args:
        folder: the checkpoint.
        code: its own code comes along too.
    """
    patterns = [*COMPANION_PATTERNS, *([CODE_PATTERN] if code else [])]
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def copy_companions(base: Path, target: Path, *, code: bool = False) -> None:
    """Copy the base's companions, byte for byte."""
    for name in companions(base, code=code):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, target / name)
