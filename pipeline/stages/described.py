"""A model described without its weights: config, architecture, sizes and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import check_described, describe, dimensions
from pipeline.evaluation.quiet import quiet
from pipeline.sources.models import ModelDescription, ResolvedModel
from pipeline.stages.base import open_base


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
        with quiet():
            config = AutoConfig.for_model(**model.config)
        architecture = describe(config, where=model.name)
        return Described(config, architecture, dimensions(config, architecture, model.name), None)
    base = open_base(ResolvedModel(model.folder, model.name, {}, "", None))
    return Described(base.config, base.architecture, base.dimensions, base.tokenizer)


def parameter_counts(config: dict[str, Any]) -> dict[str, int]:
    """Parameters of a model by name, counted on one without weights; tied ones count once."""
    with quiet(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(**config)
        )
    model.tie_weights()
    return {name: parameter.numel() for name, parameter in model.named_parameters()}
