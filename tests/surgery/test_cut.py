from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import base_of, cut, load, logits, make_model, random_plan, some_ids
from torch import Tensor

from pipeline.errors import BrokenError, InputError
from pipeline.stages.base import Base
from pipeline.surgery import cut as cut_module
from pipeline.surgery.coordinates import head_coordinates, tensor_cuts
from pipeline.surgery.cut import cut_checkpoint
from pipeline.surgery.safetensors_stream import TORCH_DTYPES, stored_tensors
from pipeline.surgery.tensor_cut import TensorCut

TinyBase = Callable[..., Base]
Usage = namedtuple("Usage", "total used free")


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_type_and_untouched_bytes_are_kept(
    tiny_base: TinyBase, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny_base("qwen2", dtype=dtype)
    plan = random_plan(base.dimensions, 0, ffn=40, groups=2)
    report = cut(base, tmp_path / "cut", plan)
    before, after = all_tensors(base.model.path), all_tensors(tmp_path / "cut")
    cuts = tensor_cuts(base.architecture, base.dimensions, plan)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        expected = before[name]
        if name in cuts:
            expected = expected.index_select(cuts[name].axis, torch.tensor(cuts[name].keep))
        assert bytes_of(tensor) == bytes_of(expected), name
    assert set(report.sliced) == {n for n in before if before[n].shape != after[n].shape}
    assert report.untouched == len(before) - len(report.sliced)
    assert report.parameters == tuple(sum(map(Tensor.numel, t.values())) for t in (before, after))
    assert report.bytes == tuple(n * dtype.itemsize for n in report.parameters)


def test_many_shards_hold_the_same_and_the_index_finds_them(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    plan = random_plan(base.dimensions, 1, ffn=40, groups=2)
    cut(base, tmp_path / "one", plan)
    advanced: list[float] = []
    (tmp_path / "many").mkdir()
    cuts = tensor_cuts(base.architecture, base.dimensions, plan)
    cut_checkpoint(
        base.model.path, tmp_path / "many", cuts, {}, advanced.append, max_shard_bytes=30_000
    )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "one" / name, tmp_path / "many")
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:
        with safe_open(tmp_path / "many" / file, framework="pt") as opened:
            names = set(opened.keys())
        assert names == {n for n, where in index["weight_map"].items() if where == file}
        assert len(names) == 1 or (tmp_path / "many" / file).stat().st_size < 32_000
    one, many = all_tensors(tmp_path / "one"), all_tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(bytes_of(one[name]) == bytes_of(many[name]) for name in one)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in many.values()) == sum(advanced)
    ids = some_ids(base)
    assert torch.equal(logits(load(tmp_path / "one"), ids), logits(load(tmp_path / "many"), ids))
    again = cut(base_of(tmp_path / "many"), tmp_path / "again", _keep_all(tmp_path / "many"))
    assert again.parameters[0] == again.parameters[1]  # a sharded checkpoint can be read, too


def _keep_all(folder: Path):  # type: ignore[no-untyped-def]
    return random_plan(base_of(folder).dimensions, 0)


def test_weights_in_a_second_form_are_left_behind(tmp_path: Path) -> None:
    """Mistral's repositories hold `consolidated.safetensors` beside the weights."""
    folder = make_model(tmp_path / "base")
    save_file({"layers.0.wq": torch.zeros(4)}, folder / "consolidated.safetensors")
    base = base_of(folder)
    cut(base, tmp_path / "cut", random_plan(base.dimensions, 0, ffn=40))
    assert "layers.0.wq" not in all_tensors(tmp_path / "cut")
    assert "model.norm.weight" in all_tensors(tmp_path / "cut")


def test_two_tensors_are_in_memory_at_a_time(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    alive: list[str] = []
    read = cut_module.StoredTensor.read

    def counted(stored: cut_module.StoredTensor) -> Tensor:
        alive.append(stored.name)
        return read(stored)

    monkeypatch.setattr(cut_module.StoredTensor, "read", counted)
    written: list[int] = []
    cuts = tensor_cuts(base.architecture, base.dimensions, random_plan(base.dimensions, 0, ffn=8))
    cut_checkpoint(base.model.path, tmp_path, cuts, {}, lambda _: written.append(len(alive)))
    read_before = [sum(name in cuts for name in list(base.tensors)[: n + 1]) for n in range(30)]
    # One is read while another is written; what is not cut is copied as bytes.
    ahead = [*read_before[1:], read_before[-1]]
    assert all(a <= n <= b for a, n, b in zip(read_before, written, ahead, strict=True))
    assert written[-1] == sum(name in cuts for name in base.tensors)


def test_tensors_that_are_not_cut_pass_through_in_any_type(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    for number, dtype in enumerate((torch.float8_e4m3fn, torch.int8, torch.bool, torch.uint8)):
        tensors[f"other.{number}"] = torch.ones(3, 5).to(dtype)
    tensors["other.empty"] = torch.ones(0, 5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    base = base_of(folder)
    cut(base, tmp_path / "cut", random_plan(base.dimensions, 0, ffn=40))
    after = load_file(tmp_path / "cut/model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("other."):
            assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape
            assert bytes_of(after[name]) == bytes_of(tensor)


def test_no_room_on_the_disk_is_found_before_anything_is_written(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1000, 1000))
    target = tmp_path / "cut"
    target.mkdir()
    with pytest.raises(BrokenError, match="no space left on the disk") as caught:
        cut_checkpoint(base.model.path, target, {}, {}, lambda _: None)
    assert "--out" in caught.value.remedy
    assert list(target.iterdir()) == []


def test_a_plan_of_another_model_is_refused(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama")
    cuts = {
        "model.layers.1.mlp.up_proj.weight": TensorCut(
            (0,), (0, 1), (128,), (2,), "model.layers.1.mlp.up_proj.weight"
        )
    }
    with pytest.raises(BrokenError, match=r"up_proj.*\(64,\) entries.*expects \(128,\)"):
        cut_checkpoint(base.model.path, tmp_path, cuts, {}, lambda _: None)


def test_a_type_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(BrokenError, match="stored as I8"):
        cut_checkpoint(
            tmp_path, tmp_path, {"w": TensorCut((0,), (0,), (4,), (1,), "w")}, {}, lambda _: None
        )


def test_other_types_and_shapes_pass_through(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "small": torch.tensor([[1.5], [2.5]], dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    cut_checkpoint(tmp_path, tmp_path / "out", {}, {}, lambda _: None)
    after = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in tensors.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].shape == tensor.shape
        assert bytes_of(after[name]) == bytes_of(tensor)
    assert [t.name for t in stored_tensors(tmp_path / "out")] == [
        t.name for t in stored_tensors(tmp_path)
    ]


def test_coordinates_of_heads() -> None:
    assert head_coordinates((0, 2), 3) == (0, 1, 2, 6, 7, 8)


@pytest.mark.parametrize(
    "dtype", [*TORCH_DTYPES.values(), torch.int64, torch.bool, torch.float8_e4m3fn]
)
def test_a_tensor_is_read_as_the_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(7).to(dtype),
        "b": torch.arange(12).reshape(3, 4).to(dtype),
        "none": torch.zeros(0, 5).to(dtype),
        "one": torch.tensor(3).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for stored in stored_tensors(tmp_path):
        read, expected = stored.read(), tensors[stored.name]
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.double().tolist() == expected.double().tolist()


def test_a_file_that_became_shorter_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    (stored,) = stored_tensors(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="cut short"):
        stored.read()
