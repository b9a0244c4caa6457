from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, load, random_plan
from transformers import AutoConfig

from pipeline.architectures import layouts
from pipeline.architectures.description import Dimensions
from pipeline.architectures.registry import (
    ARCHITECTURES,
    check_tensors,
    cut_tensors,
    describe,
    dimensions,
    neuron_tensors,
    output_modules,
)
from pipeline.errors import InputError
from pipeline.stages.base import Base
from pipeline.surgery.coordinates import can_have_heads, tensor_cuts
from pipeline.surgery.tensor_cut import NOTHING

TinyBase = Callable[..., Base]
LAYOUTS = [
    layouts.neurons,
    layouts.gate_then_up,
    layouts.query_heads,
    layouts.key_value_heads,
    layouts.each_query_head,
    layouts.each_key_value_head,
    layouts.queries_keys_values,
    layouts.groups_of_queries_key_value,
    layouts.codegen_blocks,
]


def test_every_family_that_is_described_is_tested(tiny_base: TinyBase) -> None:
    tested = {tiny_base(family).architecture for family in FAMILIES}
    layouts_of = [
        {(each.model_types, each.when) for each in some} for some in (tested, ARCHITECTURES)
    ]
    assert layouts_of[0] == layouts_of[1]
    names = {name for each in ARCHITECTURES for name in each.model_types}
    assert names == {str(fields.get("model_type", name)) for name, fields in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_description_names_everything_that_units_have_entries_in(
    tiny_base: TinyBase, family: str
) -> None:
    """What is left in a layer is added once per token: norms, and output projections' biases."""
    base = tiny_base(family)
    outputs = (base.architecture.feed_forward.output, base.architecture.attention.output)
    described = set(cut_tensors(base.architecture, (base.dimensions,) * 3, base.tensors))
    layer = base.architecture.tensor(1, "")
    left = {
        name.removeprefix(layer) for name in base.tensors.keys() - described if layer in name
    } - {f"{output}.bias" for output in outputs}
    left -= {"mlp.shared_expert_gate.weight"}  # one number a token, by which all of it is scaled
    assert all("norm" in name or name.startswith("ln_") for name in left), left


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_cuts_what_is_described_and_nothing_else(tiny_base: TinyBase, family: str) -> None:
    base = tiny_base(family)
    sizes = base.dimensions
    described = set(cut_tensors(base.architecture, (sizes,) * sizes.layers, base.tensors))
    groups, experts = max(sizes.kv_heads // 2, 1), min(sizes.experts, 3)
    plan = random_plan(sizes, 0, ffn=16, groups=groups, per_group=1, experts=experts)
    cuts = tensor_cuts(base.architecture, sizes, plan)
    assert {name for name in cuts if name in base.tensors} == described
    for name in described:
        assert cuts[name].lengths_of(base.tensors[name].shape) == cuts[name].before
    only_ffn = tensor_cuts(base.architecture, sizes, random_plan(sizes, 0, ffn=16))
    inputs = [located.name for located in neuron_tensors(base.architecture, sizes)]
    assert {name.removeprefix(base.architecture.tensor(1, "")) for name in only_ffn} >= {*inputs}
    assert len(only_ffn) == sizes.layers * len(inputs)
    assert tensor_cuts(base.architecture, sizes, random_plan(sizes, 0)) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_takes_the_head_counts_that_the_description_says(
    tiny_base: TinyBase, family: str
) -> None:
    base = tiny_base(family)
    attention, sizes = base.architecture.attention, base.dimensions

    def make(heads: int) -> Any:
        fields = {attention.heads: heads, attention.key_value_heads: 1, "head_dim": sizes.head_dim}
        config = base.config.to_dict() | fields
        return AutoConfig.for_model(**config)

    if attention.head_counts == "any":
        make(5)
    if attention.head_counts == "divides_hidden":
        make(4)
        with pytest.raises(Exception, match="multiple of the number of attention heads"):
            make(5)
    allowed = [heads for heads in range(1, 6) if can_have_heads(base.architecture, sizes, heads)]
    expected = {"any": [1, 2, 3, 4, 5], "divides_hidden": [1, 2, 3, 4], "fixed": []}
    assert allowed == expected[attention.head_counts]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@given(groups=st.integers(1, 4), per_group=st.integers(1, 4), ffn=st.integers(1, 9))
def test_a_layout_names_units_that_exist(
    layout: Any, groups: int, per_group: int, ffn: int
) -> None:
    if layout is layouts.codegen_blocks:
        groups, per_group = 4 * groups, 1
    sizes = Dimensions(1, 8, ffn, groups * per_group, groups, 3)
    units = set(layout(sizes))
    queries = set(range(sizes.heads))
    groups_ = set(range(sizes.heads, sizes.heads + groups))
    assert units in (set(range(ffn)), queries, groups_, queries | groups_)


def test_an_unknown_architecture_is_named_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"'mamba' is not described.*llama") as caught:
        describe(SimpleNamespace(model_type="mamba"), where="org/model")
    assert caught.value.where == "org/model"
    assert "pipeline/architectures/" in caught.value.remedy
    with pytest.raises(InputError, match="no description of architecture 'falcon' fits"):
        describe(SimpleNamespace(model_type="falcon"), where="org/model")


def test_sizes_that_a_config_leaves_out() -> None:
    config = SimpleNamespace(
        model_type="llama",
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
    )
    sizes = dimensions(config, describe(config, "x"))
    assert (sizes.kv_heads, sizes.head_dim) == (4, 8)
    config = SimpleNamespace(**vars(config) | {"model_type": "gpt2", "n_inner": None})
    assert dimensions(config, describe(config, "x")).ffn == 128


def test_a_tensor_or_module_that_is_missing_is_named(tiny_base: TinyBase) -> None:
    base = tiny_base("llama")
    layers = (base.dimensions,) * 3
    names = set(base.tensors) - {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(InputError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        check_tensors(base.architecture, layers, names, "x")
    check_tensors(base.architecture, layers, base.tensors, "x")  # biases are optional
    names = {name for name in base.tensors if "up_proj" not in name}
    with pytest.raises(
        InputError, match=r"up_proj\.weight', which its description names"
    ) as caught:
        check_tensors(base.architecture, layers, names, "org/model")
    assert caught.value.where == "org/model" and "correct the family's" in caught.value.remedy
    model = load(base.model.path, torch.float32)
    del model.model.layers[2].mlp.down_proj
    with pytest.raises(InputError, match=r"no module 'model\.layers\.2\.mlp\.down_proj'"):
        output_modules(model, base.architecture, "mlp.down_proj")


def test_zeros_stand_where_nothing_narrower_can_be_said(tiny_base: TinyBase) -> None:
    base = tiny_base("gpt2")
    plan = random_plan(base.dimensions, 1, ffn=(40, 32, 40), groups=3)
    cuts = tensor_cuts(base.architecture, base.dimensions, plan)
    narrow = cuts["transformer.h.1.mlp.c_fc.weight"]
    assert (narrow.axis, narrow.entries) == (1, (*plan.layers[1].ffn, *[NOTHING] * 8))
    heads = cuts["transformer.h.0.attn.c_proj.weight"]
    assert (heads.axis, heads.after, heads.before) == (0, (48,), (48,))
    assert heads.entries.count(NOTHING) == 24
    tensor = torch.arange(48 * 2.0).view(48, 2) + 1
    after = heads.apply(tensor)
    assert torch.equal(after.any(dim=1), torch.tensor([e != NOTHING for e in heads.entries]))
    kept, empty = heads.kept_of(after)
    assert torch.equal(heads.place(kept), after) and not empty.any()


def test_a_config_with_which_a_family_computes_otherwise(tiny_base: TinyBase) -> None:
    config = tiny_base("bloom").config
    slow = SimpleNamespace(**(config.to_dict() | {"slow_but_exact": True}))
    with pytest.raises(InputError, match="slow_but_exact is True computes otherwise"):
        describe(slow, "here")
