"""The ragged export: layers of different widths, through one modeling file in the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import dimensions
from pipeline.cache import read_json
from pipeline.errors import InputError
from pipeline.export.checkpoint import changed_sizes
from pipeline.export.ragged.modeling_unlearn import RaggedConfig, RaggedForCausalLM, RaggedModel
from pipeline.selection.plan import Plan
from pipeline.sources.explained import explained
from pipeline.surgery.coordinates import layer_sizes
from pipeline.surgery.tensor_cut import TensorCut

MODELING_FILE = Path(__file__).with_name("modeling_unlearn.py")
_CLASSES = {
    "AutoConfig": RaggedConfig,
    "AutoModel": RaggedModel,
    "AutoModelForCausalLM": RaggedForCausalLM,
}

_OWN_KEYS = (
    "architectures",
    "auto_map",
    "ragged",
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
)


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
    if (head_dim := architecture.attention.head_dim) is not None and any(
        head_dim in changes for changes in changed.values()
    ):
        config = config | {head_dim: sizes.head_dim}  # what some layers say, all must have
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


def stock_config(folder: Path) -> Any:
    """The family's own config of a ragged checkpoint, as if no layer were narrower.

    Raises:
        InputError: its family has no such config.
    """
    content = read_json(folder / "config.json")
    with explained("config", folder):
        return AutoConfig.for_model(**{k: v for k, v in content.items() if k not in _OWN_KEYS})


def sizes_by_layer(folder: Path, config: Any, architecture: Architecture) -> tuple[Dimensions, ...]:
    """Sizes of each layer of a ragged checkpoint.

    Args:
        folder: the checkpoint.
        config: its `stock_config`.
        architecture: the description of its family.

    Raises:
        InputError: a size is impossible, or the config does not say them.
    """
    if architecture.feed_forward.width is None:
        raise InputError(
            f"the config of a {config.model_type} has no key for the width of its layers, so that "
            "a GGUF file could not say it either",
            where=str(folder),
            remedy="cut it with select.policy: padded",
        )
    changed = read_json(folder / "config.json").get("per_layer_config")
    if not isinstance(changed, dict) or not all(isinstance(v, dict) for v in changed.values()):
        raise InputError(
            "per_layer_config of the model's config is no object of objects",
            where=str(folder),
            remedy="download or copy the model again",
        )
    found = []
    for layer in range(dimensions(config, architecture, str(folder)).layers):
        own = copy.deepcopy(config)
        with explained("config", folder):
            for key, value in changed.get(str(layer), {}).items():
                setattr(own, key, value)
        found.append(dimensions(own, architecture, str(folder)))
    return tuple(found)


def check_attributes(
    folder: Path, config: Any, architecture: Architecture, layers: tuple[Dimensions, ...]
) -> None:
    """Check that transformers counts the heads that `sizes_by_layer` found.

    Args:
        folder: a ragged checkpoint that loads.
        config: its `stock_config`.
        architecture: the description of its family.
        layers: sizes of each of its layers.

    Raises:
        InputError: it counts others.
    """
    sizes = dimensions(config, architecture, str(folder))
    stated = read_json(folder / "config.json")["ragged"]["attributes"]
    widths = {layer.head_dim for layer in layers}
    if widths != {sizes.head_dim} or stated != _attributes(architecture, sizes, layers):
        raise InputError(
            "its config counts heads in one way for transformers (ragged) and in another for other "
            "engines (per_layer_config)",
            where=str(folder / "config.json"),
            remedy="download or copy the model again",
        )


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
