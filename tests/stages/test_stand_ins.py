"""Compensation that is learned on a recipe's scored text, and cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_models import DENSE
from tiny_recipe import tiny_recipe, write_recipe

from pipeline.cache import Cache, read_json
from pipeline.errors import InputError
from pipeline.forecast import learning_tokens
from pipeline.progress import Progress
from pipeline.recipe.judging import Control
from pipeline.scoring.importance import unit_importance
from pipeline.scoring.learning import Logits
from pipeline.scoring.stand_ins import StandIn, learn_maps
from pipeline.stages.base import Base, masking
from pipeline.stages.choose import Choice, choose
from pipeline.stages.cut import as_control
from pipeline.stages.drawn import drawn_recipes
from pipeline.stages.learning import check_learning, learns
from pipeline.stages.measure import Measurer
from pipeline.stages.texts import prepare

TinyBase = Callable[..., Base]
LEARNING = ("compensate.learning={steps: 3, rows: 2, row_tokens: 16}",)


@pytest.fixture
def measurer(tmp_path: Path, quiet: Progress) -> Callable[..., Measurer]:
    def make(base: Base, store: Cache, *overrides: str) -> Measurer:
        loaded = tiny_recipe(tmp_path / "recipe", base.model.path, *overrides)
        texts = prepare(base, loaded, store, quiet)
        return Measurer(base, loaded.recipe, texts.sequences, store, quiet)

    return make


def chosen(measurer: Measurer) -> Choice:
    return choose(measurer.base, measurer.recipe, measurer, measurer.progress)


def test_maps_are_learned_once(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    plain = chosen(measurer(base, cache))
    first = measurer(base, cache, *LEARNING)
    learned = chosen(first)
    assert first.has_run and learned.plan == plain.plan
    assert {*learned.maps} == {*plain.maps}
    for name, each in plain.maps.items():
        assert not torch.equal(learned.maps[name].map_PS, each.map_PS)
        assert learned.maps[name].removed == each.removed
    assert learned.cost.seconds > plain.cost.seconds
    again = measurer(base, cache, *LEARNING)
    assert same(chosen(again), learned) and not again.has_run
    for change in ("seed=1", "compensate.ridge=0.2", "compensate.learning.retain_weight=2.0"):
        other = measurer(base, cache, *LEARNING, change)
        assert not same(chosen(other), learned), change


def same(one: Choice, other: Choice) -> bool:
    return all(torch.equal(one.maps[k].map_PS, other.maps[k].map_PS) for k in one.maps)


def test_other_text_learns_other_maps(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    """Of one plan, with one closed form."""
    base, alike = tiny_base("llama"), ("select.ffn.score=magnitude", *LEARNING)
    one, other = (
        chosen(measurer(base, cache, *alike, f"scoring.forget_tokens={tokens}"))
        for tokens in (600, 300)
    )
    assert one.plan == other.plan and not same(one, other)


HEADS = ("select.policy=ragged", "select.attention.fraction=0.5", "select.ffn.multiple_of=1")


@pytest.mark.parametrize(
    ("family", "cut"), [*((family, ()) for family in DENSE), ("llama", HEADS), ("opt", HEADS)]
)
def test_what_is_learned_is_what_will_be_cut(
    tiny_base: TinyBase,
    cache: Cache,
    measurer: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    cut: tuple[str, ...],
) -> None:
    """While it is learned, the model computes what the masked one does with the same maps."""
    begun: list[StandIn] = []
    changed: list[torch.Tensor] = []
    asked: list[torch.Tensor] = []

    def learn(logits: Logits, stand_ins: Any, *more: Any) -> list[torch.Tensor]:
        def noted(ids_NT: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = logits(ids_NT)
            if torch.is_grad_enabled():
                asked.append(ids_NT)
                changed.append(found.detach())
            return found

        begun.extend(stand_ins)
        return learn_maps(noted, stand_ins, *more)

    monkeypatch.setattr("pipeline.stages.stand_ins.learn_maps", learn)
    base = tiny_base(family)
    own = measurer(base, cache, *cut, *LEARNING, "compensate.learning.learning_rate=1e-30")
    measurement, choice = own.measure(), chosen(own)
    plain = chosen(measurer(base, cache, *cut))
    assert len(begun) == len(choice.maps) > 0
    for name, each in plain.maps.items():
        assert torch.allclose(choice.maps[name].map_PS, each.map_PS, rtol=1e-5, atol=1e-8)
    model = own.model()
    with torch.no_grad(), masking(base, plain.plan, plain.maps, model):
        assert torch.allclose(model(input_ids=asked[0]).logits, changed[0], atol=1e-4)
    if cut:
        rms_LU = unit_importance(measurement.retain.attention, measurement.retain.tokens, "rms")
        scales = [each.scale_U for each in begun]
        assert any(torch.equal(scale_U, rms_LU[0]) for scale_U in scales)


def test_the_model_is_as_it_was(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    own = measurer(base, cache, *LEARNING)
    model = own.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chosen(own)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_maps_cannot_be_learned_of(
    tiny_base: TinyBase, tmp_path: Path, unlearn: Unlearn
) -> None:
    mixture = write_recipe(tmp_path / "a", tiny_base("mixtral").model.path)
    dense = tiny_base("llama").model.path
    options = ("--quiet", "--set", LEARNING[0], "--set", "select.ffn.multiple_of=16", "--set")
    for recipe, more, words in (
        (mixture, "seed=0", "neurons of experts"),
        (write_recipe(tmp_path / "b", dense), "model.max_memory={cpu: 1GB}", "must be in memory"),
        (write_recipe(tmp_path / "c", dense), "select.steps=2", "learned maps are for a selection"),
    ):
        for verb in ("check", "run"):
            result = unlearn(verb, recipe, *options, more)
            assert result.code == 2, result.err
            assert words in result.err
    result = unlearn("run", mixture, *options[:1], "--set", options[-2])
    assert result.code == 0, result.err
    recompute = ("verify", "out/tiny", "--recipe", mixture, "--recompute", *options, "seed=0")
    result = unlearn(*recompute)
    assert result.code == 2 and "neurons of experts" in result.err
    offloaded = write_recipe(tmp_path / "e", dense)
    result = unlearn("compare", offloaded, *options, "model.max_memory={cpu: 1GB}")
    assert result.code == 2 and "must be in memory" in result.err
    with pytest.raises(InputError, match=r"compensate.learning.learning_rate"):
        tiny_recipe(tmp_path / "d", dense, "compensate.learning={learning_rate: 2.0}")


def test_heads_of_a_mixture_have_them(tiny_base: TinyBase, tmp_path: Path) -> None:
    mixture = tiny_base("mixtral")
    heads = ("select.ffn.fraction=0", "select.attention.fraction=0.5", *LEARNING)
    recipe = tiny_recipe(tmp_path, mixture.model.path, *heads).recipe
    assert [key for key, _ in learns(recipe)] == ["compensate.learning"]
    check_learning(recipe, mixture.architecture)


def test_a_control_and_settings_without_compensation_learn_nothing(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    curve = "curve={settings: [taker-abs, uncompensated], fractions: [0.25]}"
    loaded = tiny_recipe(tmp_path, tiny_base("llama").model.path, *LEARNING, curve)
    control = as_control(loaded.recipe, Control())
    for each in (control, *drawn_recipes(loaded)):
        assert not list(learns(each))
    assert drawn_recipes(loaded)[0].select.steps == 49


def test_what_learning_is_forecast_to_take(tiny_base: TinyBase, tmp_path: Path) -> None:
    def tokens(*overrides: str) -> int:
        path = tiny_base("llama").model.path
        return learning_tokens(tiny_recipe(tmp_path / "r", path, *overrides).recipe, [])

    once = 3 * 2 * 16 * 7
    assert tokens() == 0
    assert tokens(*LEARNING) == once
    assert tokens(*LEARNING, "compensate.enabled=false") == 0
    assert tokens(*LEARNING, "select.until={retain_drop: 0.1}") == 7 * once
    both = "select.until={retain_drop: 0.1, forget: {accuracy: 0.2}}"
    assert tokens(*LEARNING, both) == 14 * once
    assert tokens(*LEARNING, "control={}") == once
    gates = "select.ffn.gates={steps: 3, rows: 2, row_tokens: 16}"
    assert tokens(*LEARNING, "select.ffn.score=learned", gates) == 2 * once


def test_retain_text_loses_less_and_the_release_verifies(
    unlearn: Unlearn, learned_recipe: Path
) -> None:
    """Of a model that knows both texts; half of its neurons go."""
    many = "compensate.learning={steps: 60, rows: 8, learning_rate: 0.01}"
    options = ("--set", "select.ffn.fraction=0.5", "--quiet")
    losses = {}
    for name, more in (("closed", "seed=0"), ("learned", many)):
        result = unlearn("run", learned_recipe, "--out", name, *options, "--set", more)
        assert result.code == 0, result.err
        found = read_json(Path(name) / "tiny" / "evaluation.json")["pruned"]["tasks"]
        losses[name] = {
            side: found[f"next_token_{text}"]["metrics"]["loss"]
            for side, text in (("forget", "code"), ("retain", "prose"))
        }
    assert losses["learned"]["retain"] < losses["closed"]["retain"]
    assert losses["learned"]["forget"] > losses["closed"]["forget"]
    result = unlearn("verify", "learned/tiny", "--recipe", learned_recipe)
    assert result.code == 0, result.err + result.out
    assert "nothing else" in result.out
    for name, words in (("closed", "in closed form"), ("learned", "trained by gradients")):
        for file in ("README.md", "report.html"):
            text = (Path(name) / "tiny" / file).read_text()
            assert (words in text) and ("away from the forget texts" in text) == (name == "learned")
