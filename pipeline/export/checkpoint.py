"""The plain export: an ordinary Hugging Face checkpoint of the family's stock class."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.cache import read_json
from pipeline.selection.plan import Plan
from pipeline.sources.licences import LICENCE_FILES
from pipeline.surgery.coordinates import stored_sizes

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


def pruned_config(
    base: Path, architecture: Architecture, sizes: Dimensions, plan: Plan
) -> dict[str, Any]:
    """Return the base's `config.json` with the new sizes, and nothing else changed.

    Args:
        base: checkpoint folder of the base model.
        architecture: its description.
        sizes: sizes of the base.
        plan: what is kept.
    """
    config: dict[str, Any] = read_json(base / "config.json")
    return config | changed_sizes(architecture, sizes, stored_sizes(architecture, sizes, plan))


def changed_sizes(
    architecture: Architecture, sizes: Dimensions, after: Dimensions
) -> dict[str, Any]:
    """Return the keys of `config.json` that say the sizes after a cut.

    Args:
        architecture: the base's description.
        sizes: sizes of the base.
        after: sizes of the checkpoint after the cut.
    """
    attention, changed = architecture.attention, {}
    if architecture.feed_forward.width is not None and after.ffn != sizes.ffn:
        changed[architecture.feed_forward.width] = after.ffn
    if after.heads != sizes.heads:
        changed[attention.heads] = after.heads
        if isinstance(attention.key_value_heads, str):
            changed[attention.key_value_heads] = after.kv_heads
        if attention.head_dim is not None:
            changed[attention.head_dim] = sizes.head_dim
    return changed


def companions(folder: Path) -> list[str]:
    """Names of a checkpoint's generation config, tokenizer, chat template and licence files."""
    found = {path for pattern in COMPANION_PATTERNS for path in folder.glob(pattern)}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def copy_companions(base: Path, target: Path) -> None:
    """Copy the base's companions, byte for byte."""
    for name in companions(base):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, target / name)
