"""A checkpoint that is to become a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH

from pipeline.architectures.description import Architecture, Dimensions
from pipeline.export.gguf.families import GgufFamily
from pipeline.surgery.safetensors_stream import StoredTensor


@dataclass(frozen=True)
class Checkpoint:
    """A described checkpoint folder.

    Attributes:
        folder: where it is.
        config: its config as transformers reads it.
        architecture: the description of its family.
        layers: sizes of each layer; of a ragged checkpoint they differ.
        tensors: its stored tensors.
        tokenizer: its tokenizer as transformers loads it.
    """

    folder: Path
    config: Any
    architecture: Architecture
    layers: tuple[Dimensions, ...]
    tensors: list[StoredTensor]
    tokenizer: Any

    @property
    def sizes(self) -> Dimensions:
        """What all layers have in common, and of the rest what the first has."""
        return self.layers[0]

    @property
    def ragged(self) -> bool:
        """Whether layers differ."""
        return len(set(self.layers)) > 1


def gguf_architecture(checkpoint: Checkpoint, family: GgufFamily) -> MODEL_ARCH:
    """llama.cpp's name of the family, or of the one that reads the sizes of each layer."""
    return family.ragged if checkpoint.ragged and family.ragged else family.architecture
