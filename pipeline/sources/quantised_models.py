"""Block-quantised weights as plain ones: fp8 with block scales, and mxfp4.

A row or column of such a tensor means nothing without the scales of its blocks, so the tensors are
multiplied out, one at a time, before anything is scored or cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pipeline.cache import write_json
from pipeline.errors import InputError
from pipeline.sources.model_folder import read_config, safetensors_files
from pipeline.sources.shards import SHARD_BYTES, write_shards

FORMAT_VERSION = 1  # part of the cache key: raise it when the converted folder changes
METHODS = ("fp8", "mxfp4")
KEYS = ("quantization_config", "compression_config")
FP8_SCALE = "_scale_inv"  # after the name of the weight
FP8_BLOCK = (128, 128)  # where the config says none, as in transformers
FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
ACTIVATION_SCALES = (".activation_scale", ".input_scale")  # of arithmetic that is not done here
MXFP4 = ("_blocks", "_scales")  # after the name of the weight
MXFP4_ROWS = 1 << 20  # of 32 values each, that are unpacked at once


def quantisation(config: Mapping[str, Any]) -> str | None:
    """How a model's weights are quantised, by the name in its config; None if they are not."""
    if (settings := _settings(config)) is None:
        return None
    bits = "load_in_4bit" in settings or "load_in_8bit" in settings
    return str(settings.get("quant_method", "bitsandbytes" if bits else "unknown"))


def check_quantisation(config: Mapping[str, Any], where: str, *, allowed: bool) -> str | None:
    """The quantisation that is to be undone; None if there is none.

    Args:
        config: the model's config.
        where: what the user calls the model, for errors.
        allowed: the recipe asks for it.

    Raises:
        InputError: it cannot be undone, or the recipe does not ask for it.
    """
    method = quantisation(config)
    if method is None or (method in METHODS and allowed):
        return method
    remedy = "give the model that it was quantised from, in bfloat16, float16 or float32"
    if method in METHODS:
        remedy = "set model.dequantise to true, which converts it to model.dtype once, or " + remedy
    raise InputError(
        f"the model is quantised ({method}), and single rows and columns of its weights mean "
        "nothing",
        where=where,
        remedy=remedy,
    )


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model with plain weights."""
    return {key: value for key, value in config.items() if key not in KEYS}


def convert(
    source: Path, folder: Path, where: str, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a quantised model's weights and config as those of a plain one.

    Products are taken in float32 (mxfp4: exact powers of two) and rounded once. All floating-point
    tensors are stored in `dtype`.

    Args:
        source: folder with safetensors and a config whose quantisation is one of `METHODS`.
        folder: existing folder that receives weights and config.
        where: what the user calls the model, for errors.
        dtype: type of the stored weights, such as "bfloat16".
        shard_bytes: size at which a new file begins.

    Raises:
        InputError: scales are missing, do not fit, or give values that are not finite.
    """
    config = read_config(source, where)
    files = {name: file for file in safetensors_files(source, where) for name in _names(file)}
    tensors = {"fp8": _fp8, "mxfp4": _mxfp4}[str(quantisation(config))](files, config, dtype)
    write_shards(folder, _finite(tensors, dtype, where), shard_bytes)
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    write_json(folder / "config.json", without_quantisation(config) | {key: dtype})


def dequantise_fp8(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Multiply each block of a weight by its scale; float32.

    Args:
        weight: [..., rows, columns] in float8.
        scales: one for each block, [..., ⌈rows / block⌉, ⌈columns / block⌉], or a single one.
        block: rows and columns of a block; the last of a row or column may be smaller.

    Raises:
        ValueError: there are not as many scales as blocks.
    """
    values = weight.float()
    if scales.numel() == 1:
        return values * scales.float().reshape(())
    rows, columns = weight.shape[-2:]
    blocks = (-(-rows // block[0]), -(-columns // block[1]))
    if scales.shape != (*weight.shape[:-2], *blocks):
        raise ValueError(
            f"its scales are {list(scales.shape)}, and it has {list(blocks)} blocks of "
            f"{block[0]} × {block[1]}"
        )
    by_row = scales.float().repeat_interleave(block[0], dim=-2)[..., :rows, :]
    return values * by_row.repeat_interleave(block[1], dim=-1)[..., :columns]


def _settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a config says of its quantisation; None if it says nothing."""
    found = next((config[key] for key in KEYS if config.get(key) is not None), None)
    return found if found is None or isinstance(found, dict) else {}


def _fp8(
    files: Mapping[str, Path], config: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Tensor]]:
    size = (_settings(config) or {}).get("weight_block_size")
    match FP8_BLOCK if size is None else size:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            pass
        case _:
            raise InputError(
                f"its config gives fp8 weights the block size {size!r}",
                where="config.json",
                remedy="download or copy the model again; a block size is two numbers, such as "
                "[128, 128]",
            )
    for name, file in files.items():
        if name.endswith(FP8_SCALE) and name.removesuffix(FP8_SCALE) not in files:
            raise _wrong(name, file, "it scales no weight")
        if name.endswith((FP8_SCALE, *ACTIVATION_SCALES)):
            continue
        tensor = _read(files, name)
        scale = name + FP8_SCALE
        if tensor.dtype not in FP8_TYPES:
            if scale in files:
                raise _wrong(name, file, f"it is {tensor.dtype} and has fp8 scales")
        elif scale not in files:
            raise _wrong(name, file, "it is fp8 and has no scales")
        else:
            try:
                tensor = dequantise_fp8(tensor, _read(files, scale), (rows, columns))
            except ValueError as error:
                raise _wrong(name, file, str(error)) from error
        yield name, _in(tensor, dtype)


def _mxfp4(
    files: Mapping[str, Path], config: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Tensor]]:
    blocks, scales = MXFP4
    for name, file in files.items():
        if name.endswith(scales) and name.removesuffix(scales) + blocks in files:
            continue
        tensor = _read(files, name)
        if not (name.endswith(blocks) and tensor.dtype == torch.uint8):
            yield name, _in(tensor, dtype)
            continue
        weight = name.removesuffix(blocks)
        if weight + scales not in files:
            raise _wrong(name, file, "it is mxfp4 and has no scales")
        exponents = _read(files, weight + scales)
        if exponents.shape != tensor.shape[:-1]:
            raise _wrong(
                name, file, f"it is {list(tensor.shape)}, its scales {list(exponents.shape)}"
            )
        plain: Tensor = convert_moe_packed_tensors(
            tensor, exponents, dtype=getattr(torch, dtype), rows_per_chunk=MXFP4_ROWS
        )
        yield weight, plain


def _finite(
    tensors: Iterator[tuple[str, Tensor]], dtype: str, where: str
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} holds values that are not finite in {dtype}",
                where=where,
                remedy="set model.dtype to bfloat16 or float32, or download the model again",
            )
        yield name, tensor.contiguous()


def _in(tensor: Tensor, dtype: str) -> Tensor:
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read(files: Mapping[str, Path], name: str) -> Tensor:
    with safe_open(files[name], framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _wrong(name: str, file: Path, why: str) -> InputError:
    return InputError(
        f"{name} cannot be dequantised: {why}",
        where=str(file),
        remedy="download or copy the model again",
    )
