"""The base model: described at once, and loaded only when a stage must run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import convert_file_size_to_int
from torch import Tensor, nn

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
from pipeline.cache import Cache, digest_of_file, scratch_folder
from pipeline.errors import InputError
from pipeline.evaluation import loading
from pipeline.evaluation.loading import PLAIN, Terms, check_all_found, load_tokenizer
from pipeline.evaluation.quiet import quiet
from pipeline.export.checkpoint import companions
from pipeline.export.ragged import is_ragged
from pipeline.export.ragged.modeling_unlearn import RaggedConfig, RaggedForCausalLM
from pipeline.recipe.texts import MaxMemory
from pipeline.selection.plan import Plan
from pipeline.sources.explained import explained
from pipeline.sources.model_folder import read_config
from pipeline.sources.models import ResolvedModel
from pipeline.sources.remote_code import empty_model, load_config
from pipeline.surgery.masking import Maps, masked
from pipeline.surgery.projections import Kind, projections
from pipeline.surgery.safetensors_stream import TORCH_DTYPES, StoredTensor, stored_tensors


@dataclass(frozen=True)
class Base:
    """A base model on disk, with its description and sizes."""

    model: ResolvedModel
    config: Any
    architecture: Architecture
    dimensions: Dimensions
    tensors: dict[str, StoredTensor]
    memory: Mapping[str | int, int] | None = None
    offload: Path | None = None

    @property
    def terms(self) -> Terms:
        """On what terms it is loaded, and what is cut from it."""
        code = self.model.path if self.model.code == "run" else None
        return Terms(code, self.memory, self.offload)

    @property
    def carries_code(self) -> bool:
        """Whether what is cut from it needs a copy of the code that comes with it."""
        return self.model.code != ""

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded when first needed."""
        with quiet():
            return load_tokenizer(self.model.path, self.terms)

    @cached_property
    def settings(self) -> dict[str, str]:
        """SHA-256 of its config and of all that comes along with its weights, by file name."""
        names = ["config.json", *companions(self.model.path, code=self.carries_code)]
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
    with quiet():
        config = load_config(model.path, model.path if model.code == "run" else None)
    tensors = {tensor.name: tensor for tensor in stored_tensors(model.path)}
    architecture = as_stored(describe(config, model.name), tensors)
    sizes = dimensions(config, architecture, model.name)
    check_sizes(architecture, (sizes,) * sizes.layers, tensors, model.name)
    return Base(model, config, architecture, sizes, tensors)


def check_sizes(
    architecture: Architecture,
    layers: Sequence[Dimensions],
    tensors: Mapping[str, StoredTensor],
    where: str,
) -> None:
    """Check that what can be cut is stored, as long as a config says, and in a type to be cut.

    Args:
        architecture: the description of the model's family.
        layers: what its config says of each layer.
        tensors: its stored tensors, by name.
        where: the model's name or path, for errors.

    Raises:
        InputError: config and weights do not belong together, or a tensor that is to be cut is
            missing or quantised.
    """
    check_tensors(architecture, layers, tensors, where)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_shapes(architecture, layers, shapes, where)
    for name in cut_tensors(architecture, layers, tensors):
        _ = tensors[name].torch_dtype  # refuses what cannot be cut, before hours of scoring


@contextmanager
def within(limits: MaxMemory | None, base: Base, cache: Cache) -> Iterator[Base]:
    """Yield the base, which is loaded within the limits of a recipe while the block lasts.

    Args:
        limits: the recipe's `model.max_memory`.
        base: the base model.
        cache: has the folder below which weights are offloaded; it is removed afterwards.
    """
    if limits is None:
        yield base
        return
    memory: dict[str | int, int] = {"cpu": convert_file_size_to_int(limits.cpu)}
    if limits.each_gpu is not None:
        each = convert_file_size_to_int(limits.each_gpu)
        memory |= dict.fromkeys(range(torch.cuda.device_count()), each)
    with scratch_folder(cache.root / "offload") as folder:
        yield replace(base, memory=memory, offload=folder)


def load_model(folder: Path, dtype: str, terms: Terms = PLAIN) -> nn.Module:
    """Load a causal language model for inference.

    With an accelerator, or within limits, layers are placed as far as they fit
    (`device_map="auto"`).

    Raises:
        InputError: it cannot be loaded, or some of its weights are missing.
    """
    placement = {"device_map": "auto"} if torch.cuda.is_available() else {}
    with quiet():
        return cast(nn.Module, loading.load_model(folder, dtype, terms, **placement))


def check_loads(base: Base) -> None:
    """Check that a model would load: it is given names and shapes of its tensors, and no weight.

    Raises:
        InputError: a tensor is missing, has another shape, or has no place in the model.
    """
    folder = base.model.path
    with quiet(), torch.device("meta"), explained("model", folder):
        kind: Any = type(empty_model(read_config(folder, str(folder)), base.terms.code))
    _check_class_loads(kind, base.config, base.tensors, folder)


def check_ragged_loads(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Check that a ragged checkpoint would load, as `check_loads` does.

    Raises:
        InputError: as there; or what its config says of its layers makes no model.
    """
    with quiet(), explained("config", folder):
        config = cast(Any, RaggedConfig).from_pretrained(folder)
    _check_class_loads(RaggedForCausalLM, config, tensors, folder)


def _check_class_loads(
    kind: Any, config: Any, tensors: Mapping[str, StoredTensor], folder: Path
) -> None:
    with quiet(), torch.device("meta"), explained("model", folder):
        stored = {
            name: torch.empty(tensor.shape, dtype=TORCH_DTYPES.get(tensor.dtype, torch.uint8))
            for name, tensor in tensors.items()
        }
        _, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=stored,
            device_map={"": "meta"},
            output_loading_info=True,
        )
    check_all_found(info, folder)


def masking(base: Base, plan: Plan, maps: Maps, model: nn.Module) -> AbstractContextManager[None]:
    """Mask a loaded model by a plan."""
    return masked(model, base.architecture, base.dimensions, plan, maps)
