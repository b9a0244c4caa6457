"""A model described without its weights: config, architecture, sizes and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import check_described, describe, dimensions
from pipeline.evaluation.quiet import quiet
from pipeline.sources.explained import explained
from pipeline.sources.models import ModelDescription, ResolvedModel
from pipeline.sources.remote_code import empty_model
from pipeline.stages.base import check_loads, open_base


@dataclass(frozen=True)
class Described:
    """What is known of a model before it is downloaded, converted or loaded.

    Attributes:
        config: its config as transformers reads it.
        architecture: the description of its family.
        sizes: sizes of its prunable parts.
        tokenizer: None where it would have to be downloaded or converted.
    """

    config: Any
    architecture: Architecture
    sizes: Dimensions
    tokenizer: Any | None


def described(model: ModelDescription) -> Described:
    """Describe a model; a folder at hand is looked into as a run would.

    Raises:
        InputError: its family is not described, or its config and weights do not fit together.
    """
    if model.folder is None:
        check_described(model.config.get("model_type", "unknown"), where=model.name)
        with quiet(), explained("config", Path(model.name)):
            config = AutoConfig.for_model(**model.config)
        architecture = describe(config, where=model.name)
        return Described(config, architecture, dimensions(config, architecture, model.name), None)
    code: Literal["", "run"] = "run" if model.runs_code else ""
    base = open_base(ResolvedModel(model.folder, model.name, {}, "", None, code))
    check_loads(base)
    return Described(base.config, base.architecture, base.dimensions, base.tokenizer)


def parameter_counts(config: dict[str, Any], model: ModelDescription) -> dict[str, int]:
    """Parameters by name, counted on a model without weights; tied ones count once.

    Args:
        config: the config to count by.
        model: the model whose config it was, whose code may be run if the recipe says so.

    Raises:
        InputError: the config asks for something that its family does not have.
    """
    code = model.folder if model.runs_code else None
    place = model.folder or Path(model.name)
    with quiet(), torch.device("meta"), explained("config", place):
        empty = empty_model(config, code)
    empty.tie_weights()
    return {name: parameter.numel() for name, parameter in empty.named_parameters()}
