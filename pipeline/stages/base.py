"""The base model: described at once, and loaded only when a stage must run it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.architectures.registry import (
    as_stored,
    check_described,
    check_shapes,
    check_tensors,
    cut_tensors,
    describe,
    dimensions,
)
from pipeline.cache import digest_of_file
from pipeline.errors import InputError
from pipeline.evaluation.loading import explained, load_tokenizer
from pipeline.evaluation.quiet import quiet
from pipeline.export.checkpoint import companions
from pipeline.export.ragged import is_ragged, model_class
from pipeline.sources.model_folder import read_config
from pipeline.sources.models import ResolvedModel
from pipeline.surgery.projections import Kind, projections
from pipeline.surgery.safetensors_stream import StoredTensor, stored_tensors


@dataclass(frozen=True)
class Base:
    """A base model on disk, with its description and sizes."""

    model: ResolvedModel
    config: Any
    architecture: Architecture
    dimensions: Dimensions
    tensors: dict[str, StoredTensor]

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded when first needed."""
        with quiet():
            return load_tokenizer(self.model.path)

    @cached_property
    def settings(self) -> dict[str, str]:
        """SHA-256 of its config and of all that comes along with its weights, by file name."""
        names = ["config.json", *companions(self.model.path)]
        return {name: digest_of_file(self.model.path / name) for name in names}

    def weight(self, layer: int, kind: Kind) -> Tensor:
        """Output columns [hidden, U] of a layer's units of one kind, in their stored type."""
        columns, tensor, read = [], None, ""
        for each in projections(self.architecture, self.dimensions, layer):
            if each.kind == kind:
                if tensor is None or read != each.tensor:
                    tensor, read = self.tensors[each.tensor].read(), each.tensor
                columns.append(each.columns(tensor))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def open_base(model: ResolvedModel) -> Base:
    """Describe a resolved model.

    Raises:
        InputError: its architecture is not described, its config and weights do not belong
            together, or a tensor that is to be cut is missing or quantised.
    """
    if is_ragged(model.path):
        raise InputError(
            "its layers differ in width already, and a ragged checkpoint cannot be cut again",
            where=model.name,
            remedy="give the model that it was made from",
        )
    # Before transformers reads it: a family that it does not know either is the reader's error.
    check_described(read_config(model.path, model.name)["model_type"], where=model.name)
    with quiet(), explained("config", model.path):
        config = AutoConfig.from_pretrained(model.path, local_files_only=True)
    tensors = {tensor.name: tensor for tensor in stored_tensors(model.path)}
    architecture = as_stored(describe(config, model.name), tensors)
    sizes = dimensions(config, architecture, model.name)
    check_tensors(architecture, sizes, tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_shapes(architecture, sizes, shapes, model.name)
    for name in cut_tensors(architecture, sizes, tensors):
        _ = tensors[name].torch_dtype  # refuses what cannot be cut, before hours of scoring
    return Base(model, config, architecture, sizes, tensors)


def load_model(folder: Path, dtype: str) -> nn.Module:
    """Load a causal language model for inference.

    With an accelerator, layers are placed on it as far as they fit (`device_map="auto"`).

    Raises:
        InputError: it cannot be loaded, or some of its weights are missing.
    """
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}
    with quiet(), explained("model", folder):
        loaded: Any = model_class(folder).from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True, **placement
        )
    model, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise InputError(
            f"the checkpoint lacks weights: {', '.join(sorted(info['missing_keys'])[:5])}",
            where=str(folder),
            remedy="download or copy the model again",
        )
    return cast(nn.Module, model.eval())
