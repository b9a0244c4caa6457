"""Gates of a recipe: learned on its scored text, for a share that is to go, and cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Unlearn
from tiny_models import DENSE
from tiny_recipe import tiny_recipe

from pipeline.cache import Cache, read_json
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.stages.base import Base
from pipeline.stages.choose import Choice, choose
from pipeline.stages.measure import Measurer
from pipeline.stages.preflight import preflight
from pipeline.stages.texts import prepare

TinyBase = Callable[..., Base]
LEARNED = ("select.ffn.score=learned", "select.ffn.gates.steps=3")


@pytest.fixture
def measurer(tmp_path: Path, quiet: Progress) -> Callable[..., Measurer]:
    def make(base: Base, store: Cache, *overrides: str) -> Measurer:
        loaded = tiny_recipe(tmp_path / "recipe", base.model.path, *LEARNED, *overrides)
        texts = prepare(base, loaded, store, quiet)
        return Measurer(base, loaded.recipe, texts.sequences, store, quiet)

    return make


def chosen(measurer: Measurer) -> Choice:
    return choose(measurer.base, measurer.recipe, measurer, measurer.progress)


def test_the_same_gates_are_learned_again(
    tiny_base: TinyBase, tmp_path: Path, measurer: Any
) -> None:
    base = tiny_base("llama")
    one, other = (chosen(measurer(base, Cache(tmp_path / name))) for name in ("one", "other"))
    assert one.plan.to_json() == other.plan.to_json()
    assert {len(layer.ffn) for layer in one.plan.layers} == {48}
    plain = chosen(measurer(base, Cache(tmp_path / "one"), "select.ffn.score=contribution"))
    assert plain.plan.to_json() != one.plan.to_json()
    assert one.cost.seconds > plain.cost.seconds


def test_they_are_learned_once(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    first = measurer(base, cache)
    found = chosen(first)
    again = measurer(base, cache)
    assert chosen(again).plan == found.plan
    assert first.has_run and not again.has_run
    for change in ("seed=1", "select.ffn.fraction=0.5", "select.ffn.gates.retain_weight=1.0"):
        other = measurer(base, cache, change)
        chosen(other)
        assert other.has_run, change


@pytest.mark.parametrize("family", DENSE)
def test_every_layout_has_gates(
    tiny_base: TinyBase, cache: Cache, measurer: Any, family: str
) -> None:
    choice = chosen(measurer(tiny_base(family), cache))
    assert len({len(layer.ffn) for layer in choice.plan.layers}) == 1


def test_the_model_is_as_it_was(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    base = tiny_base("llama")
    own = measurer(base, cache)
    model = own.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    *_, _last = [chosen(own)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_together(tiny_base: TinyBase, cache: Cache, measurer: Any) -> None:
    options = ("select.policy=padded", "select.ffn.multiple_of=1")
    plan = chosen(measurer(tiny_base("llama"), cache, *options)).plan
    removed = sum(64 - len(layer.ffn) for layer in plan.layers)
    assert removed == pytest.approx(0.25 * 3 * 64, abs=8)


def test_what_gates_cannot_be_learned_of(tiny_base: TinyBase, tmp_path: Path) -> None:
    mixture = tiny_base("mixtral")
    loaded = tiny_recipe(tmp_path / "a", mixture.model.path, *LEARNED, "select.ffn.multiple_of=16")
    with pytest.raises(InputError, match="neurons of experts"):
        preflight(mixture, loaded)
    dense = tiny_base("llama")
    loaded = tiny_recipe(
        tmp_path / "b", dense.model.path, *LEARNED, 'model.max_memory={cpu: "1GB"}'
    )
    with pytest.raises(InputError, match="all weights must be in memory"):
        preflight(dense, loaded)
    with pytest.raises(InputError, match="take no steps"):
        tiny_recipe(tmp_path / "c", dense.model.path, *LEARNED, "select.steps=2")


def test_a_run_forgets_more_than_a_random_cut_does(unlearn: Unlearn, learned_recipe: Path) -> None:
    """Of a model that knows both texts."""
    settings = ("learned", "random")
    result = unlearn(
        "curve", learned_recipe, "--settings", ",".join(settings), "--fractions", "0.7", "--quiet"
    )
    assert result.code == 0, result.err
    rows = {row["setting"]: row for row in read_json(Path("out/tiny-curve/figures.json"))["points"]}
    learned, random = (rows[name]["forget_drop"] - rows[name]["retain_drop"] for name in settings)
    assert learned > random + 0.1
