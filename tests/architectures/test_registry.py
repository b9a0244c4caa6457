from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tiny_models import FAMILIES, load, random_plan
from transformers import AutoConfig

from pipeline.architectures.registry import (
    ARCHITECTURES,
    all_cuts,
    check_tensors,
    describe,
    dimensions,
    output_modules,
)
from pipeline.errors import InputError
from pipeline.stages.base import Base
from pipeline.surgery.coordinates import tensor_cuts

TinyBase = Callable[..., Base]


def test_every_family_that_is_described_is_tested() -> None:
    described = [name for each in ARCHITECTURES for name in each.model_types]
    assert sorted(described) == sorted(FAMILIES)
    assert all(describe(name, "x").model_types for name in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_description_fits_what_transformers_stores(tiny_base: TinyBase, family: str) -> None:
    base = tiny_base(family)
    assert base.architecture is describe(family, "x")
    sizes = base.dimensions
    assert (sizes.layers, sizes.hidden, sizes.ffn) == (3, 48, 64)
    assert (sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.heads_per_group) == (6, 3, 8, 2)
    widths = {
        base.architecture.module(layer, cut.tensor): cut.axis
        for layer in range(sizes.layers)
        for cut in all_cuts(base.architecture)
    }
    names = [name for name in base.tensors if ".layers." in name and "norm" not in name]
    # everything in a layer is cut, but for norms and the biases of output projections
    assert {name for name in names if name not in widths} == set()
    lengths = {64, 6 * 8, 3 * 8}
    assert {base.tensors[name].shape[widths[name]] for name in names} <= lengths


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_with_an_axis_of_units_is_in_a_plans_cuts(
    tiny_base: TinyBase, family: str
) -> None:
    base = tiny_base(family)
    plan = random_plan(base.dimensions, 0, ffn=16, groups=1)
    cuts = tensor_cuts(base.architecture, plan, base.dimensions.head_dim)
    for name, tensor in base.tensors.items():
        is_cut = "_proj." in name
        assert (name in cuts) is is_cut, name
        if is_cut:
            assert tensor.shape[cuts[name].axis] == cuts[name].total
    only_ffn = tensor_cuts(base.architecture, random_plan(base.dimensions, 0, ffn=16), 8)
    assert all(".mlp." in name for name in only_ffn)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_takes_the_head_counts_that_the_description_says(family: str) -> None:
    def make(heads: int) -> object:
        return AutoConfig.for_model(
            family, hidden_size=48, num_attention_heads=heads, num_key_value_heads=1, head_dim=8
        )

    make(4)
    if describe(family, "x").attention.heads_divide_hidden:
        with pytest.raises(Exception, match="multiple of the number of attention heads"):
            make(5)
    else:
        make(5)


def test_an_unknown_architecture_is_named_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"'gpt_neox' is not described.*llama") as caught:
        describe("gpt_neox", where="org/model")
    assert caught.value.where == "org/model"
    assert "pipeline/architectures/" in caught.value.remedy


def test_sizes_that_a_config_leaves_out() -> None:
    config = SimpleNamespace(
        num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=4
    )
    sizes = dimensions(config, describe("llama", "x"))
    assert (sizes.kv_heads, sizes.head_dim) == (4, 8)


def test_a_tensor_or_module_that_is_missing_is_named(tiny_base: TinyBase) -> None:
    base = tiny_base("llama")
    names = set(base.tensors) - {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(InputError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        check_tensors(base.architecture, 3, names)
    check_tensors(base.architecture, 3, base.tensors)  # biases are optional
    model = load(base.model.path, torch.float32)
    del model.model.layers[2].mlp.down_proj
    with pytest.raises(InputError, match=r"no module 'model\.layers\.2\.mlp\.down_proj'"):
        output_modules(model, base.architecture, "mlp.down_proj")
