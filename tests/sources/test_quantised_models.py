from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from pipeline.cache import Cache, read_json
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.recipe.texts import Model
from pipeline.sources.models import describe_model, resolve_model
from pipeline.sources.quantised_models import convert, dequantise_fp8

from .loopback_hub import LoopbackHub
from .test_hub import hub as hub  # the fixture

BLOCK = (16, 8)
WEIGHTS = "model.safetensors"
FP8 = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"}
QUANTISED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantise(weight: Tensor, block: tuple[int, int] = BLOCK) -> tuple[Tensor, Tensor]:
    """Scale each block to the largest value that float8 has, as DeepSeek's checkpoints are."""
    rows, columns = weight.shape
    stored = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (
                slice(i * block[0], (i + 1) * block[0]),
                slice(j * block[1], (j + 1) * block[1]),
            )
            scales[i, j] = weight[place].abs().max() / 448
            stored[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
    return stored, scales


def make_fp8(folder: Path, block: tuple[int, int] = BLOCK) -> None:
    """Quantise a folder's linear layers in place."""
    tensors = load_file(folder / WEIGHTS)
    for name in list(tensors):
        if name.split(".")[-2] in QUANTISED:
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensors[name].float(), block)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    edit_config(folder, quantization_config=FP8 | {"weight_block_size": list(block)})


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(read_json(path) | fields))


@pytest.mark.parametrize("shape", [(16, 8), (64, 48), (3, 32, 16)])
def test_fp8_is_what_transformers_makes_of_it(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(*shape[:-2], shape[-2] // BLOCK[0], shape[-1] // BLOCK[1])
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=torch.float32)
    assert torch.equal(dequantise_fp8(weight, scales, BLOCK), theirs)


def test_the_last_blocks_may_be_smaller() -> None:
    torch.manual_seed(0)
    weight, scales = torch.randn(37, 19).to(torch.float8_e4m3fn), torch.rand(3, 3)
    found = dequantise_fp8(weight, scales, BLOCK)
    for row in range(37):
        for column in range(19):
            scale = scales[row // BLOCK[0], column // BLOCK[1]]
            assert found[row, column] == weight[row, column].float() * scale


def test_one_scale_for_all() -> None:
    weight = torch.randn(4, 4).to(torch.float8_e4m3fn)
    assert torch.equal(dequantise_fp8(weight, torch.tensor(3.0), BLOCK), weight.float() * 3)


def test_scales_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\], and it has \[3, 2\] blocks of 16 × 8"):
        dequantise_fp8(torch.zeros(48, 16).to(torch.float8_e4m3fn), torch.ones(2, 2), BLOCK)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_fp8_model(
    model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress, dtype: str
) -> None:
    before = load_file(model_folder / WEIGHTS)
    make_fp8(model_folder)
    model = Model.model_validate({"source": {"path": "tiny"}, "dequantise": True, "dtype": dtype})
    described = describe_model(model, tmp_path, cache)
    assert (described.kind, described.ready) == ("fp8", False)
    found = resolve_model(model, tmp_path, cache, quiet)
    assert found.origin["dequantised"] == f"fp8 to {dtype}"
    assert len(found.origin["quantised_sha256"]) == 64
    config = read_json(found.path / "config.json")
    assert "quantization_config" not in config
    assert config["dtype"] == dtype
    after = load_file(found.path / WEIGHTS)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == getattr(torch, dtype)
        expected = before[name]
        if name.split(".")[-2] in QUANTISED:
            expected = dequantise_fp8(*quantise(expected), BLOCK)
            assert (tensor.float() - before[name]).norm() < 0.05 * before[name].norm()
        assert torch.equal(tensor, expected.to(tensor.dtype))
    assert describe_model(model, tmp_path, cache).ready
    AutoModelForCausalLM.from_pretrained(found.path)


@pytest.mark.parametrize("size", [[0, 128], [128], "128x128", [16.5, 8], 0])
def test_an_impossible_block_size(
    model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress, size: Any
) -> None:
    make_fp8(model_folder)
    edit_config(model_folder, quantization_config=FP8 | {"weight_block_size": size})
    model = Model.model_validate({"source": {"path": "tiny"}, "dequantise": True})
    with pytest.raises(InputError, match="gives fp8 weights the block size"):
        resolve_model(model, tmp_path, cache, quiet)


def test_fp8_under_the_other_name_of_its_settings(
    model_folder: Path, tmp_path: Path, cache: Cache, quiet: Progress
) -> None:
    make_fp8(model_folder)
    model = Model.model_validate({"source": {"path": "tiny"}, "dequantise": True})
    expected = load_file(resolve_model(model, tmp_path, cache, quiet).path / WEIGHTS)
    settings = read_json(model_folder / "config.json")["quantization_config"]
    edit_config(model_folder, quantization_config=None, compression_config=settings)
    found = resolve_model(model, tmp_path, Cache(tmp_path / "other"), quiet)
    for name, tensor in load_file(found.path / WEIGHTS).items():
        assert torch.equal(tensor, expected[name])


def make_mxfp4(folder: Path) -> Any:
    """A tiny gpt-oss whose experts are packed as its checkpoints are, at random."""
    config = AutoConfig.for_model(
        "gpt_oss",
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=50,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return pack_experts(folder)


def pack_experts(folder: Path) -> Any:
    """Put random packed experts in the place of a gpt-oss's own."""
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    return tensors


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_an_mxfp4_model(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    (target := tmp_path / "target").mkdir()
    stored = make_mxfp4(source)
    (target / "config.json").write_text("{}")
    convert(source, target, "tiny", "float32", shard_bytes=50_000)
    assert "quantization_config" not in read_json(target / "config.json")
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    # Two values a byte, the lower half first; a scale is a power of two (OCP MX, version 1.0).
    name = "model.layers.1.mlp.experts.gate_up_proj"
    weight_EIO = model.get_parameter(name).detach()
    blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        e, i, o = (
            int(torch.randint(length, (), generator=generator)) for length in weight_EIO.shape
        )
        byte = int(blocks[e, o, i // 32, i % 32 // 2])
        half = byte >> 4 if i % 2 else byte & 15
        value = FP4[half & 7] * (-1 if half & 8 else 1) * 2.0 ** (int(scales[e, o, i // 32]) - 127)
        assert float(weight_EIO[e, i, o]) == value
    # transformers dequantises the checkpoint itself where it has no kernels for it.
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name


def remove(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(f"{UP}_scale_inv"), f"{UP} cannot be dequantised: it is fp8 and has no scales"),
        (remove(UP), "it scales no weight"),
        (put(f"{UP}_scale_inv", torch.ones(2, 3)), r"its scales are \[2, 3\], and it has \[4, 4\]"),
        (put(f"{UP}_scale_inv", torch.full((4, 4), torch.nan)), "not finite in bfloat16"),
        (put(UP, torch.ones(64, 32)), "it is torch.float32 and has fp8 scales"),
    ],
)
def test_broken_scales(
    model_folder: Path,
    tmp_path: Path,
    cache: Cache,
    quiet: Progress,
    change: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    make_fp8(model_folder)
    tensors = load_file(model_folder / WEIGHTS)
    change(tensors)
    save_file(tensors, model_folder / WEIGHTS, {"format": "pt"})
    model = Model.model_validate({"source": {"path": "tiny"}, "dequantise": True})
    with pytest.raises(InputError, match=message):
        resolve_model(model, tmp_path, cache, quiet)
    assert not list((cache.root / "base").glob("*"))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, "fbgemm_fp8"),
        ({"quantization_config": {}}, "unknown"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
@pytest.mark.parametrize("dequantise", [False, True])
def test_others_are_refused_by_name(
    model_folder: Path,
    tmp_path: Path,
    cache: Cache,
    quiet: Progress,
    config: dict[str, Any],
    name: str,
    dequantise: bool,
) -> None:
    edit_config(model_folder, **config)
    model = Model.model_validate({"source": {"path": "tiny"}, "dequantise": dequantise})
    for find in (describe_model, lambda *a: resolve_model(*a, quiet)):
        with pytest.raises(InputError, match=rf"the model is quantised \({name}\)") as error:
            find(model, tmp_path, cache)
        assert "model.dequantise" not in error.value.remedy


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_blocks_are_refused_unless_asked_for(
    hub: LoopbackHub,
    model_folder: Path,
    tmp_path: Path,
    cache: Cache,
    quiet: Progress,
    method: str,
) -> None:
    edit_config(model_folder, quantization_config={"quant_method": method})
    hub.folders["models/org/tiny"] = model_folder
    for source in ({"path": "tiny"}, {"hub": "org/tiny"}):
        model = Model.model_validate({"source": source})
        for find in (describe_model, lambda *a: resolve_model(*a, quiet)):
            with pytest.raises(InputError, match=rf"quantised \({method}\)") as error:
                find(model, tmp_path, cache)
            assert "set model.dequantise to true" in error.value.remedy
    allowed = Model.model_validate({"source": {"hub": "org/tiny"}, "dequantise": True})
    described = describe_model(allowed, tmp_path, cache)
    assert (described.kind, described.ready) == (f"hub, {method}", False)
    assert "quantization_config" not in described.config
