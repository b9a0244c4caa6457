"""Tensors of a checkpoint as llama.cpp wants them: names, types, order of rows."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, get_tensor_name_map
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor

from pipeline.architectures.layouts import queries_keys_values
from pipeline.architectures.registry import BUFFERS
from pipeline.errors import BrokenError, InputError
from pipeline.export.gguf.checkpoint import Checkpoint, gguf_architecture
from pipeline.export.gguf.families import GgufFamily
from pipeline.surgery.coordinates import relaid
from pipeline.surgery.safetensors_stream import StoredTensor

HEAD, EMBEDDINGS = "lm_head.weight", "token_embd.weight"  # transformers' name, llama.cpp's
LARGEST_F16 = 65504.0
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
SUFFIXES = (".weight", ".bias")
# Small, and what is lost in them is lost everywhere: llama.cpp's own converter keeps them too.
IN_F32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd")
QUERIES, KEYS = ".self_attn.q_proj.", ".self_attn.k_proj."


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        name: llama.cpp's name of it.
        stored: what it is made from: one tensor, or one of each expert.
        shape: its shape, outermost axis first.
        kind: its type.
        change: what is done to each stored tensor.
    """

    name: str
    stored: tuple[StoredTensor, ...]
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    change: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        """Stored bytes that it is made from."""
        return sum(each.size for each in self.stored)


def gguf_tensors(
    checkpoint: Checkpoint, family: GgufFamily, wanted: GGMLQuantizationType
) -> Iterator[GgufTensor]:
    """Yield the tensors of the file, in the order in which they are stored.

    Raises:
        InputError: llama.cpp has no place for a tensor.
    """
    names = get_tensor_name_map(gguf_architecture(checkpoint, family), checkpoint.sizes.layers)
    architecture = checkpoint.architecture
    root = architecture.prefix.removesuffix(architecture.stored_prefix or architecture.prefix)
    tensors = _stacked(checkpoint.tensors)
    (head,) = tensors.pop(HEAD, (None,)) if checkpoint.config.tie_word_embeddings else (None,)
    embedded = False
    for own, stored in tensors.items():
        full = own if own.startswith("lm_head.") else root + own
        name = names.get_name(full, SUFFIXES)
        name = name or names.get_name(full.removeprefix("transformer."), SUFFIXES)
        if name is None:
            raise InputError(
                f"llama.cpp has no place for the tensor {own!r}", where=str(stored[0].file)
            )
        embedded |= name == EMBEDDINGS
        if name == EMBEDDINGS and head is not None:
            _check_tied(stored[0], head)
        change = _change(checkpoint, family, full)
        shape = tuple(change(torch.empty(stored[0].shape, device="meta")).shape)
        kind = _kind(name, shape, wanted)
        if EXPERT.match(stored[0].name):
            shape = (len(stored), *shape)
        yield GgufTensor(name, stored, shape, kind, change)
    if head is not None and not embedded:  # safetensors' `save_model` keeps one name of the two
        raise InputError(
            "its embeddings are stored under the name of its head alone",
            where=str(head.file),
            remedy="load it with transformers, and save it with save_pretrained",
        )


def _check_tied(embeddings: StoredTensor, head: StoredTensor) -> None:
    """Refuse a head that is stored apart where the config ties it: the file would lack it."""
    if any(map(operator.ne, embeddings.chunks(), head.chunks())):
        raise InputError(
            "its config ties the embeddings, and its stored head is another: transformers computes "
            "with that head, llama.cpp would with the embeddings",
            where=str(head.file),
            remedy="set tie_word_embeddings of its config.json to false",
        )


def _stacked(tensors: list[StoredTensor]) -> dict[str, tuple[StoredTensor, ...]]:
    """What each tensor of the file is made from, by its name without an expert's number."""
    found: dict[str, dict[int, StoredTensor]] = {}
    for stored in tensors:
        if stored.name.endswith(BUFFERS):
            continue
        match = EXPERT.match(stored.name)
        name = f"{match[1]}.{match[3]}" if match else stored.name
        found.setdefault(name, {})[int(match[2]) if match else 0] = stored
    return {name: tuple(each for _, each in sorted(own.items())) for name, own in found.items()}


def _kind(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name.split(".")[-2] in IN_F32:
        return GGMLQuantizationType.F32
    if shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        return GGMLQuantizationType.F16
    return wanted


def bytes_of(tensor: GgufTensor) -> int:
    """Bytes that it takes in the file."""
    block, size = GGML_QUANT_SIZES[tensor.kind]
    return int(np.prod(tensor.shape)) // block * size


def _change(checkpoint: Checkpoint, family: GgufFamily, name: str) -> Callable[[Tensor], Tensor]:
    """How llama.cpp wants a tensor, given by its module's name."""
    architecture = checkpoint.architecture
    sizes = next(
        (
            each
            for layer, each in enumerate(checkpoint.layers)
            if name.startswith(architecture.module(layer, ""))
        ),
        checkpoint.sizes,
    )
    layout = None
    for cut in architecture.attention.inputs:
        if name.endswith(cut.tensor) and "query_key_value" in cut.tensor:
            layout = list(relaid(cut.layout, queries_keys_values, sizes))

    def change(tensor: Tensor) -> Tensor:
        if family.conv1d and tensor.ndim == 2 and ".h." in name:
            tensor = tensor.T
        if family.norm_offset and "norm" in name and name.endswith(".weight"):
            tensor = tensor.float() + family.norm_offset
        if family.pairs and QUERIES in name:
            tensor = _in_pairs(tensor, sizes.heads)
        if family.pairs and KEYS in name:
            tensor = _in_pairs(tensor, sizes.kv_heads)
        if layout is not None:
            tensor = tensor[layout]
        if name.endswith(".shared_expert_gate.weight"):
            tensor = tensor[0]  # one number a token
        return tensor

    return change


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head, so that what rotates together stands side by side."""
    halves = tensor.unflatten(0, (heads, 2, -1))
    pairs: Tensor = halves.transpose(1, 2).flatten(0, 2)
    return pairs


def encoded(tensor: GgufTensor) -> NDArray[Any]:
    """Its values in the type of the file.

    Raises:
        BrokenError: one of them does not fit into the type.
    """
    parts = [tensor.change(each.read()).float() for each in tensor.stored]
    values = parts[0] if len(parts) == 1 else torch.stack(parts)
    values = values.reshape(tensor.shape).contiguous()
    if tensor.kind == GGMLQuantizationType.F16 and values.abs().max() > LARGEST_F16:
        raise BrokenError(
            f"{tensor.name} holds values beyond {LARGEST_F16:g}, the largest of F16",
            where=str(tensor.stored[0].file),
            remedy="choose --type BF16 or F32",
        )
    if tensor.kind == GGMLQuantizationType.F32:
        return values.numpy()
    encoded: NDArray[Any] = quantize(values.numpy(), tensor.kind)
    return encoded
