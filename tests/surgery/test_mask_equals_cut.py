"""The mask and the slice come from one description: they must compute the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import (
    DENSE,
    FAMILIES,
    MIXTURES,
    base_of,
    cut,
    left_padded_ids,
    load,
    logits,
    mask,
    random_plan,
    some_ids,
)

from pipeline.cache import read_json, write_json
from pipeline.selection.plan import Plan
from pipeline.stages.base import Base, check_loads, load_model
from pipeline.surgery.compensation import CompensationMap, compensation_map
from pipeline.surgery.projections import projections

TinyBase = Callable[..., Base]
EXACT = 1e-12


def random_maps(base: Base, plan: Plan) -> dict[str, CompensationMap]:
    """Compensation of every output projection, for second moments of correlated noise."""
    sizes = base.dimensions
    maps = {}
    for layer in range(sizes.layers):
        for each in projections(base.architecture, sizes, layer):
            stays, goes = each.units_of(plan, layer, sizes.head_dim)
            if stays and goes:
                x_TU = torch.randn(200, len(stays) + len(goes), dtype=torch.float64)
                x_TU = x_TU + x_TU.roll(1, dims=1)
                maps[each.key] = compensation_map(
                    x_TU.T @ x_TU / 200,
                    stays,
                    goes,
                    ridge=0.01,
                    dtype=base.tensors[each.tensor].torch_dtype,
                    where=each.key,
                )
    return maps


def some_plan(
    base: Base,
    seed: int,
    ffn: int | tuple[int, ...],
    groups: int,
    per_group: int,
    experts: int = 0,
) -> Plan:
    """A random plan that the family can have."""
    sizes = base.dimensions
    if sizes.experts and not isinstance(ffn, int):
        ffn = min(ffn)
    if base.architecture.attention.untouchable:
        return random_plan(sizes, seed, ffn=ffn, experts=experts)
    groups, per_group = min(groups, sizes.kv_heads), min(per_group, sizes.heads_per_group)
    return random_plan(
        sizes,
        seed,
        ffn=ffn,
        groups=groups,
        per_group=per_group,
        experts=min(experts, sizes.experts),
    )


def difference(base: Base, folder: Path, plan: Plan, maps: dict[str, CompensationMap]) -> float:
    ids = some_ids(base)
    model = load(base.model.path)
    whole = logits(model, ids)
    with mask(base, model, plan, maps):
        expected = logits(model, ids)
    assert (whole - expected).abs().max() > 1e-3  # the mask does something
    return float((expected - logits(load(folder), ids)).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1000),
    ffn=st.one_of(st.integers(1, 63), st.tuples(*[st.integers(1, 64)] * 3)),
    groups=st.integers(1, 6),
    per_group=st.integers(1, 2),
    experts=st.integers(2, 4),
    compensated=st.booleans(),
)
def test_the_cut_model_computes_what_the_masked_one_does(
    tiny_base: TinyBase,
    tmp_path: Path,
    family: str,
    seed: int,
    ffn: int | tuple[int, int, int],
    groups: int,
    per_group: int,
    experts: int,
    compensated: bool,
) -> None:
    """Uniform, padded, or with zeros in the place of heads: whatever the plan and family need."""
    base = tiny_base(family, dtype=torch.float64)
    plan = some_plan(base, seed, ffn, groups, per_group, experts)
    maps = random_maps(base, plan) if compensated else {}
    folder = tmp_path / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    report = cut(base, folder, plan, maps)
    assert sorted({key.partition("[")[0] for key in maps}) == report.compensated
    assert difference(base, folder, plan, maps) < EXACT


def test_biases_of_every_projection_are_cut(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("llama", dtype=torch.float64, attention_bias=True, mlp_bias=True)
    plan = random_plan(base.dimensions, 1, ffn=40, groups=2, per_group=1)
    report = cut(base, tmp_path / "cut", plan)
    assert "model.layers.0.mlp.gate_proj.bias" in report.sliced
    assert "model.layers.0.self_attn.v_proj.bias" in report.sliced
    assert "model.layers.0.self_attn.o_proj.bias" not in report.sliced
    assert difference(base, tmp_path / "cut", plan, {}) < EXACT


def test_without_key_value_groups(tiny_base: TinyBase, tmp_path: Path) -> None:
    base = tiny_base("mistral", dtype=torch.float64, num_key_value_heads=6)
    plan = random_plan(base.dimensions, 2, groups=5)  # 5 does not divide 48: mistral may
    cut(base, tmp_path / "cut", plan)
    assert difference(base, tmp_path / "cut", plan, {}) < EXACT


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_in_the_name_of_a_mistral(tiny_base: TinyBase, tmp_path: Path, tied: bool) -> None:
    """Five heads do not divide 48, which a Llama's config refuses and a Mistral's does not."""
    base = tiny_base("llama", dtype=torch.float64, num_key_value_heads=6, tie_word_embeddings=tied)
    plan = random_plan(base.dimensions, 2, ffn=40, groups=5)
    maps = random_maps(base, plan)
    cut(base, tmp_path / "cut", plan, maps, relabel=True)
    model = load(tmp_path / "cut")
    assert (type(model).__name__, model.config.num_attention_heads) == ("MistralForCausalLM", 5)
    assert model.config.sliding_window is None
    assert difference(base, tmp_path / "cut", plan, maps) < EXACT
    text = "def x ( y ) : return 12 the cat"
    ids = base.tokenizer(text)["input_ids"]
    assert base_of(tmp_path / "cut").tokenizer(text)["input_ids"] == ids
    # What the base's config leaves to a Llama's defaults, which are not a Mistral's.
    (bare := tmp_path / "bare").mkdir()
    shutil.copytree(base.model.path, bare, dirs_exist_ok=True)
    config = read_json(bare / "config.json")
    for key, default in (("rms_norm_eps", 1e-6), ("hidden_act", "silu")):
        assert config.pop(key) == default
    del config["max_position_embeddings"]
    write_json(bare / "config.json", config)
    cut(base_of(bare), tmp_path / "of-bare", plan, maps, relabel=True)
    written = read_json(tmp_path / "of-bare" / "config.json")
    assert written["max_position_embeddings"] == 2048 and written["rms_norm_eps"] == 1e-6
    legal = random_plan(base.dimensions, 2, groups=4)
    cut(base, tmp_path / "legal", legal, relabel=True)
    assert load(tmp_path / "legal").config.model_type == "llama"  # whose config can say four


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_stay_tied_or_untied(tiny_base: TinyBase, tmp_path: Path, tied: bool) -> None:
    base = tiny_base("llama", dtype=torch.float64, tie_word_embeddings=tied)
    plan = random_plan(base.dimensions, 3, ffn=32)
    cut(base, tmp_path / "cut", plan)
    assert ("lm_head.weight" in base.tensors) is not tied
    model = load(tmp_path / "cut")
    same = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert same is tied
    assert difference(base, tmp_path / "cut", plan, {}) < EXACT


@pytest.mark.usefixtures("finite_masks")
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_cache_and_left_padding(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    base = tiny_base(family, dtype=torch.float64)
    plan = some_plan(base, 4, (24, 20, 24), 2, 1, experts=3)
    cut(base, tmp_path / "cut", plan)
    assert_generates_alike(base, tmp_path / "cut", plan, {})


def assert_generates_alike(
    base: Base, folder: Path, plan: Plan, maps: dict[str, CompensationMap]
) -> None:
    """Compare left-padded logits, and what is generated with cache and without."""
    ids, attended = left_padded_ids(base)
    settings_ = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    model, small = load(base.model.path), load(folder)
    with mask(base, model, plan, maps):
        expected = model.generate(ids, attention_mask=attended, **settings_)
        expected_logits = logits(model, ids, attention_mask=attended)
    assert torch.equal(small.generate(ids, attention_mask=attended, **settings_), expected)
    uncached = small.generate(ids, attention_mask=attended, use_cache=False, **settings_)
    assert torch.equal(uncached, expected)
    found, rows = logits(small, ids, attention_mask=attended), attended.bool()
    assert expected_logits[rows].isfinite().all()
    assert (found - expected_logits)[rows].abs().max() < EXACT


def test_a_fresh_process_loads_all_of_them_without_this_package(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    bases = {family: tiny_base(family, dtype=torch.float64) for family in FAMILIES}
    plans = {}
    for family, base in bases.items():
        plans[family] = some_plan(base, 5, (32, 24, 32), 2, 1, experts=3)
        cut(base, tmp_path / family, plans[family])
        torch.save(some_ids(base), tmp_path / family / "ids.pt")
    script = """
import pathlib, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, trust_remote_code=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    if model.config._experts_implementation == "grouped_mm":
        model.set_experts_implementation("eager")  # grouped products know no float64
    with torch.inference_mode():
        torch.save(model(torch.load(folder / "ids.pt")).logits, folder / "logits.pt")
    model.save_pretrained(folder / "again")
assert "pipeline" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    for family, base in bases.items():
        ids, model = some_ids(base), load(base.model.path)
        with mask(base, model, plans[family]):
            expected = logits(model, ids)
        fresh = torch.load(tmp_path / family / "logits.pt")
        assert (fresh - expected).abs().max() < EXACT, family
        again = logits(load(tmp_path / family / "again"), ids)
        assert (again - expected).abs().max() < EXACT, family


# Buffers that older checkpoints of a family store, by layer.
OLD_BUFFERS = {
    "llama": ("model.layers.{}.self_attn.rotary_emb.inv_freq",),
    "gpt2": ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
    "gpt_neo": (
        "transformer.h.{}.attn.attention.bias",
        "transformer.h.{}.attn.attention.masked_bias",
    ),
    "gptj": ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
    "codegen": ("transformer.h.{}.attn.causal_mask",),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.bias",
        "gpt_neox.layers.{}.attention.masked_bias",
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    ),
}


HEAD_OF_ITS_OWN = (
    "phi",
    "phi_normed",
    "gptj",
    "codegen",
)  # it has a bias: the decoder alone is no such model


@pytest.mark.usefixtures("finite_masks")
@pytest.mark.parametrize("family", DENSE)
def test_a_checkpoint_in_the_older_layout(tiny_base: TinyBase, tmp_path: Path, family: str) -> None:
    """The decoder alone, names without their first word and the head tied; and buffers stored."""
    made = tiny_base(family, dtype=torch.float64, tie_word_embeddings=True)
    old = tmp_path / "old"
    shutil.copytree(made.model.path, old)
    model = load(old)
    words = f"{model.base_model_prefix}."
    tensors = load_file(old / "model.safetensors")
    for layer in range(made.dimensions.layers):
        for name in OLD_BUFFERS.get(family, ()):
            tensors[name.format(layer)] = torch.ones(1, 1, 4, 4)
    alone = family not in HEAD_OF_ITS_OWN
    assert all(name.startswith(words) for name in tensors) is alone
    if alone:
        tensors = {name.removeprefix(words): tensor for name, tensor in tensors.items()}
    save_file(tensors, old / "model.safetensors", {"format": "pt"})
    base = base_of(old)
    check_loads(base)  # as `check` does, and as runs do
    assert load_model(old, "float64").config.model_type == base.config.model_type
    plan = some_plan(base, 6, (40, 32, 40), 2, 1)
    maps = random_maps(base, plan)
    report = cut(base, tmp_path / "cut", plan, maps)
    assert report.compensated
    assert all(name.startswith(words) is not alone for name in report.compensated)
    assert difference(base, tmp_path / "cut", plan, maps) < EXACT
    assert_generates_alike(base, tmp_path / "cut", plan, maps)
    load(tmp_path / "cut").save_pretrained(tmp_path / "again")
    assert difference(base, tmp_path / "again", plan, maps) < EXACT


@pytest.mark.parametrize("family", [family for family in MIXTURES if family != "gpt_oss"])
def test_a_mixture_that_stacks_its_experts(
    tiny_base: TinyBase, tmp_path: Path, family: str
) -> None:
    """The layout of the loaded module, which checkpoints may have too."""
    made = tiny_base(family, dtype=torch.float64)
    stacked = tmp_path / "stacked"
    shutil.copytree(made.model.path, stacked)
    load(made.model.path).save_pretrained(stacked, save_original_format=False)
    base = base_of(stacked)
    assert "model.layers.0.mlp.experts.down_proj" in base.tensors
    plan = some_plan(base, 6, 20, 2, 1, experts=3)
    maps = random_maps(base, plan)
    report = cut(base, tmp_path / "cut", plan, maps)
    assert "model.layers.0.mlp.experts.down_proj" in report.compensated
    assert difference(base, tmp_path / "cut", plan, maps) < EXACT
    assert_generates_alike(base, tmp_path / "cut", plan, maps)


def test_a_mixture_whose_config_leaves_the_number_of_experts_to_its_family(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    made = tiny_base("mixtral", dtype=torch.float64, num_local_experts=8)
    shutil.copytree(made.model.path, tmp_path / "bare")
    config = read_json(tmp_path / "bare/config.json")
    assert config.pop("num_local_experts") == 8
    write_json(tmp_path / "bare/config.json", config)
    base = base_of(tmp_path / "bare")
    plan = random_plan(base.dimensions, 3, experts=5)
    cut(base, tmp_path / "cut", plan)
    assert difference(base, tmp_path / "cut", plan, {}) < EXACT


def test_the_mask_leaves_no_trace(tiny_base: TinyBase) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    model = load(base.model.path, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    first = random_plan(base.dimensions, 6, ffn=48, groups=2)
    second = random_plan(base.dimensions, 7, ffn=32)
    with mask(base, model, first, random_maps(base, first)):
        assert any(not torch.equal(before[n], t) for n, t in model.state_dict().items())
        with mask(base, model, second, random_maps(base, second)):
            pass
    with pytest.raises(KeyboardInterrupt), mask(base, model, second, random_maps(base, second)):
        raise KeyboardInterrupt
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
