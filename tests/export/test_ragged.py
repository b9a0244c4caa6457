"""Layers of different widths and numbers of heads, through the modeling file in the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import (
    DENSE,
    base_of,
    cut,
    left_padded_ids,
    load,
    logits,
    mask,
    random_plan,
    some_ids,
)
from transformers import AutoTokenizer

from pipeline.export.ragged import MODELING_FILE
from pipeline.selection.plan import LayerPlan, Plan
from pipeline.stages.base import Base, load_model

TinyBase = Callable[..., Base]
EXACT = 1e-12
WIDTHS = (40, 24, 64)


def ragged_plan(base: Base, seed: int = 7) -> Plan:
    """Different widths and, as far as the family has heads to lose, different numbers of them."""
    sizes = base.dimensions
    if base.architecture.attention.untouchable:
        return random_plan(sizes, seed, ffn=WIDTHS)
    some = [max(sizes.kv_heads - layer, 1) for layer in range(sizes.layers)]
    plans = [random_plan(sizes, seed, ffn=WIDTHS, groups=groups) for groups in some]
    layers: list[LayerPlan] = [plan.layers[layer] for layer, plan in enumerate(plans)]
    return Plan(sizes.ffn, sizes.heads, sizes.kv_heads, tuple(layers))


@pytest.mark.usefixtures("finite_masks")
@pytest.mark.parametrize("family", DENSE)
def test_a_ragged_checkpoint_computes_what_the_masked_model_does(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    base = tiny_base(family, dtype=torch.float64)
    plan = ragged_plan(base)
    report = cut(base, tmp_path / "cut", plan, ragged=True)
    assert report.parameters[1] < report.parameters[0]
    ids, attended = left_padded_ids(base)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    model, small = load(base.model.path), load(tmp_path / "cut")
    with mask(base, model, plan):
        expected = logits(model, ids, attention_mask=attended)
        generated = model.generate(ids, attention_mask=attended, **settings)
    assert torch.equal(small.generate(ids, attention_mask=attended, **settings), generated)
    found, rows = logits(small, ids, attention_mask=attended), attended.bool()
    assert expected[rows].isfinite().all()
    assert (found - expected)[rows].abs().max() < EXACT


@pytest.mark.parametrize(
    "family", ["qwen2", "smollm3", "granite", "olmo", "cohere", "starcoder2", "phi", "phi3"]
)
def test_layers_that_lose_no_head_beside_others(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    """Of a base whose config leaves `head_dim` to its model, and some layers must now say it."""
    base = tiny_base(family, dtype=torch.float64, head_dim=None)
    plan = ragged_plan(base)
    assert [len(layer.kv_heads) for layer in plan.layers] == [3, 2, 1]
    cut(base, tmp_path / "cut", plan, ragged=True)
    ids, model = some_ids(base), load(base.model.path)
    with mask(base, model, plan):
        expected = logits(model, ids)
    assert (logits(load(tmp_path / "cut"), ids) - expected).abs().max() < EXACT


def test_layers_have_their_own_shapes(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("qwen3")
    plan = ragged_plan(base)
    cut(base, tmp_path / "cut", plan, ragged=True)
    model = load_model(tmp_path / "cut", "float32")
    layers = model.model.layers  # type: ignore[union-attr]
    widths = [layer.mlp.down_proj.in_features for layer in layers]  # type: ignore[union-attr]
    heads = [layer.self_attn.q_proj.out_features // 8 for layer in layers]  # type: ignore[union-attr]
    assert (widths, heads) == ([40, 24, 64], [6, 4, 2])
    assert all(
        tuple(layer.mlp.up_proj.weight.shape) == (width, 48)  # type: ignore[union-attr]
        for layer, width in zip(layers, widths, strict=True)  # type: ignore[arg-type]
    )
    model(input_ids=some_ids(base)).logits.sum().backward()
    assert model.model.layers[1].mlp.up_proj.weight.grad.shape == (24, 48)  # type: ignore[union-attr]


def test_heads_of_all_groups(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("phi3", dtype=torch.float64)
    plan = random_plan(base.dimensions, 3, ffn=WIDTHS, per_group=1)
    cut(base, tmp_path / "cut", plan, ragged=True)
    ids, model = some_ids(base), load(base.model.path)
    with mask(base, model, plan):
        expected = logits(model, ids)
    assert (logits(load(tmp_path / "cut"), ids) - expected).abs().max() < EXACT


def test_a_fresh_process_needs_nothing_but_the_folder(tiny_base: TinyBase, tmp_path: Path) -> None:
    bases = {family: tiny_base(family, dtype=torch.float64) for family in DENSE}
    for family, base in bases.items():
        folder = tmp_path / family
        cut(base, folder, ragged_plan(base), ragged=True)
        torch.save(some_ids(base), folder / "ids.pt")
    script = """
import pathlib, sys, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    ids = torch.load(folder / "ids.pt")
    with torch.inference_mode():
        torch.save(model(ids).logits, folder / "logits.pt")
        model.save_pretrained(folder / "again")
        again = AutoModelForCausalLM.from_pretrained(
            folder / "again", dtype=torch.float64, trust_remote_code=True
        )
        assert torch.equal(again(ids).logits, model(ids).logits)
    if folder.name == "llama":
        sizes = [
            (layer.mlp.down_proj.in_features, layer.self_attn.o_proj.in_features // 8)
            for layer in model.model.layers
        ]
        assert len(set(sizes)) == 3 and sizes == [
            (each.intermediate_size, each.num_attention_heads)
            for each in model.config.per_layer_config  # as caches and engines read it
        ]
        few = {"max_new_tokens": 5, "do_sample": False}
        static = model.generate(ids, cache_implementation="static", **few)
        assert torch.equal(static, model.generate(ids, **few))
        assert model.generate(ids, num_beams=3, **few).shape == static.shape
        alone = AutoModel.from_pretrained(folder, dtype=torch.float64, trust_remote_code=True)
        states = alone(ids).last_hidden_state
        assert torch.equal(model.lm_head(states), model(ids).logits)
assert "pipeline" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for family, base in bases.items():
        ids, model = some_ids(base), load(base.model.path)
        with mask(base, model, ragged_plan(base)):
            expected = logits(model, ids)
        fresh = torch.load(tmp_path / family / "logits.pt")
        assert (fresh - expected).abs().max() < EXACT, family


def test_our_own_loader_never_runs_code_of_the_folder(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama")
    cut(base, tmp_path / "cut", ragged_plan(base), ragged=True)
    evil = tmp_path / "cut" / MODELING_FILE.name
    evil.write_text("raise SystemExit('code of the folder ran')\n")
    model = load_model(tmp_path / "cut", "float32")
    assert logits(model, some_ids(base)).isfinite().all()


def test_the_modeling_file_is_short() -> None:
    lines = MODELING_FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in imports} == {
        "copy",
        "functools",
        "torch",
        "transformers",
    }


def test_the_tokenizer_reads_as_the_base_does(tiny_base: TinyBase, tmp_path: Path) -> None:
    text = "def x ( y ) : return 12 the cat"
    for family in DENSE:
        base = tiny_base(family)
        cut(base, tmp_path / family, ragged_plan(base), ragged=True)
        found = AutoTokenizer.from_pretrained(tmp_path / family)(text)["input_ids"]
        assert found == base.tokenizer(text)["input_ids"], family
        assert base_of(base.model.path).tokenizer(text)["input_ids"] == found
