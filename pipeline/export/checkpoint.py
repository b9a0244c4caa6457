"""The plain export: an ordinary Hugging Face checkpoint of the family's stock class."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.architectures.description import Architecture
from pipeline.architectures.registry import Dimensions
from pipeline.cache import read_json
from pipeline.selection.plan import Plan

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
    "LICENSE*",
    "NOTICE*",
)


def pruned_config(
    base: Path, architecture: Architecture, sizes: Dimensions, plan: Plan
) -> dict[str, Any]:
    """Return the base's `config.json` with the new sizes, and nothing else changed.

    Args:
        base: checkpoint folder of the base model.
        architecture: its description.
        sizes: sizes of the base.
        plan: a uniform plan.

    Raises:
        ValueError: the plan is not uniform.
    """
    config: dict[str, Any] = read_json(base / "config.json")
    attention = architecture.attention
    config[architecture.feed_forward.width] = _same({len(x.ffn) for x in plan.layers})
    heads = _same({len(layer.query_heads) for layer in plan.layers})
    if heads != sizes.heads:
        config[attention.heads] = heads
        config[attention.key_value_heads] = _same({len(layer.kv_heads) for layer in plan.layers})
        config[attention.head_dim] = sizes.head_dim
    return config


def companions(folder: Path) -> list[str]:
    """Names of a checkpoint's generation config, tokenizer, chat template and licence files."""
    found = {path for pattern in COMPANION_PATTERNS for path in folder.glob(pattern)}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def copy_companions(base: Path, target: Path) -> None:
    """Copy the base's companions, byte for byte."""
    for name in companions(base):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, target / name)


def _same(values: set[int]) -> int:
    if len(values) != 1:
        raise ValueError(f"layers differ in width: {sorted(values)}; a stock config holds only one")
    return values.pop()
