"""Writing the GGUF file, one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
)
from numpy.typing import NDArray
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pipeline.errors import InputError
from pipeline.export.gguf.checkpoint import Checkpoint, gguf_architecture
from pipeline.export.gguf.families import GgufFamily
from pipeline.export.gguf.limits import family_of
from pipeline.export.gguf.tensors import bytes_of, encoded, gguf_tensors
from pipeline.export.gguf.tokenizer import add_tokenizer
from pipeline.surgery.cut import check_room

WeightType = Literal["F32", "F16", "BF16", "Q8_0"]
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
# Config attributes; OLMo and BLOOM have no such attribute, and this in their code or training.
LAYER_NORM_EPSILON = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
DEFAULTS = {"layer_norm_epsilon": 1e-5, "context_length": 2048}


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    weight_type: WeightType,
    about: dict[str, str],
    pre_tokenizer: str | None,
    advance: Callable[[float], None],
) -> list[str]:
    """Write a checkpoint as one GGUF file; it appears whole or not at all.

    Norms, biases, routers and positions stay in float32, as llama.cpp's own converter has it. The
    same checkpoint and versions give the same bytes.

    Args:
        path: file to write.
        checkpoint: what to write.
        weight_type: type of the matrices.
        about: metadata keys, such as `general.name`.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, if it is not recognised.
        advance: called with the stored bytes of each tensor written.

    Returns:
        Names of matrices that had to stay in F16, since their rows are no multiple of a block.

    Raises:
        InputError: llama.cpp has no such model, or would compute something else.
        BrokenError: a weight does not fit into F16.
    """
    family, wanted = family_of(checkpoint), GGMLQuantizationType[weight_type]
    tensors = list(gguf_tensors(checkpoint, family, wanted))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[gguf_architecture(checkpoint, family)])
    for key, value in about.items():
        writer.add_string(key, value)
    writer.add_file_type(FILE_TYPES[weight_type])
    writer.add_quantization_version(2)
    _add_sizes(writer, checkpoint, family)
    add_tokenizer(
        writer, checkpoint.tokenizer, checkpoint.folder, checkpoint.config.vocab_size, pre_tokenizer
    )
    factors = _rotary_factors(checkpoint)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), bytes_of(tensor), tensor.kind
        )
    check_room(path.absolute().parent, sum(bytes_of(tensor) for tensor in tensors))
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for tensor in tensors:
            writer.write_tensor_data(encoded(tensor))
            advance(tensor.size)
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return [t.name for t in tensors if t.kind == GGMLQuantizationType.F16 != wanted]


def _add_sizes(writer: GGUFWriter, checkpoint: Checkpoint, family: GgufFamily) -> None:
    config, sizes = checkpoint.config, checkpoint.sizes
    writer.add_context_length(_context(config, family, str(checkpoint.folder)))
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(_by_layer(checkpoint, "ffn"))
    writer.add_head_count(_by_layer(checkpoint, "heads"))
    writer.add_head_count_kv(_by_layer(checkpoint, "kv_heads"))
    if sizes.experts:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.chosen)
        if family.architecture != MODEL_ARCH.LLAMA:
            writer.add_expert_feed_forward_length(sizes.ffn)
    if sizes.shared:
        writer.add_expert_shared_feed_forward_length(sizes.shared)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "rms_norm_eps", None) is not None:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        found = [getattr(config, name, None) for name in LAYER_NORM_EPSILON]
        stated = [value for value in found if value is not None]
        writer.add_layer_norm_eps((stated or [DEFAULTS["layer_norm_epsilon"]])[0])
    for key, method in family.keys.items():
        if getattr(config, key, None) is not None:
            getattr(writer, method)(getattr(config, key))
    _add_rotary(writer, checkpoint, family)


def _by_layer(checkpoint: Checkpoint, size: str) -> int | list[int]:
    """A size, or those of each layer."""
    found = [getattr(sizes, size) for sizes in checkpoint.layers]
    return found if checkpoint.ragged else int(found[0])


def _context(config: Any, family: GgufFamily, where: str) -> int:
    """Positions for which llama.cpp computes what transformers does."""
    positions = getattr(config, "max_position_embeddings", None) or DEFAULTS["context_length"]
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return int(positions)
    if family.windows is None:  # attends to all positions, which is the same up to the window
        return int(min(positions, window))
    kinds = getattr(config, "layer_types", None) or []
    full = [kind == "full_attention" for kind in kinds]
    if family.windows > 1 and full != [(i + 1) % family.windows == 0 for i in range(len(full))]:
        raise InputError(
            f"llama.cpp's {config.model_type} attends to all positions in every "
            f"{family.windows}th layer, this model in others",
            where=where,
        )
    return int(positions)


def _add_rotary(writer: GGUFWriter, checkpoint: Checkpoint, family: GgufFamily) -> None:
    rotary = getattr(checkpoint.config, "rope_parameters", None)
    if not rotary:
        return
    kinds = ["default", "linear"]
    if local := rotary.get("sliding_attention"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
        _check_rotary(checkpoint, local, ["default"])
    elif family.llama3:
        kinds.append("llama3")
    rotary = rotary.get("full_attention", rotary)
    _check_rotary(checkpoint, rotary, kinds)
    share = rotary.get("partial_rotary_factor", 1.0)
    if share != 1 and not family.partial:
        raise InputError(
            f"llama.cpp's {checkpoint.config.model_type} rotates whole heads, this model a share "
            f"of {share:g}",
            where=str(checkpoint.folder),
        )
    writer.add_rope_dimension_count(int(checkpoint.sizes.head_dim * share))
    writer.add_rope_freq_base(rotary["rope_theta"])
    if rotary.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotary["factor"])


def _check_rotary(checkpoint: Checkpoint, rotary: dict[str, Any], kinds: list[str]) -> None:
    if (kind := rotary.get("rope_type", "default")) not in kinds:
        raise InputError(
            f"rotary positions of type {kind!r} are not written as GGUF for a "
            f"{checkpoint.config.model_type}; {', '.join(kinds)} are",
            where=str(checkpoint.folder),
        )


def _rotary_factors(checkpoint: Checkpoint) -> NDArray[np.float32] | None:
    """What each rotary frequency is divided by in a Llama 3.1 and later."""
    rotary = getattr(checkpoint.config, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "llama3":
        return None
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](checkpoint.config, torch.device("cpu"))
    width = 2 * len(stretched)
    powers = torch.arange(0, width, 2, dtype=torch.float32) / width
    factors: NDArray[np.float32] = (rotary["rope_theta"] ** -powers / stretched).numpy()
    return factors
