"""From text to plan and compensation, in one shot and in steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MIXTURES, cut, load, logits
from tiny_recipe import tiny_recipe

from pipeline.architectures.registry import output_modules
from pipeline.cache import Cache
from pipeline.errors import BrokenError, InputError
from pipeline.progress import Progress
from pipeline.scoring.statistics import load_second_moments
from pipeline.selection import scores
from pipeline.selection.plan import complement
from pipeline.stages import measure
from pipeline.stages.base import Base, masking
from pipeline.stages.choose import Choice, choose
from pipeline.stages.measure import Measurer
from pipeline.stages.shapes import cost_lines
from pipeline.stages.texts import prepare
from pipeline.surgery.compensation import compensation_map
from pipeline.surgery.coordinates import head_coordinates

TinyBase = Callable[..., Base]


@pytest.fixture
def chosen(tmp_path: Path, cache: Cache, quiet: Progress) -> Callable[..., Choice]:
    def make(base: Base, *overrides: str, store: Cache = cache) -> Choice:
        loaded = tiny_recipe(tmp_path / "recipe", base.model.path, *overrides)
        texts = prepare(base, loaded, store, quiet)
        measurer = Measurer(base, loaded.recipe, texts.sequences, store, quiet)
        return choose(base, loaded.recipe, measurer, quiet)

    return make


def removed(choice: Choice, kind: str) -> list[set[int]]:
    plan = choice.plan
    totals = {"ffn": plan.ffn, "query_heads": plan.heads, "kv_heads": plan.kv_heads}
    return [set(complement(getattr(layer, kind), totals[kind])) for layer in plan.layers]


def test_the_same_recipe_gives_the_same_bytes_of_plan(
    tiny_base: TinyBase, tmp_path: Path, chosen: Any
) -> None:
    base = tiny_base("llama")
    one, other = (chosen(base, store=Cache(tmp_path / name)) for name in ("one", "other"))
    assert one.plan.to_json() == other.plan.to_json()
    for name in one.maps:
        assert torch.equal(one.maps[name].map_PS, other.maps[name].map_PS)
    assert {len(layer.ffn) for layer in one.plan.layers} == {48}
    coverage = {"layers": "3/3", "neurons": "192/192", "heads": "18/18"}
    assert one.measurement.coverage == coverage


def test_the_baselines_have_the_same_shape(tiny_base: TinyBase, chosen: Any) -> None:
    base = tiny_base("llama")
    plans = {
        score: chosen(base, f"select.ffn.score={score}").plan
        for score in ("ratio", "contribution", "random", "magnitude")
    }
    for plan in plans.values():
        assert {len(layer.ffn) for layer in plan.layers} == {48}
    assert len({plan.to_json() for plan in plans.values()}) == 4
    norms_U = base.weight(1, "ffn").norm(dim=0)
    smallest = set(norms_U.argsort()[:16].tolist())
    assert set(complement(plans["magnitude"].layers[1].ffn, 64)) == smallest


@pytest.mark.parametrize("importance", ["abs", "rms", "std", "freq"])
def test_every_importance_selects(tiny_base: TinyBase, chosen: Any, importance: str) -> None:
    choice = chosen(
        tiny_base("qwen2"),
        f"select.ffn.importance={importance}",
        f"select.attention.importance={importance}",
        "select.attention.fraction=0.3",
    )
    assert choice.plan.counts() == {
        "ffn": (144, 192),
        "query_heads": (12, 18),
        "kv_heads": (6, 9),
    }


def test_the_neurons_that_code_uses_most_are_removed(tiny_base: TinyBase, chosen: Any) -> None:
    choice = chosen(tiny_base("llama"), "select.ffn.score=ratio", "select.ffn.epsilon=0.0")
    forget, retain = choice.measurement.forget, choice.measurement.retain
    ratio_LU = (forget.ffn.squared_LU / forget.tokens) / (retain.ffn.squared_LU / retain.tokens)
    for layer, gone in enumerate(removed(choice, "ffn")):
        assert gone == set(ratio_LU[layer].argsort(descending=True)[:16].tolist())


@pytest.mark.parametrize(("unit", "kept"), [("kv_group", (4, 2)), ("query_head", (3, 3))])
def test_heads_go_with_their_groups_or_evenly_from_each(
    tiny_base: TinyBase, chosen: Any, unit: str, kept: tuple[int, int]
) -> None:
    choice = chosen(
        tiny_base("mistral"),
        "select.ffn.fraction=0.0",
        "select.attention.fraction=0.34",
        f"select.attention.unit={unit}",
    )
    for layer in choice.plan.layers:
        assert (len(layer.query_heads), len(layer.kv_heads)) == kept
        groups = [head // 2 for head in layer.query_heads]
        assert sorted(set(groups)) == list(layer.kv_heads)
        assert len(set(map(groups.count, groups))) == 1
        assert len(layer.ffn) == 64
    assert all("o_proj" in name for name in choice.maps)
    assert len(choice.maps) == 3


@pytest.mark.parametrize(
    ("unit", "kind", "width"), [("kv_group", "kv_heads", 16), ("query_head", "query_heads", 8)]
)
def test_the_summary_is_of_the_units_that_were_ranked(
    tiny_base: TinyBase, chosen: Any, unit: str, kind: str, width: int
) -> None:
    base = tiny_base("mistral")
    choice = chosen(
        base,
        "select.attention.fraction=0.34",
        f"select.attention.unit={unit}",
        "select.attention.score=magnitude",
    )
    gone = torch.cat(
        [
            -base.weight(layer, "attention").double().unflatten(1, (-1, width))
            .square().sum(dim=(0, 2)).sqrt()[sorted(units)]
            for layer, units in enumerate(removed(choice, kind))
        ]
    )  # fmt: skip
    found = choice.score_summary["attention"]
    assert found["mean_removed"] == pytest.approx(float(gone.mean()))
    assert found["lowest_removed"] == pytest.approx(float(gone.min()))


def test_what_a_shape_policy_costs_is_said(tiny_base: TinyBase, chosen: Any) -> None:
    base = tiny_base("llama")
    uniform, padded = (
        chosen(base, "select.ffn.multiple_of=1", f"select.policy={policy}")
        for policy in ("uniform", "padded")
    )
    worst = [set(units) for units in removed(padded, "ffn")]
    share = sum(len(a & set(b)) for a, b in zip(worst, removed(uniform, "ffn"), strict=True)) / 48
    assert sum(map(len, worst)) == 48 and len(set(map(len, worst))) > 1
    assert 0 < share < 1
    costs = uniform.score_summary["shapes"]
    assert costs == padded.score_summary["shapes"]  # of all policies, whichever is chosen
    assert costs["uniform.worst"] == pytest.approx(share)
    assert costs["padded.worst"] == costs["ragged.worst"] == 1.0
    assert {costs[f"{name}.removed"] for name in ("uniform", "padded", "ragged")} == {0.25}
    assert costs["uniform.room"] == costs["ragged.room"] == 0.25 > costs["padded.room"]
    lines = list(cost_lines(costs, 0.25, "ragged"))
    assert lines[0].startswith("ragged removes 25.0%, 100.0% of the worst 25.0% of all layers")
    assert any(f"uniform removes 25.0%, {share:.1%} of the worst" in line for line in lines)


def test_compensation_brings_retain_text_closer_to_the_original(
    tiny_base: TinyBase, tmp_path: Path, cache: Cache, quiet: Progress, chosen: Any
) -> None:
    base = tiny_base("llama")
    choice = chosen(base, "select.attention.fraction=0.3")
    assert len(choice.maps) == 6
    loaded = tiny_recipe(tmp_path / "recipe", base.model.path)
    ids = prepare(base, loaded, cache, quiet).sequences["retain"]
    model = load(base.model.path, torch.float32)
    module = output_modules(model, base.architecture, "mlp.down_proj")[0]
    written: list[torch.Tensor] = []
    module.register_forward_hook(lambda _m, _i, output: written.append(output.clone()))
    logits(model, ids)
    for maps in ({}, choice.maps):
        with masking(base, choice.plan, maps, model):
            logits(model, ids)
    whole, masked, compensated = written
    assert (compensated - whole).square().mean() < 0.8 * (masked - whole).square().mean()
    assert chosen(base, "compensate.enabled=false").maps == {}


def test_neurons_with_massive_activations_are_never_removed(
    tiny_base: TinyBase, chosen: Any
) -> None:
    base = tiny_base("llama")
    first = chosen(base, "select.ffn.protect_massive=1000000.0")
    assert first.score_summary["ffn"]["protected"] == 0
    choice = chosen(base, "select.ffn.protect_massive=1.3")
    statistics = choice.measurement.retain
    rms_LU = (statistics.ffn.squared_LU / statistics.tokens).sqrt()
    norms_LU = torch.stack([base.weight(n, "ffn").double().norm(dim=0) for n in range(3)])
    protected_LU = scores.massive(rms_LU, norms_LU, 1.3)
    assert choice.score_summary["ffn"]["protected"] == protected_LU.sum() > 0
    for layer, gone in enumerate(removed(choice, "ffn")):
        assert not gone & set(protected_LU[layer].nonzero().flatten().tolist())
    would_go = zip(removed(first, "ffn"), protected_LU, strict=True)
    assert any(gone & set(row.nonzero().flatten().tolist()) for gone, row in would_go)


# ── mixtures of experts ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("score", ["ratio", "contribution", "random"])
def test_every_expert_that_stays_keeps_as_many_neurons(
    tiny_base: TinyBase, chosen: Any, family: str, score: str
) -> None:
    base = tiny_base(family)
    choice = chosen(base, "select.experts.fraction=0.3", f"select.experts.score={score}")
    sizes = base.dimensions
    for layer in choice.plan.layers:
        assert len(layer.experts) == 3
        kept = [len(set(block) & set(layer.ffn)) for block in sizes.blocks]
        assert [n for n in kept[:4] if n] == [24] * 3 and kept[4:] == [32] * (len(kept) - 4)
        assert [expert for expert in range(4) if kept[expert]] == list(layer.experts)
    seen = choice.measurement.coverage["experts that got a token"]
    assert seen.endswith("/12")
    projections = 3 * (3 + bool(sizes.shared))  # of experts that stay
    assert len(choice.maps) == projections


def test_the_experts_that_code_uses_most_are_removed(tiny_base: TinyBase, chosen: Any) -> None:
    base = tiny_base("mixtral")
    settings = ["select.experts.fraction=0.25", "select.experts.score=ratio"]
    choice = chosen(base, *settings, "select.experts.epsilon=0.0")
    forget, retain = choice.measurement.forget, choice.measurement.retain
    ratio_LE = (forget.experts_LE / forget.tokens) / (retain.experts_LE / retain.tokens)
    for layer, kept in enumerate(choice.plan.layers):
        assert set(kept.experts) == set(range(4)) - {int(ratio_LE[layer].argmax())}


def test_a_token_always_finds_as_many_experts_as_it_takes(tiny_base: TinyBase, chosen: Any) -> None:
    choice = chosen(tiny_base("mixtral"), "select.experts.fraction=0.9", "select.ffn.fraction=0")
    assert {len(layer.experts) for layer in choice.plan.layers} == {2}
    assert choice.maps == {} and choice.plan.counts()["experts"] == (6, 12)
    base = tiny_base("mixtral", num_experts_per_tok=4)
    with pytest.raises(InputError, match="each token takes 4 of 4 experts"):
        chosen(base, "select.experts.fraction=0.25")


def test_experts_go_in_steps(tiny_base: TinyBase, chosen: Any) -> None:
    base = tiny_base("gpt_oss")
    first = chosen(base, "select.experts.fraction=0.25")
    choice = chosen(base, "select.experts.fraction=0.5", "select.steps=2")
    for one, both in zip(first.plan.layers, choice.plan.layers, strict=True):
        assert len(both.experts) == 2 and set(both.experts) < set(one.experts)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────

STEPS = (
    "select.steps=3",
    "select.ffn.fraction=0.375",
    "select.attention.fraction=0.34",
    "compensate.ridge=0.01",
)


def test_what_a_step_removed_stays_removed(
    tiny_base: TinyBase, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    protect = scores.massive

    def protect_what_is_gone(retain: Any, norms: Any, times: float) -> Any:
        """Measured again, a removed neuron may look massive: that must not bring it back."""
        mask = protect(retain, norms, times)
        for layer, gone in enumerate(gone_so_far):
            mask[layer, list(gone)] = True
        return mask

    monkeypatch.setattr(scores, "massive", protect_what_is_gone)
    gone_so_far: list[set[int]] = []
    seen: list[list[set[int]]] = []
    make_plan = choose.__globals__["_plan"]

    def spied(*arguments: Any) -> Any:
        plan, summary = make_plan(*arguments)
        gone_so_far[:] = [set(plan.removed_ffn(layer)) for layer in range(3)]
        seen.append(list(gone_so_far))
        return plan, summary

    monkeypatch.setitem(choose.__globals__, "_plan", spied)
    choice = chosen(base, *STEPS)
    assert [len(step[0]) for step in seen] == [8, 16, 24]
    for earlier, later in pairwise(seen):
        assert all(one < other for one, other in zip(earlier, later, strict=True))
    assert removed(choice, "ffn") == seen[-1]
    # Removed units are measured on: compensation must know what they would have written.
    for layer, gone in enumerate(seen[0]):
        assert (choice.measurement.retain.ffn.squared_LU[layer, sorted(gone)] > 0).all()
    assert [len(heads) for heads in removed(choice, "query_heads")] == [2, 2, 2]


def test_steps_in_bfloat16_derive_weights_from_the_original_ones(
    tiny_base: TinyBase, tmp_path: Path, chosen: Any
) -> None:
    """Writing each step's compensation into bfloat16 weights piles up rounding until it breaks."""
    base = tiny_base("llama", dtype=torch.bfloat16)
    choice = chosen(base, "model.dtype=bfloat16", *STEPS)
    cut(base, tmp_path / "cut", choice.plan, choice.maps)
    after = load(tmp_path / "cut", torch.bfloat16).state_dict()
    for layer, kept in enumerate(choice.plan.layers):
        moments = load_second_moments(choice.measurement.moments, layer)
        heads = (kept.query_heads, choice.plan.removed_heads(layer))
        ffn, attention = base.architecture.feed_forward, base.architecture.attention
        for kind, block, stays, goes in (
            ("ffn", ffn, kept.ffn, choice.plan.removed_ffn(layer)),
            ("attention", attention, *(head_coordinates(h, 8) for h in heads)),
        ):
            one_shot = compensation_map(
                moments[kind], stays, goes, ridge=0.01, dtype=torch.bfloat16, where=""
            )
            expected = one_shot.kept_columns(base.weight(layer, kind))
            found = after[f"model.layers.{layer}.{block.output}.weight"]
            assert torch.equal(found, expected)


def test_every_step_measures_the_model_as_the_last_one_left_it(
    tiny_base: TinyBase, tmp_path: Path, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    original = load(base.model.path, torch.bfloat16).state_dict()
    model = load(base.model.path, torch.bfloat16)
    monkeypatch.setattr(measure, "load_model", lambda *_: model)
    chosen(base, "model.dtype=bfloat16", *STEPS)
    assert all(torch.equal(original[n], t) for n, t in model.state_dict().items())
    made = {p.name for p in (tmp_path / "cache" / "scoring").iterdir()}
    assert len(made) == 2 * 3  # both sides
    # Of six steps the first removes the same as of three. Later plans may be the same again, but
    # they were measured after other steps, so that their maps differ.
    chosen(base, "model.dtype=bfloat16", "select.steps=6", *STEPS[1:])
    assert len({p.name for p in (tmp_path / "cache" / "scoring").iterdir()} - made) == 2 * 4


def test_what_does_not_compensate_is_measured_alike_however_it_would(
    tiny_base: TinyBase, tmp_path: Path, chosen: Any
) -> None:
    base, off = tiny_base("llama"), ("compensate.enabled=false", *STEPS[:-1])
    first = chosen(base, *off, "compensate.ridge=0.01")
    made = {p.name for p in (tmp_path / "cache" / "scoring").iterdir()}
    again = chosen(base, *off, "compensate.ridge=0.1")
    assert again.plan == first.plan
    assert {p.name for p in (tmp_path / "cache" / "scoring").iterdir()} == made


# ── what must not pass in silence ────────────────────────────────────────────────────────────────


def test_a_layer_that_does_not_run_is_an_error(
    tiny_base: TinyBase, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: x)
    monkeypatch.setattr(measure, "load_model", lambda *_: model)
    with pytest.raises(BrokenError, match="only 2 of 3 layers' ffn outputs were seen"):
        chosen(base)


def test_activations_that_are_not_numbers_are_an_error(
    tiny_base: TinyBase, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    model = load(base.model.path, torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 3] = torch.inf
    monkeypatch.setattr(measure, "load_model", lambda *_: model)
    with pytest.raises(BrokenError, match=r"layer 2 .* not finite"):
        chosen(base)


def test_no_position_left_to_count_is_an_error(tiny_base: TinyBase, chosen: Any) -> None:
    with pytest.raises(InputError, match=r"scoring\.skip_positions: no position of"):
        chosen(tiny_base("llama"), "scoring.skip_positions=32")
