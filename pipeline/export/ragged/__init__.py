"""The ragged export: layers of different widths, through one modeling file in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.cache import read_json
from pipeline.export.checkpoint import changed_sizes
from pipeline.export.ragged.modeling_unlearn import RaggedConfig, RaggedForCausalLM, RaggedModel
from pipeline.selection.plan import Plan
from pipeline.surgery.coordinates import layer_sizes
from pipeline.surgery.tensor_cut import TensorCut

MODELING_FILE = Path(__file__).with_name("modeling_unlearn.py")
_CLASSES = {
    "AutoConfig": RaggedConfig,
    "AutoModel": RaggedModel,
    "AutoModelForCausalLM": RaggedForCausalLM,
}


def ragged_config(
    config: dict[str, Any],
    architecture: Architecture,
    sizes: Dimensions,
    plan: Plan,
    cuts: Mapping[str, TensorCut],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Return `config.json` of a ragged checkpoint.

    Args:
        config: the base's.
        architecture: its description.
        sizes: sizes of the base.
        plan: what is kept.
        cuts: by tensor name, what stands along its axis.
        shapes: stored tensors of the base, by name.
    """
    layers = layer_sizes(architecture, sizes, plan, ragged=True)
    stored, modules = architecture.tensor(0, ""), architecture.module(0, "")
    root = modules.removesuffix(stored)  # decoders alone are stored without the first words
    changed = {
        str(number): changes
        for number, after in enumerate(layers)
        if (changes := changed_sizes(config, architecture, sizes, after))
    }
    return config | {
        "architectures": [RaggedForCausalLM.__name__],
        "auto_map": {
            auto: f"{MODELING_FILE.stem}.{own.__name__}" for auto, own in _CLASSES.items()
        },
        "ragged": {
            "shapes": {
                root + name: list(cut.shape_of(shapes[name]))
                for name, cut in sorted(cuts.items())
                if name in shapes and cut.after != cut.before
            },
            "attributes": _attributes(architecture, sizes, layers),
        },
        # What transformers' caches and some engines read; the model itself reads `ragged`.
        "per_layer_config": changed,
        "allow_global_per_layer_attribute_access": True,
    }


def is_ragged(folder: Path) -> bool:
    """Whether a checkpoint's `config.json` says that it is ragged."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and "ragged" in config


def model_class(folder: Path) -> Any:
    """The class that loads a checkpoint: never code that comes with it."""
    return RaggedForCausalLM if is_ragged(folder) else AutoModelForCausalLM


def _attributes(
    architecture: Architecture, sizes: Dimensions, layers: tuple[Dimensions, ...]
) -> dict[str, dict[str, Any]]:
    """Attributes of modules that count heads, where they are not the base's."""
    found: dict[str, dict[str, Any]] = {}
    for number, after in enumerate(layers):
        for count in architecture.attention.counts or ():
            if (value := count.value(after)) == count.value(sizes):
                continue
            module = found.setdefault(architecture.module(number, count.module), {})
            *config, key = count.attribute.split(".")
            if config:  # "config.…": the module reads it from the model's config
                module = module.setdefault("config", {})
            module[key] = value
    return found
