from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import cut, load, mask, random_plan, some_ids
from torch import nn

from pipeline.errors import BrokenError
from pipeline.export.proof import Proof, prove
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.stages.base import Base

TinyBase = Callable[..., Base]


def proof_of(base: Base, folder: Path, plan: Plan, spoil: Callable[[nn.Module], None]) -> Proof:
    def pruned() -> nn.Module:
        model: nn.Module = load(folder, torch.float32)
        spoil(model)
        return model

    return prove(
        load_base=lambda: load(base.model.path, torch.float32),
        load_pruned=pruned,
        masking=lambda model: mask(base, model, plan),
        sequences_NS=some_ids(base, (4, 64)),
    )


def nothing(_: nn.Module) -> None:
    pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_right_cut_is_proven(tiny_base: TinyBase, tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_base("llama", dtype=dtype)
    plan = random_plan(base.dimensions, 0, ffn=48, groups=2)
    cut(base, tmp_path, plan)
    proof = proof_of(base, tmp_path, plan, nothing)
    assert proof.max_difference < 1e-4
    assert proof.mean_difference <= proof.max_difference
    assert proof.same_top1 == 1.0
    assert proof.tokens == 256
    assert proof.to_dict()["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["ffn", "query_heads"])
def test_one_wrong_index_in_one_layer_is_found(
    tiny_base: TinyBase, tmp_path: Path, kind: str
) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    plan = random_plan(base.dimensions, 0, ffn=48, per_group=1)
    kept = plan.layers[1]
    wrong = {
        "ffn": lambda: LayerPlan(
            tuple(sorted({*kept.ffn[1:], plan.removed_ffn(1)[0]})), kept.query_heads, kept.kv_heads
        ),
        "query_heads": lambda: LayerPlan(
            kept.ffn, (kept.query_heads[0] ^ 1, *kept.query_heads[1:]), kept.kv_heads
        ),
    }[kind]()
    tampered = Plan(plan.ffn, plan.heads, plan.kv_heads, (plan.layers[0], wrong, plan.layers[2]))
    cut(base, tmp_path, tampered)
    with pytest.raises(BrokenError, match="does not compute what the masked original computes"):
        proof_of(base, tmp_path, plan, nothing)


def test_two_swapped_rows_are_found(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    plan = random_plan(base.dimensions, 0, ffn=48)
    cut(base, tmp_path, plan)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name][[1, 0, *range(2, 48)]].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BrokenError, match="logits differ"):
        proof_of(base, tmp_path, plan, nothing)


def test_not_a_number_is_no_proof(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    plan = random_plan(base.dimensions, 0, ffn=48)
    cut(base, tmp_path, plan)

    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.lm_head.weight[3, 3] = torch.nan  # type: ignore[index,union-attr]

    with pytest.raises(BrokenError, match="nan"):
        proof_of(base, tmp_path, plan, spoil)
